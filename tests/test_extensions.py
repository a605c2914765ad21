"""The worked examples of the README's "Add your own": each is all that a user writes, run through the stages' scripts.

A data set is a folder with two lists, an anonymizer and a utility network are a class and a name, an anomaly head reads
the feature folder.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomaly_detection_mgfn import main as detection
from anomaly_detection_mgfn.feature_bags import open_feature_folder
from anomaly_detection_mgfn.ground_truth import match_videos
from anomaly_detection_mgfn.scoring import weighted_scores
from aux_code import config
from aux_code.checkpoints import build_meta, save_checkpoint
from aux_code.datasets.surveillance import load_surveillance
from aux_code.model_loaders import load_anonymizer, load_fa_model, load_ft_model, load_utility
from aux_code.models import anonymizers, obfuscation, utility
from aux_code.parameters import CommonParams
from feature_extraction import dali_extraction

MACHINE = ("--preset", "miniature", "--device", "cpu", "--n_threads", "1")


class Posterize(obfuscation.Obfuscation):
    """An anonymizer without parameters: four levels per colour."""

    def forward(self, frames: Tensor, boxes=None) -> Tensor:
        return (frames * 3).round() / 3


class Tint(nn.Module):
    """An anonymizer that can be trained: one 1 x 1 convolution."""

    def __init__(self, out_channels: int = 3):
        super().__init__()
        self.mix = nn.Conv2d(3, out_channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.mix(frames).sigmoid()


class ColourStatistics(utility.UtilityNetwork):
    """A utility network: mean and deviation of each colour over the clip."""

    feature_dim = 6

    def __init__(self, num_classes: int = 102):
        super().__init__()
        self.fc = nn.Linear(self.feature_dim, num_classes)
        self.head = nn.Linear(self.feature_dim, 8)

    def extract_features(self, clips: Tensor) -> Tensor:
        pixels = clips.flatten(2)
        return torch.cat([pixels.mean(2), pixels.std(2)], dim=1)

    def classify(self, features: Tensor) -> utility.UtilityOutput:
        return utility.UtilityOutput(self.fc(features), nn.functional.normalize(self.head(features)))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The three lines that a user adds, and artefacts of their own."""
    monkeypatch.setitem(obfuscation.OBFUSCATIONS, "posterize", Posterize)
    monkeypatch.setitem(anonymizers.ANONYMIZERS, "tint", Tint)
    monkeypatch.setitem(utility.UTILITY_NETWORKS, "colour_statistics", ColourStatistics)
    for name in ("SAVED_MODELS_ROOT", "FEATURES_ROOT", "RESULTS_ROOT", "LOGS_ROOT", "FRAME_INDEX_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / "artifacts" / name.lower())
    return tmp_path


def write_surveillance_video(path: Path, n_frames: int, events: tuple[tuple[int, int], ...]) -> None:
    """Grey frames that turn bright during the events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(n_frames):
            level = 210 if any(start <= i < end for start, end in events) else 60
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def own_dataset(tmp_path: Path) -> Path:
    """The folder of the README: videos, train.csv and test.csv."""
    root = tmp_path / "shop"
    for split, n_videos in (("train", 6), ("test", 4)):
        lines = ["video,label,anomalies"]
        for number in range(n_videos):
            events = ((64, 128),) if number % 2 else ()
            name = f"cam{number % 3}/{split}_{number}.mp4"
            write_surveillance_video(root / name, 150 + number, events)
            label = "anomalous" if events else "normal"
            lines.append(f"{name},{label},{';'.join(f'{start}-{end}' for start, end in events)}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def save_networks(path: Path, **networks: nn.Module) -> Path:
    """A checkpoint as the stages write it."""
    architectures = {role: network.architecture for role, network in networks.items()}
    states = {f"{role}_model_state_dict": network.state_dict() for role, network in networks.items()}
    save_checkpoint(path, {**states, "meta": build_meta("example", architectures, CommonParams(), {}, {})})
    return path


def run(script, monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", ["script", *MACHINE, *map(str, options)])
    return script.main() or 0


def test_a_data_set_is_a_folder_with_two_lists(own_dataset):
    videos = load_surveillance(str(own_dataset))
    assert (len(videos.train), len(videos.test)) == (6, 4)
    assert [video.events for video in videos.test] == [(), ((64, 128),), (), ((64, 128),)]


def test_an_anonymizer_with_parameters_is_rebuilt_from_its_checkpoint(registered):
    network = load_fa_model("tint")
    path = save_networks(registered / "last.pth", fa=network)
    frames = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(load_anonymizer(path)(frames), network.eval()(frames))
    assert set(load_anonymizer("posterize")(frames).mul(3).round().unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_a_data_set_anonymizer_utility_network_and_head_of_ones_own(registered, own_dataset, monkeypatch):
    ft = save_networks(registered / "ft.pth", ft=load_ft_model("colour_statistics", num_classes=3))
    assert load_utility(ft).feature_dim == 6
    features = registered / "features"
    options = ("--dataset", own_dataset, "--anonymizer", "posterize", "--utility", ft, "--output", features)
    assert run(dali_extraction, monkeypatch, *options, "--reader", "pyav", "--precision", "fp32") == 0
    manifest = json.loads((features / "manifest.json").read_text())
    assert (manifest["feature_dim"], manifest["frames_per_feature"], len(manifest["videos"])) == (6, 32, 10)
    assert manifest["anonymizer"]["name"] == "posterize" and manifest["utility"]["arch"] == "colour_statistics"
    stored = np.load(features / f"{next(iter(manifest['videos']))}.npy")
    assert np.isclose(stored[0, 0] * 3, round(stored[0, 0] * 3), atol=1e-3), "a grey clip in four levels is one level"

    own_head_scores(own_dataset, features)

    # the built-in head takes the width from the manifest
    assert run(detection, monkeypatch, "--dataset", own_dataset, "--features", features, "--epochs", 2) == 0
    assert len(list(config.RESULTS_ROOT.glob("anomaly_*.json"))) == 1


def own_head_scores(dataset: Path, features: Path) -> None:
    """An anomaly head: how far a clip's feature lies from what normal training videos show."""
    videos = match_videos(str(dataset), open_feature_folder(str(features)))

    def read(name: str) -> np.ndarray:
        return np.load(features / f"{name}.npy")

    usual = np.concatenate([read(video.name) for video in videos.train if not video.label]).mean(0)
    scores = [np.linalg.norm(read(video.name) - usual, axis=1) for video in videos.test]
    metrics = weighted_scores(scores, videos.test).metrics()
    assert metrics.roc_auc == pytest.approx(1.0), "bright clips are events, and they end with a clip"
