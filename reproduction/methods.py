"""The rows of the paper's tables: how each one's frames are made private, and by which options."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from aux_code.errors import UserError


@dataclass(frozen=True)
class Attacker:
    """One attacker of stage 2."""

    suffix: str  # appended to the run's name; empty for the first attacker
    label: str
    options: tuple[str, ...] = ()  # further ones of train_privacy.py
    from_raw: bool = False  # its network has learned from raw images first


PLAIN_ATTACKER = Attacker("", "released frames as they are")
_SIXTEEN = ("--average_frames", "16")
AVERAGING_ATTACKER = Attacker("_averaged", "mean of 16 releases of the same image", _SIXTEEN)
NOISE_FREE_ATTACKER = Attacker("_noise_free", "f_A without its noise", ("--average_frames", "0"))
"""The limit of averaging."""
INVERTING_ATTACKER = Attacker("_inversion", "inverted frames", ("--attacker", "inversion"))
FEATURE_ATTACKER = Attacker("_features", "f_T's features", ("--level", "feature"))
"""Table 1's: it sees what feature extraction stores, of a still clip of each image."""


@dataclass(frozen=True)
class Method:
    """One row: what stands between the camera and every later stage."""

    name: str  # as in results/summary.json and on the command line of reproduce.py
    label: str  # as in the tables
    kind: Literal["given", "reconstruction", "trained"]  # --anonymizer: its name, or a checkpoint
    preset_suffix: str = ""  # of train_anonymizer's preset, after `paper` or `miniature`
    initialisation: str = ""  # suffix of init_anonymizer's preset, like preset_suffix
    miniature_options: tuple[str, ...] = ()  # of train_anonymizer.py, for short clips
    utility_arch: str = ""  # f_T (Table 10); empty: that of init_utility's preset
    miniature_utility_arch: str = ""  # its frames are too small for the paper's networks
    miniature_label: str = ""  # where `label` would not be true there
    control: bool = False  # shown to explain the other rows; not a row of the paper
    attackers: tuple[Attacker, ...] = (PLAIN_ATTACKER,)  # the strongest one's result counts

    def attackers_in(self, preset: str, controls: bool = False) -> tuple[Attacker, ...]:
        """In the miniature all start from raw images, fresh ones being weaker there at any length;
        else each does both. `controls`: also those of `--table controls`."""
        attackers = self.attackers + (CONTROL_ATTACKERS.get(self.name, ()) if controls else ())
        if preset == "miniature":
            return tuple(replace(attacker, from_raw=True) for attacker in attackers)
        started = (
            replace(a, suffix=f"{a.suffix}_from_raw", label=f"{a.label}, from raw", from_raw=True)
            for a in attackers
        )
        return (*attackers, *started)

    def label_in(self, preset: str) -> str:
        """The label in the tables of a preset."""
        return (self.miniature_label if preset == "miniature" else "") or self.label


NARROW = "_ted_spad_plus"
"""Suffix of the presets of TeD-SPAD+; init_anonymizer's makes f_A narrow."""
MOSAICS = (2, 3, 4, 6, 8, 12)
"""Pixels to one, of the unlearned curve."""

_ROWS = (
    Method("raw", "Raw", "given"),
    Method("downsample2x", "Downsample-2x", "given"),
    Method("downsample4x", "Downsample-4x", "given"),
    Method("blur", "Obfuscation: blurring", "given"),
    Method("blacken", "Obfuscation: blackening", "given"),
    Method("spact", "SPAct (ω = 0)", "trained", "_spact"),
    Method("ted_spad", "TeD-SPAD", "trained"),
    Method("ted_spad_plus", "TeD-SPAD+ (ours)", "trained", NARROW,
           initialisation=NARROW, attackers=(PLAIN_ATTACKER, AVERAGING_ATTACKER)),
    Method("reconstruction", "Reconstruction only", "reconstruction", control=True),
    Method("mosaic4_grey_noise0.05", "Unlearned: grey, 1/4, noise as TeD-SPAD+", "given",
           control=True, attackers=(PLAIN_ATTACKER, AVERAGING_ATTACKER)),
)  # fmt: skip

_FURTHER_CONTROLS = (
    Method("narrow_reconstruction", "Narrow f_A, reconstruction only", "reconstruction",
           initialisation=NARROW, control=True),
    Method("narrow_spact", "Narrow f_A, SPAct without distillation", "trained", "_spact",
           initialisation=NARROW, control=True),
    Method("full_width", "TeD-SPAD+ at full width: triplet and distillation", "trained", NARROW,
           control=True),
    *(Method(f"mosaic{k}{grey}", f"Unlearned: {'grey' if grey else 'colour'}, 1/{k}", "given",
             control=True) for grey in ("_grey", "") for k in MOSAICS),
)  # fmt: skip


def _variant(name: str, label: str, **changes) -> Method:
    """TeD-SPAD with the preset of its own that train_anonymizer.py has for this row."""
    return Method(name, label, "trained", f"_{name}", **changes)


