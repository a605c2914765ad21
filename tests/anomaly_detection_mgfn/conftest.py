"""Small feature folders in the real on-disk format, with an own-videos data set beside them."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from anomaly_detection_mgfn import main as script
from aux_code import config
from aux_code.checkpoints import write_json
from tests.datasets.media import write_lines

FEATURE_DIM = 16
SMALL = ("--preset", "miniature", "--device", "cpu", "--n_threads", "1")


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


def write_features(folder: Path, arrays: dict, n_frames: dict[str, int], **changes) -> None:
    """Feature files and manifest as stage 3 writes them; `changes` replace fields."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = {}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        counts = {"n_frames": n_frames[name], "n_clips": len(array), "fps": 30.0}
        videos[name] = {"file": f"{name}.npy", **counts, "status": "complete"}
    header = {
        "format_version": 1, "dataset": "own", "precision": "fp32", "reader": "pyav", "size": 48,
        "frames_per_clip": 16, "stride": 2, "frames_per_feature": 32, "crop": 0.8, "n_crops": 1,
        "feature_dim": FEATURE_DIM, "anonymizer": {"name": "raw", "sha256": ""}, "failed": {},
        "utility": {"path": "ft.pth", "sha256": "", "arch": "small"}, "videos": videos,
    }  # fmt: skip
    write_json(folder / "manifest.json", header | changes)


def clip_count(n_frames: int) -> int:
    """ceil(n_frames / 32), the design's number of clips."""
    return -(-n_frames // 32)


def make_small_set(root: Path, n_crops: int = 1) -> SmallSet:
    """Half of the videos anomalous: in an event, the features are shifted. Lengths are not
    multiples of 32."""
    rng = np.random.default_rng(5)
    small = SmallSet(root / "own", root / "features", {}, {}, {}, {})
    for split, count in (("train", 24), ("test", 12)):
        lines = ["video,label,anomalies"]
        for i in range(count):
            name, label, start = f"{split} {i:02d}#ö", i % 2, int(rng.integers(20, 50))
            n_frames = int(rng.integers(3, 9)) * 32 + int(rng.integers(1, 31))
            features = rng.normal(size=(clip_count(n_frames), n_crops, FEATURE_DIM))
            if label:
                features[start // 32 : (start + 44) // 32 + 1, :, :4] += 2.5
            features = features.astype(np.float32)
            small.arrays[name] = features if n_crops > 1 else features[:, 0]
            small.n_frames[name], small.labels[name] = n_frames, label
            small.events[name] = [(start, start + 45)] if label else []
            write_lines(small.dataset / "videos" / f"{name}.mp4")
            lines.append(f"videos/{name}.mp4,{label},{f'{start}-{start + 45}' if label else ''}")
        write_lines(small.dataset / f"{split}.csv", *lines)
    small.write(n_crops=n_crops)
    return small


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch) -> None:
    """The artefacts of a run go to tmp_path."""
    for name in ("SAVED_MODELS", "RESULTS", "LOGS"):
        monkeypatch.setattr(config, f"{name}_ROOT", tmp_path / name.lower())


@pytest.fixture
def small_set(tmp_path) -> SmallSet:
    return make_small_set(tmp_path)


@pytest.fixture
def run_main(monkeypatch):
    """main.py in this process: run_main(options) -> status."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["main.py", *SMALL, *map(str, options)])
        return script.main()

    return run
