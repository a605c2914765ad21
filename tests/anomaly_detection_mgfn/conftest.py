"""Small feature folders in the real on-disk format, with an own-videos data set beside them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from aux_code import config
from aux_code.checkpoints import write_json
from aux_code.datasets.surveillance import load_surveillance

FEATURE_DIM = 16
FRAMES_PER_FEATURE = 32


@dataclass
class SmallSet:
    """A data set of videos that need not decode, and what their feature files hold, by name."""

    dataset: Path
    features: Path
    arrays: dict[str, np.ndarray]
    n_frames: dict[str, int]
    events: dict[str, list[tuple[int, int]]]
    labels: dict[str, int]

    def write(self, **changes) -> None:
        """Writes the feature folder; `changes` replace fields of the manifest."""
        write_features(self.features, self.arrays, self.n_frames, **changes)


def write_features(
    folder: Path, arrays: dict[str, np.ndarray], n_frames: dict[str, int], **changes
) -> None:
    """Feature files and manifest as stage 3 writes them; `changes` replace fields."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = {}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        counts = {"n_frames": n_frames[name], "n_clips": len(array), "fps": 30.0}
        videos[name] = {"file": f"{name}.npy", **counts, "status": "complete"}
    geometry = {"frames_per_clip": 16, "stride": 2, "frames_per_feature": FRAMES_PER_FEATURE}
    geometry |= {"crop": 0.8, "size": 48, "feature_dim": FEATURE_DIM, "n_crops": 1}
    networks = {
        "anonymizer": {"name": "raw", "sha256": ""},
        "utility": {"path": "ft.pth", "sha256": "", "arch": "small"},
    }
    header = {"format_version": 1, "dataset": "own", **geometry, **networks}
    header |= {"precision": "fp32", "reader": "pyav", "videos": videos, "failed": {}}
    write_json(folder / "manifest.json", header | changes)


def clip_count(n_frames: int) -> int:
    """ceil(n_frames / 32), the design's number of clips."""
    return -(-n_frames // FRAMES_PER_FEATURE)


def make_small_set(root: Path, n_train: int = 24, n_test: int = 12, n_crops: int = 1) -> SmallSet:
    """Half of the videos anomalous: in an event, the features are shifted. Lengths are not
    multiples of 32."""
    rng = np.random.default_rng(5)
    small = SmallSet(root / "own", root / "features", {}, {}, {}, {})
    (small.dataset / "videos").mkdir(parents=True)
    files = {}
    for split, count in (("train", n_train), ("test", n_test)):
        lines = ["video,label,anomalies"]
        for i in range(count):
            stem = f"{split} {i:02d}#ö"
            n_frames = int(rng.integers(3, 9)) * 32 + int(rng.integers(1, 31))
            start = int(rng.integers(20, 50))
            files[stem] = (n_frames, i % 2, [(start, start + 45)] if i % 2 else [])
            (small.dataset / "videos" / f"{stem}.mp4").touch()
            spans = ";".join(f"{s}-{e}" for s, e in files[stem][2])
            lines.append(f"videos/{stem}.mp4,{i % 2},{spans}")
        (small.dataset / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    videos = load_surveillance(str(small.dataset))
    for video in (*videos.train, *videos.test):
        n_frames, label, events = files[Path(video.path).stem]
        features = rng.normal(size=(clip_count(n_frames), n_crops, FEATURE_DIM)).astype(np.float32)
        for start, end in events:
            features[start // 32 : (end - 1) // 32 + 1, :, :4] += 2.5
        small.arrays[video.name] = features if n_crops > 1 else features[:, 0]
        small.n_frames[video.name], small.labels[video.name] = n_frames, label
        small.events[video.name] = events
    small.write(n_crops=n_crops)
    return small


@pytest.fixture
def small_set(tmp_path, monkeypatch) -> SmallSet:
    """A data set and its features; the artefacts of a run go to tmp_path too."""
    for name in ("SAVED_MODELS", "RESULTS", "LOGS"):
        monkeypatch.setattr(config, f"{name}_ROOT", tmp_path / name.lower())
    return make_small_set(tmp_path)


@pytest.fixture
def make_set():
    """`make_small_set`, for tests that need another size."""
    return make_small_set
