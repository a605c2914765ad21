"""What is to be extracted: videos, their names, how one knows them again, their shards."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from aux_code import config
from aux_code.datasets.image_files import IMAGE_SUFFIXES, frame_files, natural_key
from aux_code.datasets.surveillance import LOADERS, VIDEO_SUFFIXES, load_surveillance
from aux_code.datasets.video_index import open_video, video_stream
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
    """The videos of one data set. `root`: its folder; `dataset`: its name for the manifest."""

    dataset: str
    root: Path
    videos: tuple[VideoInput, ...]


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

    Raises UserError: nothing there, nothing usable in it, or two videos of one name.
    """
    path = Path(dataset)
    if dataset in LOADERS or (path.is_dir() and any((path / name).is_file() for name in _LISTS)):
        root = getattr(config, LOADERS[dataset][0]) if dataset in LOADERS else path
        videos = tuple(VideoInput(v.name, Path(v.path)) for v in load_surveillance(dataset).videos)
        name = dataset if dataset in LOADERS else root.resolve().name
        return VideoInputs(name, root, _refuse_same_names(videos))
    if not path.exists():
        names = ", ".join(LOADERS)
        raise UserError(f"--dataset {dataset}: none of {names}, no folder, file or .txt list")
    if path.is_dir():
        name, root, files = path.resolve().name, path, _files_below(path)
    else:
        is_list = path.suffix.lower() == ".txt"
        name, root, files = path.stem, path.parent, _listed_files(path) if is_list else [path]
    if not files:
        endings = " ".join(VIDEO_SUFFIXES)
        raise UserError(f"--dataset {dataset}: no video in it; known endings: {endings}")
    return VideoInputs(name, root, _refuse_same_names(_named(files, root)))


def _listed_files(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--dataset {path}: not a list of paths in UTF-8 ({error})") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def _files_below(folder: Path) -> list[Path]:
    """Video files and folders of images at any depth; images beside a video are not its frames."""
    below = [path for path in folder.rglob("*") if path.is_file()]
    found = [path for path in below if path.suffix.lower() in VIDEO_SUFFIXES]
    frame_folders = {path.parent for path in below if path.suffix.lower() in IMAGE_SUFFIXES}
    frame_folders -= {path.parent for path in found}
    found += [path for path in frame_folders if path != folder or not found]
    return sorted(found, key=lambda path: natural_key(str(path)))


def _named(files: list[Path], root: Path) -> tuple[VideoInput, ...]:
    """The first unique of: stem, path below `root` (`__` for slashes), that with its ending."""
    choices = []
    for path in files:
        stem = root.resolve().name if path == root else path.name if path.is_dir() else path.stem
        full, top = path.resolve(), root.resolve()
        folders = full.relative_to(top).parent.parts if full.is_relative_to(top) else ()
        below = "__".join([*folders, stem])
        choices.append((stem, below, below + path.suffix))
    counts = [Counter(names) for names in zip(*choices)]
    inputs = []
    for path, names in zip(files, choices):
        unique = (name for name, count in zip(names, counts) if count[name] == 1)
        inputs.append(VideoInput(next(unique, names[-1]), path))
    return tuple(inputs)


def _refuse_same_names(videos: tuple[VideoInput, ...]) -> tuple[VideoInput, ...]:
    """Two videos of one name would write one file."""
    first: dict[str, Path] = {}
    for video in videos:
        if video.name in first:
            both = f"{first[video.name]} and {video.path} would both be written as {video.name}.npy"
            remedy = (
                "list each video once, rename one, or extract them in two calls with two --output"
            )
            raise UserError(f"{both}; {remedy}")
        first[video.name] = video.path
    return videos


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
