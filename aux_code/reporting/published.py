"""Every number of the paper's tables (ICCV 2023, arXiv 2308.11072), in percent, as data.

Table 8's obfuscation rows on XD-Violence follow the paper's own percentages; the arXiv PDF
misprints the two values.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """One row of Table 8, in percent."""

    vispr_cmap: float
    """Lower is better."""
    ucf_crime_auc: float
    xd_violence_ap: float
    shanghaitech_auc: float


TABLE_8 = {
    "raw": Published(62.30, 77.68, 73.72, 90.63),
    "downsample2x": Published(55.64, 76.09, 62.11, 84.65),
    "downsample4x": Published(52.84, 68.12, 59.36, 82.96),
    "blur": Published(58.68, 75.69, 56.17, 89.63),
    "blacken": Published(56.36, 73.91, 54.01, 88.72),
    "spact": Published(52.71, 73.93, 53.36, 87.72),
    "ted_spad": Published(42.21, 74.81, 60.32, 90.59),
}
"""Name of a method -> the paper's row."""

TABLE_8_LABELS = {
    "raw": "Raw", "downsample2x": "Downsample-2x", "downsample4x": "Downsample-4x",
    "blur": "Obfuscation: blurring", "blacken": "Obfuscation: blackening", "spact": "SPAct (ω = 0)",
    "ted_spad": "TeD-SPAD",
}  # fmt: skip

CHANCE_CMAP = 24.78
"""Mean prevalence of the seven VISPR1 attributes in the test set, percent: a blind guess."""

HEADLINE_METRIC = {"ucf_crime": "auc", "xd_violence": "ap", "shanghaitech": "auc"}
"""Which metric the paper reports for a data set."""

DATASET_LABELS = {
    "ucf_crime": "UCF-Crime",
    "xd_violence": "XD-Violence",
    "shanghaitech": "ShanghaiTech",
}


_CE, _TED_SPAD = (52.71, 73.93), (42.21, 74.81)

ABLATIONS: dict[str, dict[str, tuple[float, float]]] = {
    "2": {"spact": _CE, "ted_spad": _TED_SPAD, "invariance_1": (45.64, 69.52)},
    "3": {"spact": _CE, "lltc": (42.44, 75.06), "ted_spad": _TED_SPAD},
    "4": {"spact": _CE, "omega_0.01": (53.84, 72.53), "ted_spad": _TED_SPAD,
          "omega_1": (55.26, 70.56), "omega_10": (51.67, 69.27)},
    "5": {"margin_0.5": (49.78, 62.12), "ted_spad": _TED_SPAD, "margin_2": (58.86, 67.30)},
    "6": {"ted_spad": _TED_SPAD, "distance_8": (46.34, 76.12), "distance_32": (28.69, 70.97)},
    "9": {"spact": _CE, "invariance_0.1": (51.62, 69.35), "invariance_0.5": (46.51, 65.84),
          "invariance_1": (45.64, 69.52), "invariance_2": (52.2, 64.4)},
    "10": {"ted_spad": _TED_SPAD, "mvitv2": (24.21, 69.22), "r3d_18": (33.58, 70.67)},
}  # fmt: skip
"""Table -> method -> the paper's (VISPR cMAP, UCF-Crime AUC) in percent. Table 10's first row is
TeD-SPAD with I3D (2048-d)."""

ABLATION_TITLES = {
    "2": "Utility loss", "3": "Distinctiveness objective",
    "4": "Weight ω of the distinctiveness loss", "5": "Margin μ of the triplet loss",
    "6": "Clip distance of the negative", "9": "Weight of the temporal invariance loss",
    "10": "Utility network f_T",
}  # fmt: skip

TABLE_1 = {"raw": 63.15, "spact": 55.60, "ted_spad": 52.30}
"""Feature-level leakage: VISPR cMAP in percent of an attacker on I3D features of still clips."""


def relative_change(value: float, raw: float) -> float:
    """Change against raw in percent, as the brackets of the paper's table."""
    return 100.0 * (value - raw) / raw
