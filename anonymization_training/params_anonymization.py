"""Parameters of stage 1: the three initialisations and the minimax training, with presets as
instances; and what a result is made of."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aux_code import config
from aux_code.artefacts import Recipe, recipe
from aux_code.datasets.digest import dataset_digest
from aux_code.devices import choose_device, precision_in_force
from aux_code.errors import UserError
from aux_code.model_loaders import accepted_weights, require_size
from aux_code.models.obfuscation import OBFUSCATIONS
from aux_code.models.person_boxes import find_boxes_file
from aux_code.parameters import CommonParams, PersonBoxParams, by_content, check_ranges, free

Schedule = Literal["constant", "linear", "cosine", "plateau"]


@dataclass(frozen=True, kw_only=True)
class StageParams(CommonParams):
    """What all four scripts of the stage share."""

    size: int = 224
    """Height and width in pixels of the frames that the networks see (paper: 224)."""
    batch_videos: int = 8
    """Videos per batch, of all processes together under torchrun (paper and release: 8)."""
    batch_images: int = 12
    """Images per batch, of all processes together, with two views where used (release: 12)."""
    clip_length: int = 16
    """Frames per clip (paper: 16)."""
    stride: int = 2
    """Video frames from one frame of a clip to the next (paper: 2)."""
    augmentation: Literal["strong", "moderate"] = "strong"
    """Of clips and of both views of images (paper: strong: crop 0.6-1, erase, flip, colour)."""
    epochs: int = 100
    """Passes over the training videos, for init_privacy over the images (release: 100)."""
    max_steps: int = 0
    """Stop after this many optimisation steps; 0 runs all epochs (ours, for try-outs and tests)."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0 (ours; the release's is read by nothing)."""
    schedule: Schedule = "constant"
    """After the warm-up; plateau: a fifth after each epoch without a new lowest loss (release)."""
    final_learning_rate_factor: float = 0.0
    """Where linear and cosine end, as a share of the base learning rate (ours)."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = free("auto")
    """auto: autocast in bf16 where the device is fast in it, else fp32; tf32: a GPU's faster fp32;
    fp16 comes with a gradient scaler, which the release lacks. What is in force counts."""
    validation_fraction: float = 0.1
    """Share of the training videos, by group, that choose `best` and are not trained on (ours); 0:
    all are trained on, and the test list takes their place, named as such (paper)."""
    minutes_between_saves: float = free(5.0)
    """Least time between two saves of the state that --resume needs (ours)."""
    n_workers: int = free(4)
    """Processes that decode; 0 decodes in the training process (ours)."""
    cache_megabytes: int = free(0)
    """Memory for decoded videos and images of small sets; 0 decodes them every time (ours)."""
    max_unreadable_share: float = free(0.01)
    """Share of unreadable files above which the run stops (ours)."""

    def __post_init__(self) -> None:
        # Batch norm and NT-Xent need company; the rest would fail late and without saying why.
        least = {"batch_videos": 2, "batch_images": 2, "clip_length": 2, "size": 8}
        ones = ("stride", "frames_per_video", "validate_every")
        zeros = ("epochs", "max_steps", "warmup_steps", "n_workers", "cache_megabytes")
        zeros += ("settle_epochs", "negative_distance", "recompute_chunk", "probe_every")
        least |= dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0)
        own = {name: value for name, value in least.items() if hasattr(self, name)}
        check_ranges(self, at_least=own)
        for role in ("fa", "ft", "fb"):
            if arch := getattr(self, f"{role}_arch", ""):
                require_size(self.size, role, arch)
        if not 0 <= (value := self.validation_fraction) < 1:
            raise UserError(f"--validation_fraction must lie in [0, 1), not {value}")

    @property
    def chosen_on(self) -> str:
        """The videos that accuracies and the choice of an epoch are of: validation or test."""
        return "validation" if self.validation_fraction else "test"


@dataclass(frozen=True, kw_only=True)
class InitAnonymizerParams(StageParams):
    """L1 reconstruction: f_A starts as the identity (release: 1e-3, batch 32, <= 100 epochs)."""

    fa_arch: str = "unet"
    """Architecture of f_A (paper: unet, which has a sigmoid; release: unet++, which has none)."""
    init_weights: str = by_content("")
    """Weights to start from: a file, or resnet18 (torchvision's from ImageNet, for the encoder of
    unet++; release); empty or none: random (paper)."""
    output_channels: int = 3
    """3: colour; 1: grey, repeated to three channels (ours: the narrow output of ted_spad_plus)."""
    output_scale: float = 1.0
    """Resolution of f_A's output relative to its input, brought back by nearest pixels (ours)."""
    output_noise: float = 0.0
    """Standard deviation, of pixels in [0, 1], of the noise on every released frame (ours)."""
    learning_rate: float = 1e-3
    """Adam (release: 1e-3)."""
    schedule: Schedule = "plateau"
    """Release: divided by 5 on stagnation."""
    frames_per_video: int = 2
    """Frames drawn from each video of a batch (ours)."""
    batch_images: int = 16
    """Images per batch; 8 videos x 2 frames + 16 images = the release's batch of 32."""


