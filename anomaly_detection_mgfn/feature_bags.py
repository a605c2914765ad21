"""Feature files of stage 3 as bags of segments for training and as whole videos for scoring."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aux_code.artefacts import sha256
from aux_code.checkpoints import read_json
from aux_code.errors import UserError
from aux_code.progress import progress

GEOMETRY = {"frames_per_clip": 16, "stride": 2, "frames_per_feature": 32}
"""What the training assumes of a feature (paper 3.4): 16 frames, every second one, one feature per
32 frames."""

_MANIFEST_TABLES = ("videos", "failed", "anonymizer", "utility")


def segment_borders(n_clips: int, n_segments: int) -> np.ndarray:
    """Borders of the segments, (n_segments + 1,): linspace(0, n_clips), truncated to integers
    (release)."""
    return np.linspace(0, n_clips, n_segments + 1).astype(np.int64)


def segment_features(features: np.ndarray, n_segments: int) -> np.ndarray:
    """Averages a video's clip features to a fixed number of segments.

    A segment without a clip of its own (videos of fewer clips than segments) takes the clip at its
    border. The release takes the first clip of each segment instead of the mean.

    Args:
        features: (n, F) or (n, n_crops, F), n >= 1.
        n_segments: number of segments S.

    Returns:
        (S, F) or (S, n_crops, F) float32.

    Raises:
        ValueError: there is no clip.
    """
    if len(features) == 0:
        raise ValueError("a video without clips has no segments")
    borders = segment_borders(len(features), n_segments)
    sums = np.add.reduceat(np.asarray(features, dtype=np.float32), borders[:-1], axis=0)
    counts = np.maximum(np.diff(borders), 1).astype(np.float32)
    return sums / counts.reshape(-1, *[1] * (features.ndim - 1))


def append_magnitude(features: np.ndarray) -> np.ndarray:
    """Appends the L2 norm over the last axis: (..., F) -> (..., F + 1), as MGFN takes its input."""
    return np.concatenate(
        [features, np.linalg.norm(features, axis=-1, keepdims=True)], axis=-1, dtype=np.float32
    )


@dataclass(frozen=True)
class FeatureEntry:
    """One video's features on the disk."""

    name: str
    path: Path
    n_clips: int
    n_frames: int
    more_crops: tuple[Path, ...] = ()
    """Files of the further crops, where each has its own."""


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from, with the checks that every file has to pass."""

    location: Path
    entries: dict[str, FeatureEntry]
    feature_dim: int
    n_crops: int
    frames_per_feature: int
    manifest: dict

    def read(self, name: str) -> np.ndarray:
        """One video's features, (n_clips, n_crops, F) float32.

        Raises:
            UserError: the file is missing or damaged, has another shape than the manifest says, or
                is not finite.
        """
        entry = self.entries[name]
        array = read_array(entry.path)
        if array.ndim == 2:
            array = array[:, None]
        if entry.more_crops:
            array = np.stack([array[:, 0], *map(read_array, entry.more_crops)], axis=1)
        expected = (entry.n_clips, self.n_crops, self.feature_dim)
        if array.shape != expected:
            raise UserError(
                f"{entry.path}: shape {array.shape}, but {self.location} promises (clips, crops, dimension) = "
                f"{expected}; extract this video again"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{entry.path}: NaN or infinite features; extract this video again")
        return array.astype(np.float32, copy=False)


def read_array(path: Path) -> np.ndarray:
    """A .npy of numbers, without unpickling.

    Raises:
        UserError: missing, damaged or not an array of floats, with the file's name.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; extract the features again") from error
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is damaged or not a .npy array ({error}); extract this video again"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UserError(f"{path}: not an array of floating-point numbers")
    return array


