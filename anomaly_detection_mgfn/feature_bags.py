"""Feature files of stage 3 as bags of segments for training and as whole videos for scoring."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aux_code.artefacts import sha256
from aux_code.checkpoints import read_json
from aux_code.datasets.lists import refuse_all
from aux_code.errors import UserError
from aux_code.progress import progress

AGAIN = "delete it and run dali_extraction.py again"

GEOMETRY = {"frames_per_clip": 16, "stride": 2, "frames_per_feature": 32}
"""What the training assumes of a feature (paper 3.4): 16 frames, every second one, per 32."""

FEATURE_KEYS = (*GEOMETRY, "crop", "size", "feature_dim", "n_crops", "anonymizer", "utility")
"""Manifest fields that a detector's checkpoint carries: it scores features that agree in them."""


def segment_features(features: np.ndarray, n_segments: int) -> np.ndarray:
    """Averages a video's clip features to a fixed number of segments.

    The borders are linspace(0, n), truncated to integers (release). A segment without a clip of its
    own, in a video of fewer clips than segments, takes the clip at its border. The release takes
    the first clip of each segment instead of the mean.

    Args:
        features: (n, F) or (n, n_crops, F), n >= 1 -> (S, F) or (S, n_crops, F) float32.
        n_segments: S.

    Raises:
        ValueError: there is no clip.
    """
    if len(features) == 0:
        raise ValueError("a video without clips has no segments")
    borders = np.linspace(0, len(features), n_segments + 1).astype(np.int64)
    sums = np.add.reduceat(np.asarray(features, dtype=np.float32), borders[:-1], axis=0)
    counts = np.maximum(np.diff(borders), 1).astype(np.float32)
    return sums / counts.reshape(-1, *[1] * (features.ndim - 1))


def append_magnitude(features: np.ndarray) -> np.ndarray:
    """Appends the L2 norm over the last axis: (..., F) -> (..., F + 1), as MGFN takes its input."""
    magnitude = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.concatenate([features, magnitude], axis=-1, dtype=np.float32)


@dataclass(frozen=True)
class FeatureEntry:
    """One video's features on the disk."""

    path: Path
    n_clips: int
    n_frames: int
    more_crops: tuple[Path, ...] = ()
    """Files of the further crops, where each has its own."""
    sha256: str = ""  # of the file; empty: stage 3 of an earlier version did not record it
    crops_first: bool = False
    """(n_crops, n_clips, F) on the disk."""


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from, with the checks that every file has to pass."""

    location: Path
    entries: dict[str, FeatureEntry]
    feature_dim: int
    n_crops: int
    frames_per_feature: int
    manifest: dict[str, Any]

    def read(self, name: str) -> np.ndarray:
        """One video's features, (n_clips, n_crops, F) float32.

        Raises:
            UserError: a file that is missing, damaged, not finite, or of another shape or content
                than the manifest says.
        """
        entry = self.entries[name]
        array = read_array(entry.path)
        if entry.sha256 and sha256(entry.path) != entry.sha256:
            raise UserError(f"{entry.path} is not what stage 3 wrote; {AGAIN}")
        if array.ndim == 2:
            array = array[:, None]  # (n_clips, 1, F)
        if entry.crops_first:
            array = array.swapaxes(0, 1)  # (n_clips, n_crops, F)
        if entry.more_crops:
            array = np.stack([array[:, 0], *map(read_array, entry.more_crops)], axis=1)
        expected = (entry.n_clips, self.n_crops, self.feature_dim)
        if array.shape != expected:
            raise UserError(
                f"{entry.path}: shape {array.shape}, but {self.location} promises (clips, crops, "
                f"dimension) = {expected}; {AGAIN}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{entry.path}: NaN or infinite features; {AGAIN}")
        return array.astype(np.float32, copy=False)


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """A .npy of numbers, without unpickling; `mapped`: values are read when they are asked for.

    Raises:
        UserError: missing, damaged or not an array of numbers, with the file's name.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; extract the features again") from error
    except (ValueError, OSError, EOFError) as error:
        text = f"{path} is damaged or not a .npy array ({error}); {AGAIN}"
        raise UserError(text) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in ("biuf" if mapped else "f"):
        raise UserError(f"{path}: not an array of floating-point numbers")
    return array


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest.json of a feature folder.

    Raises:
        UserError: there is none, or it is not one of stage 3's.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; run dali_extraction.py or give --features DIR")
    manifest = read_json(path)
    tables = ("videos", "failed", "anonymizer", "utility")
    parts = [manifest.get(key, {}) for key in tables] if isinstance(manifest, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path} is not a manifest of dali_extraction.py; extract the features")
    return manifest


def open_feature_folder(folder: Path | str) -> FeatureSource:
    """Reads the manifest of a feature folder; the files are read later.

    Raises:
        UserError: no manifest, another geometry than GEOMETRY, or an entry without its fields.
    """
    path = Path(folder) / "manifest.json"
    manifest = read_manifest(path)
    for key, value in GEOMETRY.items():
        if manifest.get(key) != value:
            found = f"{path}: {key} is {manifest.get(key)}, must be {value}"
            raise UserError(f"{found}; extract the features again")
    entries, broken = {}, []
    for name, own in manifest.get("videos", {}).items():
        try:
            entries[name] = _entry(path, name, own)
        except UserError as error:
            broken.append(error)
    refuse_all(f"entries of {path} are broken", broken, "extract these videos again")
    if not entries:
        raise UserError(f"{path} lists no video; extract the features first")
    dimension, n_crops = manifest.get("feature_dim"), manifest.get("n_crops", 1)
    if not all(isinstance(number, int) and number >= 1 for number in (dimension, n_crops)):
        raise UserError(f"{path}: feature_dim {dimension} and n_crops {n_crops} must be at least 1")
    spacing = GEOMETRY["frames_per_feature"]
    return FeatureSource(path, entries, dimension, n_crops, spacing, manifest)