@dataclass(frozen=True, kw_only=True)
class InitUtilityParams(PersonBoxParams, StageParams):
    """Action recognition on raw or anonymized UCF101: f_T's start, and f_T of the other methods."""

    ft_arch: str = "largei3d"
    """Architecture of the utility network f_T (paper: I3D with ResNet-50)."""
    anonymizer: str = by_content("raw")
    """Of clips before f_T: raw, downsample2x or 4x, blur, blacken, mosaicK[_grey][_noiseS] (K x K
    pixels to one) or a checkpoint."""
    init_weights: str = by_content("")
    """Weights to start from (paper, release: Kinetics-400): a file, or r3d_18 or mvitv2
    (torchvision's); none: random. Empty: random, but for paper and release an error."""
    learning_rate: float = 1e-4
    """Adam (paper: 1e-4)."""
    epochs: int = 0
    """Passes over the training videos (paper, release: none, Kinetics weights go into the minimax
    as they are; ours: 30)."""
    schedule: Schedule = "cosine"
    """Ours."""
    clips_per_video: Literal[1, 3] = 1
    """Clips of each video of a batch: one (paper), or anchor, positive and negative, as many as f_T
    sees in the minimax with the triplet (ours, in the miniature's rows)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateUtilityParams(PersonBoxParams, CommonParams):
    """The accuracy of an f_T on UCF101's test list 1."""

    checkpoint: str = by_content("")
    """File with the f_T: a checkpoint of this stage or a published one."""
    anonymizer: str = by_content("raw")
    """What clips pass before f_T: raw, downsample2x or 4x, blur, blacken or a checkpoint."""
    size: int = 224
    """Height and width in pixels of the frames that f_T sees (paper: 224)."""
    clip_length: int = 16
    """Frames per clip (paper: 16)."""
    stride: int = 2
    """Video frames from one frame of a clip to the next (paper: 2)."""

    def __post_init__(self) -> None:
        check_ranges(self, at_least={"size": 8, "clip_length": 2, "stride": 1})


@dataclass(frozen=True, kw_only=True)
class InitPrivacyParams(StageParams):
    """NT-Xent on two views of VISPR images without labels: f_B's start (the release has none)."""

    fb_arch: str = "r50"
    """Architecture of the privacy network f_B (paper: ResNet-50)."""
    init_weights: str = by_content("")
    """Weights to start from (paper: SimCLR on ImageNet; release: a file): a file, or resnet50
    (torchvision's, by labels); none: random. Empty: random, but for paper and release an error."""
    epochs: int = 0
    """Passes over the training images (paper: none, the weights go into the minimax as they are;
    ours: 100)."""
    batch_images: int = 64
    """Images per batch, two views each (ours)."""
    learning_rate: float = 1e-4
    """Adam (paper: 1e-4)."""
    temperature: float = 0.1
    """NT-Xent temperature (release: 0.1)."""
    schedule: Schedule = "cosine"
    """Ours."""


