"""Brings features, lists and annotations together: what a training run or an evaluation needs."""

import hashlib
import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from anomaly_detection_mgfn.feature_bags import (
    FeatureSource,
    check_anonymizer,
    load_segments,
    load_videos,
    open_feature_folder,
)
from anomaly_detection_mgfn.ground_truth import LabelledVideos, match_videos
from anomaly_detection_mgfn.mil_training import TrainingData, split_validation
from anomaly_detection_mgfn.params_mgfn import MgfnParams, dataset_label, feature_folder, made_of
from anomaly_detection_mgfn.published_features import match_lists, open_feature_lists
from aux_code.artefacts import Recipe
from aux_code.devices import precision_in_force

log = logging.getLogger(__name__)


def open_features(params: MgfnParams) -> FeatureSource:
    """The feature folder or the lists that the parameters name.

    Raises:
        UserError: no features, or of another anonymizer than --anonymizer.
    """
    if params.features_list:
        source = open_feature_lists(params)
    else:
        source = open_feature_folder(feature_folder(params))
    if params.anonymizer:
        check_anonymizer(source, params.anonymizer)
    return source


def recipe_of(params: MgfnParams, source: FeatureSource) -> Recipe:
    """`made_of`; with lists of features also names, bytes and first 64 KiB of the listed files."""
    recipe = made_of(params)
    if not params.features_list:
        return recipe
    digest = hashlib.sha256()
    for name, entry in source.entries.items():
        for path in (entry.path, *entry.more_crops):
            digest.update(f"{name} {path.name} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                digest.update(file.read(2**16))
    return replace(recipe, data={dataset_label(params.dataset): digest.hexdigest()})


def label_videos(params: MgfnParams, source: FeatureSource) -> LabelledVideos:
    """Labels and frames from the data set's annotations, or as published with lists of features."""
    if params.features_list:
        return match_lists(params, source)
    return match_videos(params.dataset, source, not params.eval_only, params.allow_missing)


def load_training_data(
    params: MgfnParams, source: FeatureSource, videos: LabelledVideos, device: torch.device
) -> TrainingData:
    """Reads every feature file once: training videos as segments, test videos whole."""
    labels = [int(video.label) for video in videos.train]
    categories = [video.category for video in videos.train]
    train, held_out = split_validation(labels, categories, params.validation_fraction, params.seed)
    counts = len(train), len(held_out), len(videos.test)
    log.info("%d training, %d validation, %d test videos", *counts)
    kinds = ([i for i in train if labels[i] == kind] for kind in (0, 1))
    normal, anomalous, validation = (
        load_bags(params, source, [videos.train[i].name for i in part], device) if part else None
        for part in (*kinds, held_out)
    )
    return TrainingData(
        normal,
        anomalous,
        validation,
        validation_labels=np.array([labels[i] for i in held_out]),
        test=load_videos(source, [truth.name for truth in videos.test], params.memory_limit_gib),
        truths=videos.test,
        by_precision=params.dataset == "xd_violence",
    )


def load_bags(
    params: MgfnParams, source: FeatureSource, names: list[str], device: torch.device
) -> Tensor:
    """The named videos as bags (V, n_crops, n_segments, F + 1) on the device.

    In bf16 where the training computes in it: half of the memory, and its first layer would round
    them anyway. On the CPU bags above the memory limit stay mapped, in float32.
    """
    bags = load_segments(source, names, params.n_segments, params.memory_limit_gib)
    in_bf16 = precision_in_force(params.precision, device) == "bf16"
    rounded = in_bf16 and not isinstance(bags, np.memmap)
    return torch.from_numpy(bags).to(device, torch.bfloat16 if rounded else torch.float32)
