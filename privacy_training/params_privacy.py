"""Parameters of stage 2, the privacy evaluation. Presets: `paper` and `miniature`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aux_code.errors import UserError
from aux_code.parameters import CommonParams, PersonBoxParams, check_ranges

Attacker = Literal[
    "r50", "r50_imagenet", "vit", "small", "small_vit", "linear_probe", "raw_trained", "inversion"
]


@dataclass(frozen=True, kw_only=True)
class PrivacyParams(PersonBoxParams, CommonParams):
    """How much a fresh attacker learns from what an anonymizer lets through; it sees released
    pictures only."""

    anonymizer: str = "raw"
    """raw, downsample2x, downsample4x, blur, blacken, or a checkpoint with an f_A."""
    level: Literal["image", "feature"] = "image"
    """image: attack f_A's output. feature: attack f_T's feature of it, the image as a still clip
    (paper, Table 1)."""
    utility: Path | None = None
    """Checkpoint with the f_T of --level feature."""
    attacker: Attacker = "r50"
    """A network that learns from released pictures (r50: the paper's; r50_imagenet: from ImageNet
    weights), or a way to attack with `network`: linear_probe (its features frozen), raw_trained
    (learns from raw pictures, no adaptation), inversion (a U-Net undoes f_A first)."""
    attackers: tuple[Attacker, ...] = ()
    """Several attackers in one command, each a run RUN_ID_ATTACKER_sSEED; the strongest counts.
    None: `attacker`."""
    seeds: tuple[int, ...] = ()
    """Several seeds in one command, reported as mean and deviation. None: `seed`."""
    network: Literal["r50", "r50_imagenet", "vit", "small", "small_vit"] = "r50"
    """Network of the attackers linear_probe, raw_trained and inversion (ours)."""
    attacker_weights: Path | None = None
    """Checkpoint with an f_B whose backbone the attacker starts from, e.g. fb_ssl.pth of
    init_privacy (ours)."""
    probe_weights: Path | None = None
    """The same for linear_probe alone, so that the others of `attackers` start afresh; none:
    attacker_weights."""
    imagenet_weights: Path | None = None
    """Local file of torchvision's ResNet-50 for r50_imagenet; none: torchvision's own cache or
    download."""
    attributes: tuple[str, ...] = ()
    """Names of VISPR attributes, or of a set: vispr1 (the paper's seven), vispr2 (the seven of
    SPAct) or all that the training images have; none: vispr1."""
    size: int = 224
    """Height and width of the pictures in pixels (paper)."""
    average_frames: int = 1
    """Independent releases of the same still picture that the attacker averages; many remove an
    f_A's noise (ours)."""
    n_releases: int = 8
    """Independent releases of each training picture, used in turn by epochs, if f_A is random
    (ours)."""
    epochs: int = 0
    """Epochs at most; 0 takes image_epochs or feature_epochs."""
    image_epochs: int = 100
    """Epochs of --level image (paper)."""
    feature_epochs: int = 50
    """Epochs of --level feature (paper)."""
    max_steps: int = 0
    """Stop after this many optimisation steps, to try things out; 0: no such end."""
    batch_size: int = 32
    """Pictures per step (paper)."""
    image_learning_rate: float = 1e-3
    """Adam's learning rate of --level image (paper)."""
    feature_learning_rate: float = 1e-4
    """Adam's learning rate of --level feature (paper)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (ours); 0 is Adam."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """After the warm-up: divided by lr_divisor whenever the train loss did not fall (plateau,
    paper), to 0 as a cosine, or constant."""
    warmup_epochs: int = 5
    """Epochs over which the rate rises linearly (paper: a warm-up; its length is the release's)."""
    lr_divisor: float = 5.0
    """Divisor of the plateau schedule (paper)."""
    min_learning_rate: float = 1e-12
    """The plateau schedule ends the training below this rate (paper)."""
    weight_averaging: float = 0.0
    """Decay per step of the running average of the weights that is evaluated in their place (ours);
    0: none. With a constant rate it tells at any epoch what the attacker could read, as a rate that
    falls to 0 does at the end."""
    plateau_epochs: int = 0
    """End the training once so many epochs have added at most plateau_gain to the validation cMAP
    (ours); 0: never."""
    plateau_gain: float = 0.01
    """Validation cMAP that an attacker at its plateau may still gain: over plateau_epochs, or where
    that is 0 over the last quarter of the training (ours)."""
    least_epochs: int = 0
    """Epochs before which no plateau ends the training (ours): an attacker may find nothing at
    first."""
    evaluate_every: int = 1
    """Epochs between two evaluations on validation and test pictures; the last epoch is always
    evaluated."""
    shift: float = 0.08
    """Attacker's augmentation: largest shift, as a share of the picture (ours)."""
    zoom: float = 0.12
    """Attacker's augmentation: the picture's scale comes from [1 - zoom, 1 + zoom] (ours)."""
    jitter: float = 0.1
    """Attacker's augmentation: brightness and contrast factors come from [1 - jitter, 1 + jitter]
    (ours)."""
    mlp_widths: tuple[int, ...] = (2048, 1028, 1028, 512)
    """Hidden widths of the MLP of --level feature (paper)."""
    clip_frames: int = 16
    """Frames of the still clip of --level feature (paper)."""
    inversion_network: Literal["unet", "unet++", "small"] = "unet"
    """Network of the attacker inversion that undoes f_A (ours)."""
    inversion_epochs: int = 20
    """Epochs of that network (ours)."""
    inversion_learning_rate: float = 1e-3
    """Adam's learning rate of that network, falling to 0 as a cosine (ours)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the attacker's products; auto: bf16 where the device computes in it (GPUs,
    some CPUs)."""
    storage: Literal["float16", "float32"] = "float16"
    """Number format of the released pictures in memory: 18,000 of 224 pixels take 5.4 GB as
    float16."""
    release_batch: int = 64
    """Pictures per pass through f_A; bounds its memory."""
    n_workers: int = 4
    """Threads that decode images."""
    minutes_between_saves: float = 0.0
    """Least time between two saves of the state, in minutes; 0 saves after every epoch."""
    plots: bool = True
    """Write the bars per attribute and a grid of samples with predictions as PNG beside the
    result."""
    compare: tuple[Path, ...] = ()
    """Results files of other runs, such as the raw one's, that the bars show too."""
    n_bootstrap: int = 1000
    """Resamplings of the test pictures behind the 95 % interval (ours)."""
    max_unreadable_share: float = 0.01
    """Share of unreadable images above which the run fails (ours)."""

    def __post_init__(self) -> None:
        counts = (
            "average_frames",
            "n_releases",
            "image_epochs",
            "feature_epochs",
            "evaluate_every",
            "mlp_widths",
        )
        counts += ("clip_frames", "inversion_epochs", "release_batch", "n_workers", "n_bootstrap")
        rates = ("image_learning_rate", "feature_learning_rate", "inversion_learning_rate")
        # one picture has no batch statistics; the networks halve the resolution three times
        least = {**dict.fromkeys(counts, 1), "batch_size": 2, "size": 8}
        least |= dict.fromkeys(
            ("epochs", "max_steps", "warmup_epochs", "weight_decay", "zoom", "shift", "jitter"), 0
        )
        least |= dict.fromkeys(
            ("weight_averaging", "plateau_epochs", "plateau_gain", "least_epochs"), 0
        )
        above = {**dict.fromkeys(rates, 0), "lr_divisor": 1}
        check_ranges(self, at_least=least, above=above, below={"zoom": 1, "weight_averaging": 1})
        if self.level == "feature" and self.attacker in (
            "r50_imagenet",
            "vit",
            "small_vit",
            "linear_probe",
            "inversion",
        ):
            raise UserError(
                f"--attacker {self.attacker} works on pictures; the attacker of --level feature is an MLP on f_T's "
                "features: leave out --attacker, or take raw_trained"
            )
        for name in ("attackers", "seeds", "attributes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"--{name} {' '.join(map(str, values))}: name each one once")

    @property
    def n_epochs(self) -> int:
        """Epochs of this run."""
        return self.epochs or (self.image_epochs if self.level == "image" else self.feature_epochs)

    @property
    def learning_rate(self) -> float:
        """Base learning rate of this run."""
        return self.image_learning_rate if self.level == "image" else self.feature_learning_rate


MINIATURE = PrivacyParams(
    attacker="small",
    network="small",
    inversion_network="small",
    inversion_learning_rate=3e-3,
    size=48,
    image_epochs=40,
    feature_epochs=40,
    batch_size=64,
    image_learning_rate=4e-3,
    feature_learning_rate=1e-3,
    weight_decay=0.05,
    schedule="cosine",
    warmup_epochs=2,
    evaluate_every=4,
    mlp_widths=(256, 128, 128, 64),
    storage="float32",
    minutes_between_saves=0.5,
    plots=False,
    n_workers=2,
    max_unreadable_share=0.05,
)

PRESETS = {
    "paper": PrivacyParams(),
    "miniature": MINIATURE,
    "miniature_from_raw": replace(
        MINIATURE, image_epochs=64, image_learning_rate=2.5e-3, schedule="constant", warmup_epochs=1,
        weight_averaging=0.98, plateau_epochs=8, plateau_gain=0.01, least_epochs=20,
    ),
}  # fmt: skip
"""Preset name -> parameters; the first is the default. `miniature_from_raw` is for
--attacker_weights: an attacker that has learned from raw pictures first reads far more than a fresh
one of any length tried. It learns until the validation pictures show its plateau."""