@dataclass(frozen=True, kw_only=True)
class TrainAnonymizerParams(StageParams):
    """The minimax. `ours` is TeD-SPAD+, the others without a suffix are TeD-SPAD, `_spact` is
    omega = 0 without the triplet."""

    init_fa: str = by_content("")
    """Checkpoint of init_anonymizer; empty: where the script of the same preset writes it."""
    init_ft: str = by_content("")
    """Checkpoint of init_utility; empty: where the script of the same preset writes it."""
    init_fb: str = by_content("")
    """Checkpoint of init_privacy; empty: where the script of the same preset writes it."""
    utility_loss: Literal["ce", "triplet", "lltc", "invariance"] = "triplet"
    """Cross-entropy alone (SPAct), or with the triplet, LLTC or invariance (paper, Tables 2, 3)."""
    omega: float = 0.1
    """Weight of the term beside the cross-entropy (paper: 0.1)."""
    margin: float = 1.0
    """Margin mu of the triplet loss (paper: 1)."""
    negative_distance: int = 0
    """Frames from the anchor's last to the negative's first (Table 6); 0: any (paper)."""
    ce_on_all_clips: bool = False
    """Cross-entropy on anchor, positive and negative instead of the anchor alone (ours); with
    utility_loss ce these three are drawn for it."""
    distillation_weight: float = 0.0
    """Weight of 1 - cosine of f_T's features of anonymized, init_ft's of raw clips (ours)."""
    utility_weight: float = 1.0
    """w_T in step 1 (paper: 1; release: 0.7)."""
    budget_weight: float = 1.0
    """w_B in step 1 (paper and release: 1)."""
    budget_positives: Literal["views", "frames"] = "frames"
    """NT-Xent positives: two frames of a video (paper) or two views of an image (release)."""
    joint_views: bool = True
    """A video's clips pass f_T together, an image's views f_A and f_B together (ours); else one by
    one, each with batch statistics of its own (release)."""
    temperature: float = 0.1
    """NT-Xent temperature (release: 0.1)."""
    alternate: Literal["steps", "batches"] = "steps"
    """Both steps on each batch (paper, Algorithm 1), or one step per batch in turn (release)."""
    batch_norm: Literal["batch", "running"] = "batch"
    """Statistics of f_T and f_B in step 1 (release: running, which a strong f_A attacks)."""
    fa_batch_norm: Literal["running", "batch", "step1"] = "running"
    """Statistics of f_A, which is released with running ones: those of init_anonymizer, kept
    (ours); the batch's in both steps, or in step 1 (release), both with --recompute_chunk 0."""
    learning_rate: float = 1e-4
    """Adam, base value (paper: 1e-4)."""
    fa_learning_rate_factor: float = 1.0
    """On f_A's learning rate (paper: 1; release: 0.4)."""
    ft_learning_rate_factor: float = 1.0
    """On f_T's learning rate (paper and release: 1)."""
    fb_learning_rate_factor: float = 1.0
    """On f_B's learning rate (paper and release: 1)."""
    gradient_clip: float = 0.0
    """Largest norm of f_A's gradient (ours: 1); 0: not clipped (paper and release)."""
    recompute_chunk: int = 16
    """Frames per chunk of f_A that the backward pass computes again; 0 keeps all (ours)."""
    epochs: int = 80
    """Passes over the training videos (paper: 80; release: 100)."""
    settle_epochs: int = 0
    """Passes after the minimax, f_A frozen, for f_T alone (ours: 1, its statistics lag behind;
    paper and release: none)."""
    validate_every: int = 5
    """Epochs from one validation to the next (ours)."""
    probe_every: int = free(0)
    """Epochs between privacy probes, which read labels for TensorBoard alone (ours); 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fa_batch_norm != "running" and self.recompute_chunk:
            problem = f"--fa_batch_norm {self.fa_batch_norm} takes its statistics from the batch"
            remedy = "--recompute_chunk 0, or --fa_batch_norm running"
            raise UserError(f"{problem}, which --recompute_chunk cuts into pieces: give {remedy}")


SMALL = {
    "size": 48, "clip_length": 8, "augmentation": "moderate",
    "n_workers": 0, "cache_megabytes": 2000, "n_threads": 1,
}  # fmt: skip
"""The miniature's frames are small and few: decoded once; one thread, so that runs go abreast."""
NARROW = {"output_channels": 1, "output_scale": 1 / 4, "output_noise": 0.05}
"""What f_A of ted_spad_plus lets through."""

