"""What every surveillance data set comes down to: named, labelled videos; events in test videos."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aux_code.datasets.lists import refuse_all, some_of
from aux_code.datasets.media_files import VIDEO_SUFFIXES, name_choices, unique_names
from aux_code.errors import UserError

log = logging.getLogger(__name__)

MOST_PAST_THE_END = 32
"""Frames, of one feature: the official lists need it."""

NORMAL = "Normal"
ANOMALY = "Anomaly"

Events = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SurveillanceVideo:
    """One video of a surveillance data set.

    Attributes:
        name: unique, the stem of its feature file: the file's name without its ending, or, where
            two folders hold one name, the path below the root with `__` for each slash.
        path: video file or folder of frames; it may be absent where only features are used.
        split: train or test.
        label: 1 if the video holds an anomaly, else 0.
        category: kind of anomaly, "Normal", or "Anomaly" where kinds are unknown.
        events: anomalous stretches ((start, end), ...) in frames, 0-based, end exclusive; empty in
            training videos, whose annotation is the label alone.
        n_annotated: frames that the annotation is about, where it says so.
        problem: why its label or events cannot be used; empty: they can.
    """

    name: str
    path: Path
    split: str
    label: int
    category: str
    events: Events = ()
    n_annotated: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class SurveillanceDataset:
    """The lists of one data set.

    `report` names what does not match, such as annotations of unlisted videos; `notes` what is
    unusual and yet complete, such as videos of one name; `lists` are the files that were read.
    """

    name: str
    root: Path
    train: list[SurveillanceVideo]
    test: list[SurveillanceVideo]
    report: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)

    @property
    def videos(self) -> list[SurveillanceVideo]:
        """Training and test videos."""
        return [*self.train, *self.test]

    @property
    def problems(self) -> dict[str, str]:
        """Video -> why its annotation cannot be used."""
        return {video.name: video.problem for video in self.videos if video.problem}

    @property
    def missing(self) -> list[SurveillanceVideo]:
        """Listed videos whose file or folder is not there."""
        return [video for video in self.videos if not video.path.exists()]


def frame_labels(video: SurveillanceVideo, n_frames: int) -> np.ndarray:
    """uint8 (n_frames,): 1 inside an event. What lies up to a feature (32 frames) past the last
    frame is clipped, with a warning; a UserError if the annotation fits less, or not at all."""
    if problem := misfit(video, n_frames):
        raise UserError(f"{problem}; correct the annotation or get the whole video")
    for line in past_the_end(video, n_frames):
        log.warning("%s", line)
    labels = np.zeros(n_frames, np.uint8)
    for start, end in video.events:
        labels[start:end] = 1
    return labels


def past_the_end(video: SurveillanceVideo, n_frames: int) -> list[str]:
    """A line on each event that ends past the last frame, and on a mask of another length."""
    lines = [
        f"{video.name}: event {start}-{end} is clipped to the video's {n_frames} frames"
        for start, end in video.events
        if end > n_frames
    ]
    if video.n_annotated not in (None, n_frames):
        lines.append(f"{video.name}: {n_frames} frames, {video.n_annotated} values in its mask")
    return lines


def misfit(video: SurveillanceVideo, n_frames: int) -> str:
    """Why an annotation is of another video than this one of `n_frames`; empty if it fits."""
    n_values = n_frames if video.n_annotated is None else video.n_annotated
    late = [
        f"{s}-{e}" for s, e in video.events if s >= n_frames or e > n_frames + MOST_PAST_THE_END
    ]
    if late:
        return f"{video.name}: event {', '.join(late)} of a video of {n_frames} frames"
    if abs(n_values - n_frames) > MOST_PAST_THE_END:
        return f"{video.name}: a mask of {n_values} values, a video of {n_frames} frames"
    return ""


def video_stem(name: str) -> str:
    """File name without its ending, if that is one of a video: names hold dots of their own.

    Accents come out composed (NFC): file systems and annotations store them differently.
    """
    path = Path(unicodedata.normalize("NFC", name))
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def assemble(
    name: str, root: Path, videos: list[SurveillanceVideo], report: list[str], lists: list[Path]
) -> SurveillanceDataset:
    """Unique names, split into training and test; `lists` are the files that were read.

    Raises:
        UserError: a video is listed twice.
    """
    counts = Counter(os.path.abspath(video.path) for video in videos)
    read = ", ".join(str(path) for path in lists if path.suffix != ".npy")
    twice = [path for path, count in counts.items() if count > 1]
    refuse_all(f"videos are listed more than once in {read}", twice, "keep each once, in one list")
    names = unique_names([name_choices(v.path, root, v.name) for v in videos])
    unique = [replace(video, name=own) for video, own in zip(videos, names, strict=True)]
    renamed = [f"{new.name} ({old.name})" for old, new in zip(videos, unique) if old != new]
    what = "videos share their file's name with another, so their folders come in front"
    notes = some_of(what, renamed)
    train, test = ([v for v in unique if v.split == split] for split in ("train", "test"))
    calm = [v.name for v in test if v.label and not v.events and not v.problem]
    notes += some_of("anomalous test videos have no anomalous frame in their annotation", calm)
    return SurveillanceDataset(name, root, train, test, report, notes, lists)


def unlisted(kind: str, names: Iterable[str]) -> list[str]:
    """A report line on names in an annotation that are not in a list; none if there are none."""
    return some_of(f"{kind} belong to videos that are not listed", sorted(names))
