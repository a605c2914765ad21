"""What every surveillance data set comes down to: named, labelled videos; events in test videos."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aux_code.datasets.lists import some_of
from aux_code.errors import UserError

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")

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
    """

    name: str
    path: Path
    split: str
    label: int
    category: str
    events: Events = ()


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
    def missing(self) -> list[SurveillanceVideo]:
        """Listed videos whose file or folder is not there."""
        return [video for video in self.videos if not video.path.exists()]


def frame_labels(video: SurveillanceVideo, n_frames: int) -> np.ndarray:
    """uint8 (n_frames,): 1 inside an event; events past the last frame are clipped (warning)."""
    labels = np.zeros(n_frames, np.uint8)
    for start, end in video.events:
        if end > n_frames:
            event = f"event {start}-{end} is clipped to the video's {n_frames} frames"
            log.warning("%s: %s", video.name, event)
        labels[start:end] = 1
    return labels


def video_stem(name: str) -> str:
    """File name without its ending, if that is one of a video: names hold dots of their own.

    Accents come out composed (NFC): file systems and annotations store them differently.
    """
    path = Path(unicodedata.normalize("NFC", name))
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def with_unique_names(videos: Sequence[SurveillanceVideo], root: Path) -> list[SurveillanceVideo]:
    """Videos that share a name get one made of their path; a UserError if one is listed twice."""
    counts = Counter(video.name for video in videos)
    names = (v.name if counts[v.name] == 1 else _path_name(v.path, root) for v in videos)
    unique = [replace(video, name=name) for video, name in zip(videos, names)]
    twice = [name for name, count in Counter(video.name for video in unique).items() if count > 1]
    if twice:
        problem = f"listed more than once: {', '.join(twice[:5])}"
        raise UserError(f"{root}: {problem}; keep each video once, in one list")
    return unique


def assemble(
    name: str, root: Path, videos: list[SurveillanceVideo], report: list[str], lists: list[Path]
) -> SurveillanceDataset:
    """Unique names, split into training and test; `lists` are the files that were read."""
    unique = with_unique_names(videos, root)
    renamed = [f"{new.name} ({old.name})" for old, new in zip(videos, unique) if old != new]
    what = "videos share their file's name with another, so their folders come in front"
    train, test = ([v for v in unique if v.split == split] for split in ("train", "test"))
    return SurveillanceDataset(name, root, train, test, report, some_of(what, renamed), lists)


def unlisted(kind: str, names: Iterable[str]) -> list[str]:
    """A report line on names in an annotation that are not in a list; none if there are none."""
    return some_of(f"{kind} belong to videos that are not listed", sorted(names))


def _path_name(path: Path, root: Path) -> str:
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return "__".join([*relative.parent.parts, video_stem(path.name)])
