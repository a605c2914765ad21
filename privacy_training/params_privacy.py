"""Parameters of stage 2, the privacy evaluation, and what an attack is made of."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aux_code import config
from aux_code.artefacts import Recipe, recipe
from aux_code.datasets.digest import dataset_digest
from aux_code.devices import choose_device, precision_in_force
from aux_code.errors import UserError
from aux_code.models.person_boxes import find_boxes_file
from aux_code.parameters import CommonParams, PersonBoxParams, by_content, check_ranges, free

Attacker = Literal[
    "r50", "r50_imagenet", "vit", "small", "small_vit", "linear_probe", "raw_trained", "inversion"
]
STRATEGIES = ("linear_probe", "raw_trained", "inversion")
"""Attackers that are a way to use `network`; every other attacker is a network itself."""
_AT_FEATURE_LEVEL = ("r50", "small", "raw_trained")


@dataclass(frozen=True, kw_only=True)
class PrivacyParams(PersonBoxParams, CommonParams):
    """How much a fresh attacker learns from what an anonymizer releases, all that it sees."""

    anonymizer: str = by_content("raw")
    """raw, downsample2x or 4x, blur, blacken, mosaicK[_grey][_noiseS], or a checkpoint with f_A."""
    level: Literal["image", "feature"] = "image"
    """image: attack f_A's output. feature: f_T's feature of it as a still clip (paper, Table 1)."""
    utility: Path | None = by_content(None)
    """Checkpoint with the f_T of --level feature."""
    attacker: Attacker = "r50"
    """A network that learns from released images (r50: the paper's; r50_imagenet: from ImageNet
    weights), or a way to attack with `network`: linear_probe (its features frozen), raw_trained
    (learns from raw images, no adaptation), inversion (a U-Net undoes f_A first)."""
    attackers: tuple[Attacker, ...] = free(())
    """Several, each a run RUN_ID_ATTACKER_sSEED; the strongest counts. None: `attacker`."""
    seeds: tuple[int, ...] = free(())
    """Several seeds in one command, reported as mean and deviation. None: `seed`."""
    network: Literal["r50", "r50_imagenet", "vit", "small", "small_vit"] = "r50"
    """Network of the attackers linear_probe, raw_trained and inversion (ours)."""
    attacker_weights: Path | None = by_content(None)
    """Checkpoint whose f_B's backbone the attacker starts from, e.g. init_privacy's (ours)."""
    probe_weights: Path | None = by_content(None)
    """The same for linear_probe alone: the others start afresh. None: attacker_weights."""
    imagenet_weights: Path | None = by_content(None)
    """File of torchvision's ResNet-50 for r50_imagenet; none: torchvision's cache or download."""
    attributes: tuple[str, ...] = ()
    """Names of VISPR attributes, or of a set: vispr1 (the paper's seven), vispr2 (the seven of
    SPAct) or all that the training images have; none: vispr1."""
    held_out: tuple[str, ...] = ()
    """Further attributes, by which nobody chose an anonymizer: the attacker learns them, too, but
    cMAP, F1 and the choice of the epoch leave them out; reported as held_out (ours)."""
    size: int = 224
    """Height and width of the images in pixels (paper)."""
    average_frames: int = 1
    """Independent releases of an image that the attacker averages against f_A's noise (ours); 0:
    the limit, f_A without its noise."""
    epochs: int = 0
    """Epochs at most; 0 takes image_epochs or feature_epochs (ours)."""
    image_epochs: int = 100
    """Epochs of --level image (paper)."""
    feature_epochs: int = 50
    """Epochs of --level feature (paper)."""
    max_steps: int = 0
    """Stop after this many optimisation steps, to try things out; 0: no such end (ours)."""
    batch_size: int = 32
    """Images per step (paper)."""
    image_learning_rate: float = 1e-3
    """Adam's learning rate of --level image (paper)."""
    feature_learning_rate: float = 1e-4
    """Adam's learning rate of --level feature (paper)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (ours); 0 is Adam."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """After the warm-up: divided by lr_divisor after each epoch whose train loss is no lower than
    the lowest before (plateau, release), to 0 as a cosine, or constant."""
    warmup_epochs: int = 5
    """Epochs over which the rate rises linearly (paper: a warm-up without a length; release: 4)."""
    lr_divisor: float = 5.0
    """Divisor of the plateau schedule (paper)."""
    min_learning_rate: float = 1e-12
    """The plateau schedule ends the training below this rate (paper)."""
    weight_averaging: float = 0.0
    """Decay per step of the running average of the weights, evaluated in their place (ours); 0:
    none. With a constant rate it shows at any epoch what a rate that falls to 0 shows last."""
    plateau_epochs: int = 0
    """End once so many epochs add at most plateau_gain to the validation cMAP (ours); 0: never."""
    plateau_gain: float = 0.01
    """Validation cMAP that an attacker at its plateau may still gain: over plateau_epochs, or where
    that is 0 over the last quarter of the training (ours)."""
    least_epochs: int = 0
    """Epochs before which no plateau ends the training: the first may find nothing (ours)."""
    evaluate_every: int = 1
    """Epochs between evaluations on validation and test (ours); the last is always evaluated."""
    augmentation: Literal["strong", "moderate"] = "strong"
    """Of the training images, before f_A, anew in every epoch (release: strong: crop 0.6-1, flip,
    colour, grey, erase; strengths ours)."""
    mlp_widths: tuple[int, ...] = (2048, 1028, 1028, 512)
    """Hidden widths of the MLP of --level feature (paper)."""
    standardise: bool = False
    """Give the attacker of --level image each pixel less its mean and over its deviation among the
    released training images (ours): an f_A may hide all it lets through in a few grey levels of a
    fixed pattern, which a network on plain pixels hardly finds. Not for linear_probe, whose
    features were learned on plain ones."""
    clip_frames: int = 16
    """Frames of the still clip of --level feature (paper)."""
    inversion_network: Literal["unet", "unet++", "small"] = "unet"
    """Network of the attacker inversion that undoes f_A (ours)."""
    inversion_epochs: int = 20
    """Epochs of that network (ours)."""
    inversion_learning_rate: float = 1e-3
    """Adam's learning rate of that network, falling to 0 as a cosine (ours)."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Of attacker and f_A; auto, as in stage 3: bf16 where the device is fast in it (ours)."""
    release_batch: int = 64
    """Images of validation and test per pass through f_A; bounds its memory (ours)."""
    n_workers: int = free(4)
    """Threads that decode images."""
    minutes_between_saves: float = free(0.0)
    """Least time between two saves of the state, in minutes; 0 saves after every epoch."""
    plots: bool = free(True)
    """Write bars per attribute and a grid of samples with predictions beside the result (PNG)."""
    compare: tuple[Path, ...] = free(())
    """Results files of other runs, such as the raw one's, that the bars show too."""
    n_bootstrap: int = 1000
    """Resamplings of the test images behind the 95 % interval (ours)."""
    max_unreadable_share: float = 0.01
    """Share of unreadable images above which the run fails (ours)."""

    def __post_init__(self) -> None:
        counts = "image_epochs feature_epochs evaluate_every mlp_widths "
        counts += "clip_frames inversion_epochs release_batch n_workers n_bootstrap"
        rates = ("image_learning_rate", "feature_learning_rate", "inversion_learning_rate")
        positive = "average_frames epochs max_steps warmup_epochs weight_decay "
        positive += "weight_averaging plateau_epochs plateau_gain least_epochs"
        # one image has no batch statistics; the networks halve the resolution three times
        least = {**dict.fromkeys(counts.split(), 1), **dict.fromkeys(positive.split(), 0)}
        least |= {"batch_size": 2, "size": 16 if self.network_name == "vit" else 8}
        above = {**dict.fromkeys(rates, 0), "lr_divisor": 1}
        check_ranges(self, at_least=least, above=above, below={"weight_averaging": 1})
        if self.level == "feature" and self.attacker not in _AT_FEATURE_LEVEL:
            remedy = "at --level feature leave out --attacker, or take raw_trained"
            raise UserError(f"--attacker {self.attacker} works on images; {remedy}")
        for name in ("attackers", "seeds", "attributes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"--{name} {' '.join(map(str, values))}: name each one once")

    @property
    def n_epochs(self) -> int:
        """Epochs of this run, at most."""
        return self.epochs or (self.image_epochs if self.level == "image" else self.feature_epochs)

    @property
    def learning_rate(self) -> float:
        """Base learning rate of this run."""
        return self.image_learning_rate if self.level == "image" else self.feature_learning_rate

    @property
    def counted(self) -> slice:
        """The columns of labels and predictions that count; held-out ones are the last."""
        return slice(-len(self.held_out) or None)

    @property
    def network_name(self) -> str:
        """The network behind the attacker at image level."""
        return self.network if self.attacker in STRATEGIES else self.attacker

    @property
    def standardises(self) -> bool:
        """Whether the attacker gets standardised pixels; features are standardised by its MLP."""
        return self.standardise and self.level == "image" and self.attacker != "linear_probe"

    @property
    def starting_weights(self) -> Path | None:
        """Checkpoint of which the attacker takes the backbone; None: random or ImageNet weights."""
        probe = self.probe_weights if self.attacker == "linear_probe" else None
        return probe or self.attacker_weights


def made_of(params: PrivacyParams) -> Recipe:
    """What one attack is made of: parameters, networks by content, VISPR, precision in force."""
    inputs = {
        "fa": params.anonymizer,
        "ft": params.utility,
        "attacker": params.starting_weights,
        "imagenet": params.imagenet_weights if params.network_name == "r50_imagenet" else None,
    }
    if params.anonymizer in ("blur", "blacken"):
        inputs["boxes"] = find_boxes_file(params.boxes, params.detector_weights, config.VISPR_ROOT)
        inputs["detector"] = params.detector_weights
    given = {role: path for role, path in inputs.items() if path is not None}
    data = {"VISPR": dataset_digest("VISPR", config.VISPR_ROOT)}
    precision = precision_in_force(params.precision, choose_device(params.device))
    return recipe(params, given, data, {"precision": precision})


MINIATURE = PrivacyParams(
    attacker="small", network="small", inversion_network="small", inversion_learning_rate=3e-3,
    size=48, image_epochs=40, feature_epochs=40, batch_size=64, image_learning_rate=4e-3,
    feature_learning_rate=1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=2,
    evaluate_every=4, mlp_widths=(256, 128, 128, 64), augmentation="moderate", plots=False,
    standardise=True,
    minutes_between_saves=0.5, n_workers=2, max_unreadable_share=0.05,
)  # fmt: skip

PRESETS = {
    "paper": PrivacyParams(),
    # the release's warm-up of four epochs ends at a fifth of the rate, and stays there
    "release": PrivacyParams(image_learning_rate=2e-4, warmup_epochs=4, precision="fp32"),
    "ours": PrivacyParams(standardise=True),
    "miniature": MINIATURE,
    "miniature_from_raw": replace(
        MINIATURE, image_epochs=64, image_learning_rate=2.5e-3, schedule="constant",
        warmup_epochs=1, weight_averaging=0.98, plateau_epochs=8, plateau_gain=0.01,
        least_epochs=20,
    ),
}  # fmt: skip
"""Preset name -> parameters; the first is the default. `miniature_from_raw` is for
--attacker_weights: an attacker that has learned from raw images first reads far more than a fresh
one of any length tried. It learns until the validation images show its plateau."""