def _distance(paper: str, here: str, label_here: str) -> Method:
    """A row of Table 6. Clips of the miniature last 30 to 36 frames; two network clips take 30."""
    return _variant(
        f"distance_{paper}", f"clip distance {paper}",
        miniature_options=("--negative_distance", here),
        miniature_label=f"{label_here} (paper: {paper})",
    )  # fmt: skip


_ABLATIONS = (
    *(_variant(f"invariance_{w}", f"CE + L_I, weight {w}") for w in ("0.1", "0.5", "1", "2")),
    _variant("lltc", "CE + LLTC"),
    *(_variant(f"omega_{omega}", f"ω = {omega}") for omega in ("0.01", "1", "10")),
    *(_variant(f"margin_{margin}", f"μ = {margin}") for margin in ("0.5", "2")),
    _distance("8", "1", "clip distance 1"),
    _distance("32", "4", "clip distance 4, less in clips below 33 frames"),
    Method("mvitv2", "f_T: MViTv2, 768-d", "trained",
           utility_arch="mvitv2", miniature_utility_arch="small_wide",
           miniature_label="f_T: small_wide, 128-d (paper: MViTv2, 768-d)"),
    Method("r3d_18", "f_T: R3D-18, 512-d", "trained",
           utility_arch="r3d_18", miniature_utility_arch="small_narrow",
           miniature_label="f_T: small_narrow, 32-d (paper: R3D-18, 512-d)"),
)  # fmt: skip

METHODS = {method.name: method for method in (*_ROWS, *_FURTHER_CONTROLS, *_ABLATIONS)}
TABLE_8 = tuple(m.name for m in _ROWS if not m.control)
CONTROLS = tuple(m.name for m in _ROWS if m.control)

DATASETS = ("ucf_crime", "xd_violence", "shanghaitech")

ABLATION_TABLES = {
    "2": ("spact", "ted_spad", "invariance_1"), "3": ("spact", "lltc", "ted_spad"),
    "4": ("spact", "omega_0.01", "ted_spad", "omega_1", "omega_10"),
    "5": ("margin_0.5", "ted_spad", "margin_2"), "6": ("ted_spad", "distance_8", "distance_32"),
    "9": ("spact", "invariance_0.1", "invariance_0.5", "invariance_1", "invariance_2"),
    "10": ("ted_spad", "mvitv2", "r3d_18"),
}  # fmt: skip
"""Table number -> its rows, by method name. All of them report VISPR cMAP and UCF-Crime AUC."""

CONTROL_TABLE = (
    "raw",
    "spact",
    "ted_spad",
    "ted_spad_plus",
    *CONTROLS,
    *(m.name for m in _FURTHER_CONTROLS),
)
"""Rows of `--table controls`, by method name: what learned nothing, or lacks a part of a method."""
UNLEARNED = tuple(m.name for m in METHODS.values() if m.name.startswith(("downsample", "mosaic")))
"""Rows whose frames lose detail in a fixed way, everywhere: the unlearned curve."""
LEARNED = ("spact", "ted_spad", "ted_spad_plus")
"""Rows that are compared with that curve."""
CONTROL_ATTACKERS = {
    "ted_spad_plus": (NOISE_FREE_ATTACKER, INVERTING_ATTACKER), "ted_spad": (INVERTING_ATTACKER,),
    "spact": (INVERTING_ATTACKER,), "mosaic4_grey_noise0.05": (NOISE_FREE_ATTACKER,),
}  # fmt: skip
"""Method -> attackers that `--table controls` adds."""

TABLE_1 = ("raw", "spact", "ted_spad")
"""Rows of the feature-level leakage, by method name."""

FEATURE_UTILITY_IN_MINIATURE = "small_still"
"""f_T of Table 1 in the miniature: the usual one looks at motion; still clips have none."""

TABLES = ("8", "1", *ABLATION_TABLES, "controls")


def chosen_tables(table: str) -> tuple[str, ...]:
    """`8`, another of TABLES or `all` (the paper's) -> the tables to fill."""
    if table not in (*TABLES, "all"):
        raise UserError(f"--table {table}: the tables are: {', '.join(TABLES)} and all")
    return TABLES[:-1] if table == "all" else (table,)


def chosen_methods(asked: Iterable[str], tables: Iterable[str], controls: bool) -> list[str]:
    """The rows to run; raw is always among them, since every other row is compared with it.

    Args:
        asked: names of rows; empty: all of the tables.
        controls: whether Table 8 comes with its controls.
    """
    names = ["raw", *asked]
    if unknown := [name for name in names if name not in METHODS]:
        known = ", ".join(METHODS)
        raise UserError(f"--methods {' '.join(unknown)}: unknown; the methods are: {known}")
    if not asked:
        for table in tables:  # Table 1 has attacks of its own only
            rows = {"8": TABLE_8, "controls": CONTROL_TABLE} | ABLATION_TABLES
            names += rows.get(table, ())
        if controls and "8" in tables:
            names += CONTROLS
    return list(dict.fromkeys(names))
