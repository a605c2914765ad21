"""What is to be extracted: videos, their names, how one knows them again, their shards."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from aux_code.datasets.image_files import frame_files
from aux_code.datasets.lists import numbered_lines, refuse_all
from aux_code.datasets.media_files import (
    VIDEO_SUFFIXES,
    ListedFiles,
    media_below,
    name_choices,
    unique_names,
)
from aux_code.datasets.surveillance import LOADERS, list_surveillance
from aux_code.datasets.video_stream import open_video, video_stream
from aux_code.errors import UserError

_LISTS = ("train.csv", "test.csv")
_MIB = 2**20


@dataclass(frozen=True)
class VideoInput:
    """One video, folder of frames or still image; `name`: stem of its feature file, unique."""

    name: str
    path: Path


@dataclass(frozen=True)
class VideoInputs:
    """The videos of one data set. `root`: its folder; `dataset`: its name for the manifest;
    `unusable`: listed video -> why its annotation, and so the video, is of no use."""

    dataset: str
    root: Path
    videos: tuple[VideoInput, ...]
    unusable: dict[str, str] = field(default_factory=dict)


def source_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a video's source: {"path", "mtime" (seconds), "bytes", "sha256"}.

    Bytes and digest decide whether a source is the same. The digest is the SHA-256 of the first MiB
    followed by the last one (they overlap in small files); of a folder of frames, of its first
    frame's first and its last frame's last MiB, with the sum of all bytes and the latest mtime.
    Raises OSError or UnreadableMedia: it is not there.
    """
    files = frame_files(path) if path.is_dir() else [path]
    states = [file.stat() for file in files]
    n_bytes, mtime = sum(s.st_size for s in states), max(s.st_mtime for s in states)
    digest = _digest_of_ends(files[0], files[-1], n_bytes, mtime)
    return {"path": os.path.abspath(path), "mtime": mtime, "bytes": n_bytes, "sha256": digest}


@lru_cache(maxsize=100_000)
def _digest_of_ends(first: Path, last: Path, n_bytes: int, mtime: float) -> str:
    with open(first, "rb") as head, open(last, "rb") as tail:
        digest = hashlib.sha256(head.read(_MIB))
        tail.seek(max(0, tail.seek(0, os.SEEK_END) - _MIB))
        digest.update(tail.read(_MIB))
    return digest.hexdigest()


def source_or_none(path: Path) -> dict[str, Any] | None:
    """`source_of` a video; None where it is not there."""
    try:
        return source_of(path)
    except (OSError, UserError):
        return None


def list_inputs(dataset: str) -> VideoInputs:
    """The videos of a known data set, a folder, a .txt list of paths relative to it, or one file.

    A folder with train.csv or test.csv is an own data set; else every video file and every folder
    of images in it counts. A folder of nothing but images is one video, an image a clip of it.

    Raises UserError: nothing there, nothing usable in it, or a list that names a file twice.
    """
    path = Path(dataset)
    if dataset in LOADERS or (path.is_dir() and any((path / name).is_file() for name in _LISTS)):
        data = list_surveillance(dataset)
        videos = tuple(VideoInput(v.name, Path(v.path)) for v in data.videos if not v.problem)
        return VideoInputs(data.name, data.root, videos, data.problems)
    if not path.exists():
        names = ", ".join(LOADERS)
        raise UserError(f"--dataset {dataset}: none of {names}, no folder, file or .txt list")
    if path.is_dir():
        name, root, files = path.resolve().name, path, media_below(path)
    else:
        is_list = path.suffix.lower() == ".txt"
        name, root, files = path.stem, path.parent, _listed_files(path) if is_list else [path]
    if not files:
        endings = " ".join(VIDEO_SUFFIXES)
        raise UserError(f"--dataset {dataset}: no video in it; known endings: {endings}")
    return VideoInputs(name, root, _named(files, root))


def _listed_files(path: Path) -> list[Path]:
    listed, files, twice = ListedFiles(path.parent), {}, []
    for number, line in numbered_lines(path):
        file = listed.expected(line)
        if files.setdefault(os.path.abspath(file), file) is not file:
            twice.append(f"{file} (line {number})")
    refuse_all(f"videos are listed more than once in {path}", twice, "list each video once")
    return list(files.values())


def _named(files: list[Path], root: Path) -> tuple[VideoInput, ...]:
    choices = []
    for path in files:
        stem = root.resolve().name if path == root else path.name if path.is_dir() else path.stem
        choices.append(name_choices(path, root, stem))
    return tuple(map(VideoInput, unique_names(choices), files))


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, number of shards) from torchrun's environment, else from I/N; else a UserError."""
    if "WORLD_SIZE" in environment and "RANK" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard {text}: write I/N with I from 0 to N - 1, for example 0/4")
    return int(index), int(count)


def shard_of(videos: tuple[VideoInput, ...], index: int, count: int) -> list[VideoInput]:
    """This shard's videos: longest first, each to the shard with the fewest frames so far."""
    if count == 1:
        return list(videos)
    lengths = {video.name: announced_length(video.path) for video in videos}
    loads, mine = [0] * count, []
    for video in sorted(videos, key=lambda video: (-lengths[video.name], video.name)):
        target = loads.index(min(loads))
        loads[target] += lengths[video.name]
        if target == index:
            mine.append(video)
    return mine


def announced_length(path: Path) -> int:
    """Frames that a file announces or a folder holds, at least 1; for balancing only: files err."""
    try:
        if path.is_dir():
            return len(frame_files(path))
        with open_video(path) as container:
            stream = video_stream(container)
            seconds = container.duration / av.time_base if container.duration else 0.0
            return max(1, stream.frames or round(seconds * float(stream.average_rate or 25)))
    except (UserError, OSError, ValueError):
        return 1
