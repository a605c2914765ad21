"""Parameters of stage 4: anomaly detection with MGFN on the features of stage 3."""

from dataclasses import dataclass, replace
from typing import Literal

from aux_code.parameters import CommonParams, PersonBoxParams, check_ranges


@dataclass(frozen=True, kw_only=True)
class MgfnParams(PersonBoxParams, CommonParams):
    """What main.py takes."""

    dataset: str = "ucf_crime"
    """ucf_crime, xd_violence, shanghaitech, or the path of a folder of own videos with train.csv
    and test.csv."""
    features: str = ""
    """Feature folder of stage 3 (with manifest.json); empty: FEATURES_ROOT/<dataset>/<extraction's
    run_id>."""
    features_list: tuple[str, ...] = ()
    """Instead of a feature folder, TRAIN.list TEST.list as published with RTFM and MGFN: one .npy
    path per line, below --features where it is not where the line says; needs --ground_truth."""
    ground_truth: str = ""
    """With --features_list: .npy of the test videos' frame labels, one after the other in the order
    of TEST.list."""
    frames_per_feature: int = 16
    """With --features_list: frames that one feature stands for (RTFM and MGFN: 16)."""
    anonymizer: str = ""
    """Anonymizer that the features must come from, name or path (empty: not checked); with --score
    the one to apply."""

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
    """Share of the segments that is left out of the choice of the top k, at random, in training
    (release)."""

    feature_noise: float = 0.0
    """Noise added to the segments in training, in standard deviations of each feature (ours; paper:
    none)."""

    loss: Literal["paper", "release"] = "paper"
    """paper: smoothness and sparsity per video; release: smoothness runs across video borders,
    sparsity is one joint norm of the batch."""
    smoothness_weight: float = 1.0
    """Weight of the smoothness of the anomalous videos' scores (paper 1, release 8e-4)."""
    sparsity_weight: float = 1.0
    """Weight of the sparsity of the anomalous videos' scores (paper 1, release 8e-3)."""
    contrastive_weight: float = 0.001
    """Weight of the magnitude-contrastive loss (paper and release)."""
    margin: float = 200.0
    """Margin between the magnitudes of normal and anomalous videos (release, for 1024 channels: an
    L1 norm)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of training and of the evaluation after an epoch; auto: bf16 where the device
    is fast in it (ours). The scores that are reported are computed in fp32."""

    validation_fraction: float = 0.2
    """Share of the training videos, of each class, that is held out to choose the epoch (ours)."""
    evaluate_every: int = 1
    """Epochs between two evaluations on validation and test videos (release: 1)."""
    minutes_between_saves: float = 5.0
    """Least time between two saved states from which --resume goes on (ours), minutes; 0 saves
    after every epoch."""
    clips_per_pass: int = 4096
    """Most clips, padding included, that are scored in one pass; one video is never split
    (ours)."""
    memory_limit_gib: float = 16.0
    """Features above this size are kept in a memory-mapped temporary file (ours), GiB."""

    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds, in runs <run_id>_s<seed>, and write mean and deviation
    (ours)."""

    eval_only: bool = False
    """Evaluate --checkpoint or --pretrained_ckpt on the test videos; nothing is trained."""
    checkpoint: str = ""
    """Checkpoint of this stage, to evaluate or to score a video with."""
    pretrained_ckpt: str = ""
    """Published MGFN state dict (no other content), to evaluate."""

    score: str = ""
    """A video, a folder of frames or a folder of videos to score with --checkpoint instead of
    training."""
    utility: str = ""
    """With --score: checkpoint of f_T; empty: the one that the training features came from."""
    output: str = ""
    """With --score: folder of the results; empty: RESULTS_ROOT/scores_<run_id>."""
    threshold: float = 0.5
    """Score from which a frame counts as anomalous, for intervals and the false-alarm rate (ours),
    in [0, 1]."""
    min_interval: float = 0.5
    """Shortest anomalous interval that is reported (ours), seconds."""
    anonymized_copy: bool = False
    """With --score: also write an anonymized copy of the video."""

    def __post_init__(self) -> None:
        counts = (
            "epochs",
            "batch_size",
            "n_segments",
            "top_k",
            "dims",
            "depths",
            "evaluate_every",
            "clips_per_pass",
        )
        counts += ("frames_per_feature",)
        check_ranges(
            self,
            at_least={
                **dict.fromkeys(counts, 1),
                "dropout": 0,
                "candidate_dropout": 0,
                "memory_limit_gib": 0,
            },
            above={"lr": 0},
            at_most={"top_k": self.n_segments},
            below={"dropout": 1, "candidate_dropout": 1},
        )


PAPER = MgfnParams()

RELEASE = replace(PAPER, loss="release", smoothness_weight=8e-4, sparsity_weight=8e-3)
"""The public code's settings, defects of its losses included (reference notes; README)."""

MINIATURE = replace(
    PAPER,
    epochs=40,
    lr=5e-4,
    lr_schedule="cosine",
    weight_decay=1e-2,
    n_segments=8,
    top_k=2,
    dims=(32, 32, 32),
    depths=(1, 1, 1),
    dropout=0.5,
    candidate_dropout=0.0,
    feature_noise=4.0,
    smoothness_weight=0.01,
    sparsity_weight=0.01,
    margin=12.5,
    validation_fraction=0.25,
    precision="fp32",
)
"""A small, strongly regularised network for the embedded miniature (ours). It has 50 to 100
training videos of 5 to 11 clips: without noise and with a larger learning rate they are learned by
heart in a few epochs. """

MINIATURE_RELEASE = replace(MINIATURE, loss="release", smoothness_weight=8e-4, sparsity_weight=8e-3)
"""The miniature with the loss of the public code."""

PRESETS = {
    "paper": PAPER,
    "release": RELEASE,
    "miniature": MINIATURE,
    "miniature_release": MINIATURE_RELEASE,
}
