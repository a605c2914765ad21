"""The rows of the paper's tables: how each one's frames are made private, and which options make the difference."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Attacker:
    """One attacker of stage 2."""

    suffix: str
    """Appended to the run's name; empty for the first attacker."""
    label: str
    """For the report."""
    options: tuple[str, ...] = ()
    """Further options of train_privacy.py."""


PLAIN_ATTACKER = Attacker("", "released frames as they are")
AVERAGING_ATTACKER = Attacker("_averaged", "mean of 16 releases of the same picture", ("--average_frames", "16"))


@dataclass(frozen=True)
class Method:
    """One row: what stands between the camera and every later stage."""

    name: str
    """As in results/summary.json and on the command line of reproduce.py."""
    label: str
    """As in the tables."""
    kind: Literal["given", "reconstruction", "trained"]
    """given: --anonymizer NAME; reconstruction: init_anonymizer's checkpoint; trained: the minimax training's."""
    preset_suffix: str = ""
    """Of train_anonymizer's preset, after `paper` or `miniature`."""
    own_initialisation: bool = False
    """Whether init_anonymizer too is run with the preset of this suffix."""
    options: tuple[str, ...] = ()
    """Further options of train_anonymizer.py."""
    control: bool = False
    """Shown to explain the other rows; not a row of the paper."""
    attackers: tuple[Attacker, ...] = (PLAIN_ATTACKER,)
    """The strongest one's result counts."""


_ROWS = (
    Method("raw", "Raw", "given"),
    Method("downsample2x", "Downsample-2x", "given"),
    Method("downsample4x", "Downsample-4x", "given"),
    Method("blur", "Obfuscation: blurring", "given"),
    Method("blacken", "Obfuscation: blackening", "given"),
    Method("spact", "SPAct (ω = 0)", "trained", "_spact"),
    Method("ted_spad", "TeD-SPAD", "trained"),
    Method(
        "ted_spad_plus",
        "TeD-SPAD+ (ours)",
        "trained",
        "_ted_spad_plus",
        own_initialisation=True,
        attackers=(PLAIN_ATTACKER, AVERAGING_ATTACKER),
    ),
    Method(
        "spact_equal_compute", "SPAct, equal compute", "trained", "_spact_equal_compute", control=True
    ),
    Method("reconstruction", "Reconstruction only", "reconstruction", control=True),
)


def _variant(name: str, label: str, *options: str) -> Method:
    """TeD-SPAD with some of train_anonymizer's options changed."""
    return Method(name, label, "trained", options=options)


_ABLATIONS = (
    *(
        _variant(
            f"invariance_{weight}", f"CE + L_I, weight {weight}", "--utility_loss", "invariance", "--omega", weight
        )
        for weight in ("0.1", "0.5", "1", "2")
    ),
    _variant("lltc", "CE + LLTC", "--utility_loss", "lltc"),
    *(_variant(f"omega_{omega}", f"ω = {omega}", "--omega", omega) for omega in ("0.01", "1", "10")),
    *(_variant(f"margin_{margin}", f"μ = {margin}", "--margin", margin) for margin in ("0.5", "2")),
    *(_variant(f"distance_{d}", f"clip distance {d}", "--negative_distance", d) for d in ("8", "32")),
)

METHODS = {method.name: method for method in (*_ROWS, *_ABLATIONS)}
TABLE_8 = tuple(m.name for m in _ROWS if not m.control)
CONTROLS = tuple(m.name for m in _ROWS if m.control)

DATASETS = ("ucf_crime", "xd_violence", "shanghaitech")

ABLATION_TABLES = {
    "2": ("spact", "ted_spad", "invariance_1"),
    "3": ("spact", "lltc", "ted_spad"),
    "4": ("spact", "omega_0.01", "ted_spad", "omega_1", "omega_10"),
    "5": ("margin_0.5", "ted_spad", "margin_2"),
    "6": ("ted_spad", "distance_8", "distance_32"),
    "9": ("spact", "invariance_0.1", "invariance_0.5", "invariance_1", "invariance_2"),
}
"""Table number -> its rows, by method name. All of them report VISPR cMAP and UCF-Crime AUC."""
