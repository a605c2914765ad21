"""Parameters of stage 4: anomaly detection with MGFN on the features of stage 3."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from anomaly_detection_mgfn.feature_bags import read_manifest
from aux_code import config
from aux_code.artefacts import Recipe, data_digest, recipe
from aux_code.datasets.surveillance import load_surveillance
from aux_code.devices import choose_device, precision_in_force
from aux_code.parameters import CommonParams, PersonBoxParams, by_content, check_ranges, free


@dataclass(frozen=True, kw_only=True)
class MgfnParams(PersonBoxParams, CommonParams):
    """What main.py takes."""

    dataset: str = by_content("ucf_crime")
    """ucf_crime, xd_violence, shanghaitech, or a folder of own videos (train.csv, test.csv)."""
    features: str = by_content("")
    """Feature folder of stage 3; empty: FEATURES_ROOT/<dataset>/<extraction's run_id>."""
    features_list: tuple[str, ...] = by_content(())
    """Instead of a feature folder, TRAIN.list TEST.list as published with RTFM and MGFN: one .npy
    path per line, below --features where it is not where the line says; needs --ground_truth."""
    ground_truth: str = by_content("")
    """With --features_list: .npy of the test videos' frame labels, in the order of TEST.list."""
    frames_per_feature: int = 16
    """With --features_list: frames that one feature stands for (releases of RTFM, MGFN: 16)."""
    anonymizer: str = free("")
    """Name or path that the features must come from (empty: any); with --score the one to apply."""

    epochs: int = 1000
    """Passes over the training videos (paper: at most 1000)."""
    batch_size: int = 16
    """Bags of each kind per step: 16 normal and 16 anomalous (release)."""
    lr: float = 1e-3
    """Learning rate of Adam (paper)."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """constant (release), or cosine from lr to 2 % of it over the epochs (ours)."""
    weight_decay: float = 5e-4
    """L2 penalty of Adam (release)."""
    n_segments: int = 32
    """Segments that a training video's clips are averaged to (paper)."""

    dims: tuple[int, int, int] = (64, 128, 1024)
    """Channels of the three parts of the network (paper)."""
    depths: tuple[int, int, int] = (3, 3, 2)
    """Blocks of the three parts (paper)."""
    dropout: float = 0.0
    """Share of the features that is dropped before the score in training (release: none)."""
    magnitude_ratio: float = 0.1
    """Weight of the feature magnitude that is added to the tokens (paper)."""
    top_k: int = 3
    """Segments of largest feature magnitude that stand for a video (paper)."""
    candidate_dropout: float = 0.7
    """Share of the segments left out of the choice, at random, in training (release)."""

    feature_noise: float = 0.0
    """Noise on the segments in training, in deviations of each feature (ours; paper: none)."""

    loss: Literal["paper", "release"] = "paper"
    """paper: smoothness, sparsity per video; release: across video borders, one norm per batch."""
    smoothness_weight: float = 1.0
    """Weight of the smoothness of the anomalous videos' scores (paper 1, release 8e-4)."""
    sparsity_weight: float = 1.0
    """Weight of the sparsity of the anomalous videos' scores (paper 1, release 8e-3)."""
    contrastive_weight: float = 0.001
    """Weight of the magnitude-contrastive loss (paper and release)."""
    margin: float = 200.0
    """Between magnitudes of normal and anomalous videos (release, 1024 channels: an L1 norm)."""

    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Of training and of the evaluation after an epoch; auto: bf16 where the device is fast in it
    (ours). The scores that are reported are computed in fp32."""

    validation_fraction: float = 0.2
    """Share of each class's training videos that is held out to choose the epoch (ours); 0: all are
    trained on, and the epoch is the last, or the best on the test videos (paper)."""
    evaluate_every: int = 1
    """Epochs between two evaluations on validation and test videos (release: 1)."""
    minutes_between_saves: float = free(5.0)
    """Least minutes between two saved states for --resume (ours); 0 saves after every epoch."""
    clips_per_pass: int = free(4096)
    """Most clips, padding included, scored in one pass; one video is never split (ours)."""
    memory_limit_gib: float = free(16.0)
    """Features above this size are kept in a memory-mapped temporary file (ours), GiB."""

    allow_missing: bool = free(False)
    """Train and evaluate although more than 1 % of the test videos failed in the extraction."""

    seeds: tuple[int, ...] = free(())
    """Train with each of these, in runs <run_id>_s<seed>, and write mean and deviation (ours)."""

    eval_only: bool = free(False)
    """Evaluate --checkpoint or --pretrained_ckpt on the test videos; nothing is trained."""
    checkpoint: str = by_content("")
    """Checkpoint of this stage, to evaluate or to score a video with."""
    pretrained_ckpt: str = by_content("")
    """Published MGFN state dict (no other content), to evaluate."""

    score: str = free("")
    """A video, a folder of frames or one of videos to score with --checkpoint, not to train."""
    utility: str = by_content("")
    """With --score: checkpoint of f_T; empty: the one that the training features came from."""
    output: str = free("")
    """With --score: folder of the results; empty: RESULTS_ROOT/scores_<run_id>."""
    threshold: float = 0.5
    """Score in [0, 1] from which a frame is anomalous: intervals, false-alarm rate (ours)."""
    min_interval: float = free(0.5)
    """Shortest anomalous interval that is reported (ours), seconds."""
    anonymized_copy: bool = free(False)
    """With --score: also write an anonymized copy of the video."""

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "n_segments", "top_k", "dims", "depths")
        counts += ("evaluate_every", "clips_per_pass", "frames_per_feature")
        shares = ("dropout", "candidate_dropout", "validation_fraction")
        check_ranges(
            self,
            at_least=dict.fromkeys(counts, 1) | dict.fromkeys((*shares, "memory_limit_gib"), 0),
            above={"lr": 0},
            at_most={"top_k": self.n_segments},
            below=dict.fromkeys(shares, 1),
        )


PAPER = MgfnParams()
"""An interpretation: the paper's weights 1, 1 multiply per-video means of smoothness and sparsity;
they may stand before terms that hold the release's 8e-4 and 8e-3."""