def map_array(path: Path) -> np.ndarray:
    """A .npy of numbers, mapped: only its header is read until values are asked for.

    Raises:
        UserError: missing or damaged, with the file's name.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is missing or not a .npy array ({error})") from error


def open_feature_folder(folder: Path | str) -> FeatureSource:
    """Reads the manifest of a feature folder; the files are read later.

    Raises:
        UserError: no manifest, another geometry than GEOMETRY, or an entry without its fields.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; run feature_extraction/dali_extraction.py or give --features DIR"
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(key, {}), dict) for key in _MANIFEST_TABLES
    ):
        raise UserError(
            f"{path} is not a manifest of dali_extraction.py; extract the features again"
        )
    for key, value in GEOMETRY.items():
        if manifest.get(key) != value:
            raise UserError(
                f"{path}: {key} is {manifest.get(key)}, but must be {value}; extract the features again"
            )
    entries = {}
    for name, video in manifest.get("videos", {}).items():
        try:
            entry = FeatureEntry(
                name, Path(folder) / video["file"], int(video["n_clips"]), int(video["n_frames"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: the entry of video '{name}' lacks or spoils {error}; extract it again"
            ) from error
        if entry.n_clips < 1 or entry.n_frames < 1:
            raise UserError(
                f"{path}: video '{name}' has {entry.n_clips} clips and {entry.n_frames} frames"
            )
        expected = -(-entry.n_frames // GEOMETRY["frames_per_feature"])
        if abs(entry.n_clips - expected) > 1:
            raise UserError(
                f"{path}: video '{name}' has {entry.n_clips} clips, but its {entry.n_frames} frames make {expected}; "
                "extract it again"
            )
        entries[name] = entry
    if not entries:
        raise UserError(f"{path} lists no video; extract the features first")
    dimension, n_crops = manifest.get("feature_dim"), manifest.get("n_crops", 1)
    if not all(isinstance(number, int) and number >= 1 for number in (dimension, n_crops)):
        raise UserError(
            f"{path}: feature_dim is {dimension} and n_crops {n_crops}; both must be at least 1"
        )
    return FeatureSource(
        path, entries, dimension, n_crops, GEOMETRY["frames_per_feature"], manifest
    )


def check_anonymizer(source: FeatureSource, anonymizer: str) -> None:
    """Refuses features of another anonymizer than the one named (a name, or a path whose content is
    compared).

    Raises:
        UserError: they differ.
    """
    recorded = source.manifest.get("anonymizer", {})
    if Path(anonymizer).is_file():
        same = recorded.get("sha256") == sha256(anonymizer)
    else:
        same = recorded.get("name") == anonymizer and not recorded.get("sha256")
    if not same:
        raise UserError(
            f"{source.location}: these features come from the anonymizer '{recorded.get('name')}', "
            f"not from --anonymizer {anonymizer}; give the matching --features folder"
        )


@dataclass(frozen=True)
class VideoFeatures:
    """Whole videos in one array: video i is rows offsets[i]:offsets[i + 1]."""

    names: list[str]
    data: np.ndarray
    """(all clips, n_crops, F + 1) float32, magnitude appended."""
    offsets: np.ndarray

    def lengths(self) -> np.ndarray:
        """Clips per video, (V,)."""
        return np.diff(self.offsets)

    def bag(self, index: int) -> np.ndarray:
        """Video `index` as (n_crops, n_clips, F + 1), a view."""
        return self.data[self.offsets[index] : self.offsets[index + 1]].swapaxes(0, 1)


def load_videos(source: FeatureSource, names: list[str], memory_limit_gib: float) -> VideoFeatures:
    """Reads whole videos once, into memory or, above the limit, into a memory-mapped temporary
    file."""
    offsets = np.cumsum([0, *(source.entries[name].n_clips for name in names)])
    shape = (int(offsets[-1]), source.n_crops, source.feature_dim + 1)
    data = _allocate(shape, memory_limit_gib)
    for i, name in enumerate(progress(names, "load videos")):
        data[offsets[i] : offsets[i + 1]] = append_magnitude(source.read(name))
    return VideoFeatures(list(names), data, offsets)


def load_segments(
    source: FeatureSource, names: list[str], n_segments: int, memory_limit_gib: float
) -> np.ndarray:
    """Reads and averages the training videos once: (V, n_crops, n_segments, F + 1) float32,
    magnitude appended."""
    bags = _allocate(
        (len(names), source.n_crops, n_segments, source.feature_dim + 1), memory_limit_gib
    )
    for i, name in enumerate(progress(names, "load segments")):
        bags[i] = append_magnitude(segment_features(source.read(name), n_segments)).swapaxes(0, 1)
    return bags


def _allocate(shape: tuple[int, ...], memory_limit_gib: float) -> np.ndarray:
    if 4 * np.prod(shape, dtype=np.float64) <= memory_limit_gib * 2**30:
        return np.empty(shape, dtype=np.float32)
    with tempfile.NamedTemporaryFile(prefix="features_", suffix=".tmp") as file:
        # The file has no name any more once this block ends; the map keeps it until the process is
        # gone.
        return np.memmap(file.name, dtype=np.float32, mode="w+", shape=shape)
