"""What is to be extracted: the videos of a data set or of a user's own, their names, their
distribution over shards."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av

from aux_code import config
from aux_code.datasets.image_files import IMAGE_SUFFIXES, natural_key
from aux_code.datasets.surveillance import LOADERS, VIDEO_SUFFIXES, load_surveillance
from aux_code.errors import UserError

_LISTS = ("train.csv", "test.csv")


@dataclass(frozen=True)
class VideoInput:
    """One video, folder of frames or still image.

    Attributes:
        name: stem of its feature file, unique in the data set.
        path: the file, or the folder of frames.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class VideoInputs:
    """The videos of one data set. `root`: its folder; `dataset`: its name as the manifest gives
    it."""

    dataset: str
    root: Path
    videos: tuple[VideoInput, ...]


def dataset_root(dataset: str) -> Path | None:
    """Folder of a data set that config.py knows; None for other names."""
    return getattr(config, LOADERS[dataset][0]) if dataset in LOADERS else None


def list_inputs(dataset: str) -> VideoInputs:
    """The videos of a known data set, of a folder, of a .txt list of paths (relative to the list),
    or one file alone.

    A folder with train.csv or test.csv is read as an own data set; otherwise every video file and
    every folder of images in it counts. A folder that holds nothing but images is one video; an
    image alone is a clip that repeats it.

    Raises:
        UserError: nothing there, nothing usable in it, or two inputs of one name.
    """
    root = dataset_root(dataset)
    path = Path(dataset)
    if root is not None or (path.is_dir() and any((path / name).is_file() for name in _LISTS)):
        return _from_surveillance(dataset, root or path)
    if not path.exists():
        raise UserError(
            f"--dataset {dataset}: neither one of {', '.join(LOADERS)} nor a folder, a file or a .txt list"
        )
    if path.is_file() and path.suffix.lower() == ".txt":
        root, files = path.parent, _listed_files(path)
    elif path.is_file():
        root, files = path.parent, [path]
    else:
        root, files = path, _files_below(path)
    if not files:
        raise UserError(
            f"--dataset {dataset}: no video in it; known endings: {' '.join(VIDEO_SUFFIXES)}"
        )
    return VideoInputs(
        path.stem if path.is_file() else path.resolve().name, root, _named(files, root)
    )


def _from_surveillance(dataset: str, root: Path) -> VideoInputs:
    loaded = load_surveillance(dataset)
    videos = [VideoInput(video.name, Path(video.path)) for video in loaded.videos]
    name = dataset if dataset_root(dataset) else root.resolve().name
    return VideoInputs(name, root, tuple(videos))


def _listed_files(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--dataset {path}: not a list of paths in UTF-8 text, one per line ({error})"
        ) from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def _files_below(folder: Path) -> list[Path]:
    """Video files and folders of images at any depth; images beside a video are its pictures, not
    frames."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    ]
    frame_folders = {
        path.parent for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
    }
    frame_folders -= {path.parent for path in found}
    found += [path for path in frame_folders if path != folder or not found]
    return sorted(found, key=lambda path: natural_key(str(path)))


def _named(files: list[Path], root: Path) -> tuple[VideoInput, ...]:
    """Names: the file's without its ending; where that is not unique its path below `root`, slashes
    as `__`; where even that is not, the path with the ending."""
    choices = [
        (_stem(path, root), _path_name(path, root), _path_name(path, root) + path.suffix)
        for path in files
    ]
    counts = [Counter(names) for names in zip(*choices)]
    inputs = []
    for path, names in zip(files, choices):
        unique = (name for name, count in zip(names, counts) if count[name] == 1)
        name = next(unique, None)
        if name is None:
            raise UserError(f"{root}: listed more than once: {path}; keep each video once")
        inputs.append(VideoInput(name, path))
    return tuple(inputs)


def _stem(path: Path, root: Path) -> str:
    return root.resolve().name if path == root else path.name if path.is_dir() else path.stem


def _path_name(path: Path, root: Path) -> str:
    relative = Path(_relative(path, root))
    return "__".join([*relative.parent.parts, _stem(path, root)])


def _relative(path: Path, root: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.name


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, number of shards) from torchrun's environment, else from I/N.

    Raises:
        UserError: not of the form I/N with 0 <= I < N.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard {text}: write I/N with I from 0 to N - 1, for example 0/4")
    return int(index), int(count)


def shard_of(videos: tuple[VideoInput, ...], index: int, count: int) -> list[VideoInput]:
    """This shard's videos: longest first, each to the shard with the fewest frames so far; equal on
    every machine."""
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
    """Number of frames that a file announces or a folder holds, at least 1; for balancing only,
    since files err."""
    if path.is_dir():
        return max(1, sum(1 for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES))
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            return max(
                1, stream.frames or round(_seconds(container) * float(stream.average_rate or 25))
            )
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        return 1


def _seconds(container: av.container.InputContainer) -> float:
    return container.duration / av.time_base if container.duration else 0.0
