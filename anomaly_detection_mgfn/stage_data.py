"""Brings features, lists and annotations together: what a training run or an evaluation needs."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anomaly_detection_mgfn.feature_bags import (
    FeatureSource,
    VideoFeatures,
    check_anonymizer,
    load_segments,
    load_videos,
    open_feature_folder,
)
from anomaly_detection_mgfn.ground_truth import LabelledVideos, match_videos
from anomaly_detection_mgfn.mil_training import (
    HeldOut,
    TrainingBags,
    split_validation,
    trains_in_bf16,
)
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.published_features import match_lists, open_feature_lists
from aux_code import config
from aux_code.runs import Run

log = logging.getLogger(__name__)


def dataset_label(dataset: str) -> str:
    """The data set's name in file names; of a folder of own videos its last part."""
    return Path(dataset).name or "own_videos"


def extraction_preset(params: MgfnParams) -> str:
    """The preset of stage 3 that belongs to one of this stage's."""
    return "miniature" if params.preset.startswith("miniature") else "paper"


def open_features(params: MgfnParams) -> FeatureSource:
    """The feature folder that the parameters name, by default that of the same scale's
    extraction."""
    label = dataset_label(params.dataset)
    default = config.FEATURES_ROOT / label / f"dali_extraction_{extraction_preset(params)}"
    source = (
        open_feature_lists(params)
        if params.features_list
        else open_feature_folder(params.features or default)
    )
    if params.anonymizer:
        check_anonymizer(source, params.anonymizer)
    return source


def label_videos(params: MgfnParams, source: FeatureSource) -> LabelledVideos:
    """Labels and frames of the videos: from the data set's annotations, or as published with lists
    of features."""
    if params.features_list:
        return match_lists(params, source)
    return match_videos(params.dataset, source, training=not params.eval_only)


@dataclass(frozen=True)
class TrainingData:
    """All of a run's data, held in memory."""

    source: FeatureSource
    videos: LabelledVideos
    bags: TrainingBags
    held_out: HeldOut


def load_training_data(params: MgfnParams, source: FeatureSource, run: Run) -> TrainingData:
    """Reads every feature file once: training videos as segments, validation and test videos
    whole."""
    videos = label_videos(params, source)
    labels = [int(video.label) for video in videos.train]
    categories = [video.category for video in videos.train]
    split = split_validation(labels, categories, params.validation_fraction, params.seed)
    log.info(
        "%d training, %d validation, %d test videos",
        len(split.train),
        len(split.validation),
        len(videos.test),
    )

    kinds = ([videos.train[i].name for i in split.train if labels[i] == label] for label in (0, 1))
    held_out = HeldOut(
        validation=load_videos(
            source, [videos.train[i].name for i in split.validation], params.memory_limit_gib
        ),
        validation_labels=np.array([labels[i] for i in split.validation]),
        test=load_test_videos(params, source, videos),
        truths=videos.test,
        by_precision=params.dataset == "xd_violence",
    )
    return TrainingData(source, videos, load_bags(params, source, *kinds, run.device), held_out)


def load_bags(
    params: MgfnParams,
    source: FeatureSource,
    normal: list[str],
    anomalous: list[str],
    device: torch.device,
) -> TrainingBags:
    """Reads and averages the named training videos once.

    A training in bf16 gets its bags in bf16: half of the memory and of the time that batches take,
    and its first layer would round them anyway. Bags above the memory limit stay mapped, in
    float32.
    """
    bags = load_segments(source, [*normal, *anomalous], params.n_segments, params.memory_limit_gib)
    in_bf16 = trains_in_bf16(params, device) and not isinstance(bags, np.memmap)
    data = torch.from_numpy(bags).to(device, torch.bfloat16 if in_bf16 else torch.float32)
    return TrainingBags(data, len(normal))


def load_test_videos(
    params: MgfnParams, source: FeatureSource, videos: LabelledVideos
) -> VideoFeatures:
    """The test videos' features, whole."""
    return load_videos(source, [truth.name for truth in videos.test], params.memory_limit_gib)