_RELEASE_LOSS = {"loss": "release", "smoothness_weight": 8e-4, "sparsity_weight": 8e-3}

RELEASE = replace(PAPER, **_RELEASE_LOSS, validation_fraction=0.0, precision="fp32")
"""The public code's settings, defects of its losses included (docs/settings.md)."""

MINIATURE = replace(
    PAPER, epochs=40, lr=5e-4, lr_schedule="cosine", weight_decay=1e-2, n_segments=8, top_k=2,
    dims=(32, 32, 32), depths=(1, 1, 1), dropout=0.5, candidate_dropout=0.0, feature_noise=4.0,
    smoothness_weight=0.01, sparsity_weight=0.01, margin=12.5, validation_fraction=0.25,
    precision="fp32",
)  # fmt: skip
"""A small, strongly regularised network for the embedded miniature (ours). It has 50 to 100
training videos of 4 to 8 clips: without noise and with a larger learning rate they are learned by
heart in a few epochs."""

PRESETS = {
    "paper": PAPER,
    "release": RELEASE,
    "ours": PAPER,
    "miniature": MINIATURE,
    "miniature_release": replace(MINIATURE, **_RELEASE_LOSS),
}


def dataset_label(dataset: str) -> str:
    """The data set's name in file names; of a folder of own videos its last part."""
    return Path(dataset).name or "own_videos"


def extraction_preset(params: MgfnParams) -> str:
    """The preset of stage 3 that belongs to one of this stage's."""
    return params.preset.split("_")[0]


def feature_folder(params: MgfnParams) -> Path:
    """--features, by default the folder of the same scale's extraction."""
    run_id = f"dali_extraction_{extraction_preset(params)}"
    default = config.FEATURES_ROOT / dataset_label(params.dataset) / run_id
    return Path(params.features) if params.features else default


def made_of(params: MgfnParams) -> Recipe:
    """What a training with these parameters is made of: features, labels, precision in force.

    Raises:
        UserError: no manifest, list or data set.
    """
    precision = precision_in_force(params.precision, choose_device(params.device))
    if params.features_list:  # the listed files are added by `stage_data.recipe_of`
        *train, test = params.features_list
        inputs = {"manifest": test, "ground_truth": params.ground_truth}
        inputs |= {"training_list": train[0]} if train else {}
        return recipe(params, inputs, in_force={"precision": precision})
    data = load_surveillance(params.dataset)
    lists = {dataset_label(params.dataset): data_digest(data.root, data.lists, [])}
    manifest = feature_folder(params) / "manifest.json"
    found = recipe(params, {"manifest": manifest}, lists, {"precision": precision})
    for role, name in (("anonymizer", "name"), ("utility", "path")):
        part = read_manifest(manifest).get(role, {})
        found.inputs[role] = {"path": part.get(name, ""), "sha256": part.get("sha256", "")}
    return found