PAPER_FA = InitAnonymizerParams()
UNET_PLUS_PLUS = replace(PAPER_FA, fa_arch="unet++")
OURS_FA = replace(UNET_PLUS_PLUS, **NARROW)
MINIATURE_FA = InitAnonymizerParams(
    **SMALL, fa_arch="small", learning_rate=3e-3, schedule="cosine", epochs=3, batch_videos=16
)
INIT_ANONYMIZER = {
    "paper": PAPER_FA,
    # four epochs of warm-up, of 10,095 frames in batches of 32
    "release": replace(UNET_PLUS_PLUS, init_weights="resnet18", warmup_steps=1264),
    "ours": OURS_FA,
    "miniature": MINIATURE_FA,
    "paper_ted_spad_plus": OURS_FA,
    "miniature_ted_spad_plus": replace(MINIATURE_FA, **NARROW),
}

BRIEF = SMALL | {"learning_rate": 2e-3, "epochs": 6}
OURS_FT = InitUtilityParams(epochs=30)
MINIATURE_FT = InitUtilityParams(**BRIEF, ft_arch="small", warmup_steps=20, batch_videos=16)
INIT_UTILITY = {
    "paper": InitUtilityParams(),
    "release": replace(InitUtilityParams(), validation_fraction=0.0),
    "ours": OURS_FT,
    "miniature": MINIATURE_FT,
    "paper_ted_spad_plus": OURS_FT,
    # f_T of the rows that train no f_A: from the common start as many steps and clips as the others
    "paper_row": InitUtilityParams(epochs=80, schedule="constant"),
    "miniature_row": replace(
        MINIATURE_FT, warmup_steps=0, epochs=4, batch_videos=4, clips_per_video=3,
        learning_rate=1e-3, schedule="linear", final_learning_rate_factor=0.1,
    ),
}  # fmt: skip
OURS_FB = InitPrivacyParams(epochs=100)
INIT_PRIVACY = {
    "paper": InitPrivacyParams(),
    "release": InitPrivacyParams(),  # as paper
    "ours": OURS_FB,
    "miniature": InitPrivacyParams(**BRIEF, fb_arch="small", batch_images=48),
    "paper_ted_spad_plus": OURS_FB,
}

TEST = EvaluateUtilityParams()
EVALUATE_UTILITY = {
    "paper": TEST, "release": TEST, "ours": TEST,
    "miniature": replace(TEST, size=48, clip_length=8, n_threads=1),
}  # fmt: skip

PAPER = TrainAnonymizerParams()
STEADY = {"budget_positives": "views", "gradient_clip": 1.0, "settle_epochs": 1}
"""Of `ours` and of the miniature: the variety of VISPR, and steps that are bounded."""
SPACT = {"utility_loss": "ce", "omega": 0.0}
PLUS = {"distillation_weight": 1.0, "ce_on_all_clips": True}
OURS = replace(PAPER, **STEADY, **PLUS, epochs=79)  # with the one that settles, the paper's 80
MINIATURE = TrainAnonymizerParams(
    **SMALL, **STEADY, batch_videos=4, batch_images=16, epochs=3, learning_rate=1e-3,
    schedule="linear", final_learning_rate_factor=0.1, recompute_chunk=0, validate_every=3,
)  # fmt: skip
RELEASE = {
    "learning_rate": 1e-5, "fa_learning_rate_factor": 0.4, "epochs": 100, "alternate": "batches",
    "batch_norm": "running", "fa_batch_norm": "step1", "recompute_chunk": 0, "precision": "fp16",
    "utility_weight": 0.7, "budget_positives": "views", "joint_views": False,
    "validation_fraction": 0.0,
}  # fmt: skip
TRAIN_ANONYMIZER = {
    "paper": PAPER,
    "release": replace(PAPER, **RELEASE),
    "ours": OURS,
    "miniature": MINIATURE,
    "paper_spact": replace(PAPER, **SPACT),
    "paper_ted_spad_plus": OURS,
    "miniature_spact": replace(MINIATURE, **SPACT, ce_on_all_clips=True),  # clips as all rows
    "miniature_ted_spad_plus": replace(MINIATURE, **PLUS),
}
INVARIANCE = {"utility_loss": "invariance"}
ABLATIONS = {
    "lltc": {"utility_loss": "lltc"},  # Table 3
    **{f"invariance_{w}": INVARIANCE | {"omega": float(w)} for w in ("0.1", "0.5", "1", "2")},
    **{f"omega_{w}": {"omega": float(w)} for w in ("0.01", "1", "10")},  # Table 4
    **{f"margin_{m}": {"margin": float(m)} for m in ("0.5", "2")},  # Table 5
    **{f"distance_{n}": {"negative_distance": n} for n in (8, 32)},  # Table 6
}
"""Rows of the paper's Tables 2-6 and 9 -> what they change of TeD-SPAD; invariance: 2 and 9."""
TRAIN_ANONYMIZER |= {
    f"{scale}_{row}": replace(TRAIN_ANONYMIZER[scale], **changed)
    for scale in ("paper", "miniature")
    for row, changed in ABLATIONS.items()
}


