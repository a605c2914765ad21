"""Frame labels of the test videos, from the annotations and the manifest's frame counts."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anomaly_detection_mgfn.feature_bags import FeatureSource
from aux_code.datasets.lists import MAX_MISSING_SHARE, refuse_all, some_of
from aux_code.datasets.surveillance import frame_labels, load_surveillance
from aux_code.datasets.surveillance_types import SurveillanceDataset, SurveillanceVideo, misfit
from aux_code.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoTruth:
    """What is known of a test video."""

    name: str
    category: str
    label: int
    """0 normal, 1 anomalous."""
    n_frames: int
    frames_per_feature: int
    events: tuple[tuple[int, int], ...]
    """Anomalous intervals in frames, 0-based, end exclusive, clipped to the video."""
    positives: np.ndarray
    """(n_clips,) anomalous frames per clip; the last clip may be short."""
    negatives: np.ndarray
    """(n_clips,) other frames per clip."""


def truth_from_labels(
    name: str, category: str, label: int, labels: np.ndarray, frames_per_feature: int
) -> VideoTruth:
    """Counts the frames of each clip of a video whose frame labels are (n_frames,) in {0, 1}."""
    starts = np.arange(0, len(labels), frames_per_feature)
    positives = np.add.reduceat(labels.astype(np.int64), starts)
    sizes = np.diff(np.append(starts, len(labels)))
    steps = np.diff(np.concatenate([[0], labels.astype(np.int8), [0]]))
    begins, ends = (np.flatnonzero(steps == step).tolist() for step in (1, -1))
    events, length = tuple(zip(begins, ends, strict=True)), len(labels)
    counts = positives, sizes - positives
    return VideoTruth(name, category, label, length, frames_per_feature, events, *counts)


class LabelledVideos(NamedTuple):
    """The videos of a data set whose features exist."""

    train: list[SurveillanceVideo]
    test: list[VideoTruth]
    missing: dict[str, str]
    """Videos that extraction reported as failed: name -> reason. They count in no metric."""
    n_test_videos: int
    """Those that the list has, failed ones too."""


def match_videos(
    dataset: str, source: FeatureSource, training: bool = True, allow_missing: bool = False
) -> LabelledVideos:
    """Brings a data set's lists and annotations together with features, by name; without
    `training` its training videos are not needed, and `train` is empty.

    Raises:
        UserError: a listed video has neither features nor a recorded failure; more than 1 % of the
            test videos failed, unless `allow_missing`; only one class in training; no test video of
            one of the classes; annotations of videos of other lengths.
    """
    data = load_surveillance(dataset)
    failed = source.manifest.get("failed", {})
    listed = [*(data.train if training else ()), *data.test]
    without = [video.name for video in listed if video.name not in source.entries]
    absent = [name for name in without if name not in failed]
    what = f"of {len(listed)} videos of {dataset} have no features in {source.location}"
    refuse_all(what, absent, "run the extraction again (it goes on)")
    missing = {name: failed[name] for name in without}
    for name, reason in missing.items():
        log.warning("no features of %s: %s", name, reason)
    untested = [video.name for video in data.test if video.name in missing]
    if len(untested) > MAX_MISSING_SHARE * len(data.test) and not allow_missing:
        named = some_of(f"of {len(data.test)} test videos failed", untested)[0]
        remedy = "mend them and run the extraction again, or go on without them: --allow_missing"
        raise UserError(f"{source.location}: {named}; {remedy}")
    train, test = (
        [v for v in listed if v.split == split and v.name in source.entries]
        for split in ("train", "test")
    )
    kinds = {video.label for video in train}
    if training and kinds != {0, 1}:
        found = "no" if not kinds else "only normal" if kinds == {0} else "only anomalous"
        path = _list_file(data, "train")
        raise UserError(f"{path}: {found} training videos; training needs both kinds")
    misfits = [misfit(video, source.entries[video.name].n_frames) for video in test]
    what = "annotations do not fit their videos"
    refuse_all(what, [*filter(None, misfits)], "correct them, or get and extract the whole videos")
    truths = [_truth(video, source) for video in test]
    if not any(t.positives.any() for t in truths) or not any(t.negatives.any() for t in truths):
        path = _list_file(data, "test")
        raise UserError(f"{path}: the test videos need anomalous and normal frames; check them")
    return LabelledVideos(train, truths, missing, len(data.test))


def _list_file(data: SurveillanceDataset, split: str) -> Path:
    """The list of a split where there is one, else the data set's folder."""
    return next((path for path in data.lists if split in path.stem.lower()), data.root)


def _truth(video: SurveillanceVideo, source: FeatureSource) -> VideoTruth:
    labels = frame_labels(video, source.entries[video.name].n_frames)
    spacing = source.frames_per_feature
    return truth_from_labels(video.name, video.category, int(video.label), labels, spacing)