def _entry(path: Path, name: str, video: dict[str, Any]) -> FeatureEntry:
    try:
        file, n_clips, n_frames = video["file"], int(video["n_clips"]), int(video["n_frames"])
    except (KeyError, TypeError, ValueError) as error:
        text = f"{path}: the entry of video '{name}' lacks or spoils {error}; extract it again"
        raise UserError(text) from error
    expected = -(-n_frames // GEOMETRY["frames_per_feature"])
    if min(n_clips, n_frames) < 1 or abs(n_clips - expected) > 1:
        raise UserError(
            f"{path}: video '{name}' has {n_clips} clips, but its {n_frames} frames make "
            f"{expected}; extract it again"
        )
    return FeatureEntry(path.parent / file, n_clips, n_frames, sha256=video.get("sha256", ""))


def has_content(path: Path | str, digest: str) -> bool:
    """Whether a file or model folder has this SHA-256; that of the folder's weights will do."""
    path = Path(path)
    files = [path, *sorted(path.glob("*.safetensors"))[:1]] if path.is_dir() else [path]
    return path.exists() and digest in map(sha256, files)


def check_anonymizer(source: FeatureSource, anonymizer: str) -> None:
    """Refuses features of another anonymizer than the one named (a name, or a path by content).

    Raises:
        UserError: they differ.
    """
    recorded = source.manifest.get("anonymizer", {})
    name, digest = recorded.get("name"), recorded.get("sha256")
    if not (has_content(anonymizer, digest) if digest else name == anonymizer):
        raise UserError(
            f"{source.location}: these features come from the anonymizer '{name}' (SHA-256 "
            f"{digest or 'none'}), not from --anonymizer {anonymizer}; give the matching --features"
        )


def check_detector(source: FeatureSource, needed: Mapping[str, Any], detector: str) -> None:
    """Refuses features that differ in FEATURE_KEYS from what a detector (its file) was trained on;
    what either side does not know is not compared.

    Raises:
        UserError: anonymizer, network or geometry differ.
    """
    both = {key: (needed.get(key), source.manifest.get(key)) for key in FEATURE_KEYS}
    found = [
        f"{key} {_name_of(wanted)}, here {_name_of(here)}"
        for key, (wanted, here) in both.items()
        if None not in (wanted, here) and not _agree(wanted, here)
    ]
    if found:
        raise UserError(
            f"{detector} was trained on other features than those of {source.location}: "
            f"{'; '.join(found)}; give the matching --features or the detector made for these"
        )


def _agree(wanted: Any, here: Any) -> bool:
    """Networks agree in their content, or in their names where they have no file."""
    if not isinstance(wanted, dict):
        return wanted == here
    digest = wanted.get("sha256")
    if not digest or not here.get("sha256"):
        return (digest or "", _name_of(wanted)) == (here.get("sha256", ""), _name_of(here))
    return digest == here["sha256"] or has_content(_name_of(here), digest)


def _name_of(value: Any) -> Any:
    return value.get("name", value.get("path", "")) if isinstance(value, dict) else value


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
    """Reads whole videos once, into memory or, above the limit, into a mapped temporary file."""
    offsets = np.cumsum([0, *(source.entries[name].n_clips for name in names)])
    shape = (int(offsets[-1]), source.n_crops, source.feature_dim + 1)
    data = _allocate(shape, memory_limit_gib)
    for i, features in _read_all(source, names, "load videos"):
        data[offsets[i] : offsets[i + 1]] = append_magnitude(features)
    return VideoFeatures(list(names), data, offsets)


def load_segments(
    source: FeatureSource, names: list[str], n_segments: int, memory_limit_gib: float
) -> np.ndarray:
    """Reads and averages videos once: (V, n_crops, n_segments, F + 1) float32, with magnitude."""
    shape = (len(names), source.n_crops, n_segments, source.feature_dim + 1)
    bags = _allocate(shape, memory_limit_gib)
    for i, features in _read_all(source, names, "load segments"):
        bags[i] = append_magnitude(segment_features(features, n_segments)).swapaxes(0, 1)
    return bags


def _read_all(source: FeatureSource, names: list[str], what: str) -> Iterator[tuple[int, Any]]:
    """(place, features) of each video; in the end a UserError that names all broken files."""
    broken = []
    for i, name in enumerate(progress(names, what)):
        try:
            yield i, source.read(name)
        except UserError as error:
            broken.append(error)
    refuse_all("feature files are broken", broken, "see there")


def _allocate(shape: tuple[int, ...], memory_limit_gib: float) -> np.ndarray:
    if 4 * np.prod(shape, dtype=np.float64) <= memory_limit_gib * 2**30:
        return np.empty(shape, dtype=np.float32)
    with tempfile.NamedTemporaryFile(prefix="features_", suffix=".tmp") as file:
        # the file loses its name when this block ends; the map keeps it until the process is gone
        return np.memmap(file.name, dtype=np.float32, mode="w+", shape=shape)