def made_of(params: StageParams | EvaluateUtilityParams) -> Recipe:
    """What a result of the script with these parameters is made of: hashes its inputs, now.

    Raises:
        UserError: a checkpoint to start from, or a data set, is missing.
    """
    data, precision = {}, getattr(params, "precision", "fp32")
    if isinstance(params, TrainAnonymizerParams):
        inputs = initial_files(params)
    elif isinstance(params, EvaluateUtilityParams):
        inputs = {"checkpoint": params.checkpoint}
    else:
        inputs = {"init_weights": starting_weights(params) or ""}
    if anonymizer := getattr(params, "anonymizer", ""):
        inputs["anonymizer"] = anonymizer
        if getattr(OBFUSCATIONS.get(anonymizer), "requires_boxes", False):
            weights = params.detector_weights
            file = find_boxes_file(params.boxes, weights, config.UCF101_ROOT) or weights
            inputs["person_boxes"] = file or "fasterrcnn_resnet50_fpn, COCO_V1"
    if not isinstance(params, InitPrivacyParams):
        data["UCF101"] = dataset_digest("UCF101", config.UCF101_ROOT)
    if not anonymizer:
        data["VISPR"] = dataset_digest("VISPR", config.VISPR_ROOT)
    precision = precision_in_force(precision, choose_device(params.device))
    return recipe(params, inputs, data, {"precision": precision})


def starting_weights(
    params: InitAnonymizerParams | InitUtilityParams | InitPrivacyParams,
) -> str | None:
    """What --init_weights names; None: random weights.

    Raises:
        UserError: none are given where the paper and the release start from pre-trained ones.
    """
    given = params.init_weights
    if isinstance(params, InitUtilityParams):
        needed, taken = "f_T starts from Kinetics-400", accepted_weights("ft", params.ft_arch)
    elif isinstance(params, InitPrivacyParams):
        needed, taken = "f_B starts from SimCLR on ImageNet", accepted_weights("fb", params.fb_arch)
    is_strict = params.preset in ("paper", "release")
    if isinstance(params, InitAnonymizerParams) or given or not is_strict:
        return None if given in ("", "none") else given
    text = f"in the preset '{params.preset}' {needed}; give none for random weights, or a file or"
    raise UserError(f"--init_weights: {text} name; taken are {taken}")


def initial_files(params: TrainAnonymizerParams) -> dict[str, str]:
    """Role -> checkpoint to start from; by default that of the same preset's initialisation.

    Raises:
        UserError: a file is missing.
    """
    files = {}
    for role, given, script, name, presets in (
        ("init_fa", params.init_fa, "init_anonymizer", "fa_recon", INIT_ANONYMIZER),
        ("init_ft", params.init_ft, "init_utility", "ft_action", INIT_UTILITY),
        ("init_fb", params.init_fb, "init_privacy", "fb_ssl", INIT_PRIVACY),
    ):
        preset = params.preset if params.preset in presets else params.preset.split("_")[0]
        usual = config.SAVED_MODELS_ROOT / f"{script}_{preset}" / f"{name}.pth"
        files[role] = given or str(usual)
        if not Path(files[role]).is_file():
            missing = f"--{role}: {files[role]} does not exist"
            raise UserError(f"{missing}; run {script}.py first or name another file")
    return files
