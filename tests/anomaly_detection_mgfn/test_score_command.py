"""main.py --score as a user runs it: from files to scores and copy, and no image of people."""

import csv
import json

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import checkpoint_meta, save_network
from anomaly_detection_mgfn.params_mgfn import MINIATURE
from aux_code import config
from aux_code.artefacts import Recipe, sha256
from aux_code.checkpoints import save_checkpoint
from aux_code.model_loaders import load_fa_model, load_ft_model
from tests.feature_extraction.videos import write_video


def magenta(_, height, width):
    """What the videos show and nothing that is written may."""
    return np.full((height, width, 3), [255, 0, 255], np.uint8)


@pytest.fixture
def score(tmp_path, monkeypatch, run_main):
    """score(VIDEOS, options) -> status of main.py, with f_A that releases black frames, f_T and a
    detector for their features."""
    monkeypatch.setenv("TED_SPAD_ARTIFACT_ROOT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    networks, detector = tmp_path / "last.pth", tmp_path / "mgfn.pth"
    fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=3)
    with torch.no_grad():
        fa.mend.weight.zero_()
        fa.mend.bias.fill_(-9.0)
    architectures = {"fa": fa.architecture, "ft": ft.architecture}
    states = {"fa_model_state_dict": fa.state_dict(), "ft_model_state_dict": ft.state_dict()}
    save_checkpoint(networks, {**states, "meta": {"architectures": architectures}})
    manifest = {"size": 48, "crop": 0.8, "n_crops": 1, "feature_dim": 64, "frames_per_feature": 32}
    content = {"sha256": sha256(networks)}
    manifest |= {"anonymizer": {"name": str(networks), **content}}
    manifest |= {"utility": {"path": str(networks), **content}}
    meta = checkpoint_meta(MINIATURE, Recipe({}), manifest, 1.0)
    net = MGFN(64, MINIATURE.dims, MINIATURE.depths)
    save_network(detector, net.state_dict(), 1, meta)
    named = ("--checkpoint", detector, "--anonymizer", networks, "--run_id", "own")
    return lambda videos, *more: run_main("--score", videos, *named, *more)


def test_a_folder_of_videos_to_scores_intervals_pictures_and_copies(tmp_path, score):
    videos = tmp_path / "my videos"
    (videos / "cam 1").mkdir(parents=True)
    write_video(videos / "cam 1" / "a b.mp4", 70, paint=magenta)
    (videos / "broken.mp4").write_bytes(b"no video")
    rows = ["video,label,anomalies", "cam 1/a b.mp4,1,10-40", "broken.mp4,0,"]
    (videos / "test.csv").write_text("\n".join(rows))
    options = ("--anonymized_copy", "--threshold", 0, "--min_interval", 0.2)
    assert score(videos, *options) == 3, "one of the videos does not decode"
    output = config.RESULTS_ROOT / "scores_own"
    folder = output / "a_b"
    content = json.loads((folder / "scores.json").read_text())
    assert (content["n_frames"], content["fps"], content["events"]) == (70, 25.0, [[10, 40]])
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(rows) == 70 and float(rows[-1]["seconds"]) == pytest.approx(69 / 25, abs=1e-3)
    assert len({row["score"] for row in rows[:32]}) == 1
    assert all(0 <= float(row["score"]) <= 1 for row in rows)
    (interval,) = content["intervals"]
    assert (interval["start"], interval["end"], interval["end_seconds"]) == (0, 70, 2.8)
    assert list(csv.DictReader((folder / "intervals.csv").open()))[0]["end"] == "70"
    with av.open(str(folder / "anonymized.mp4")) as container:
        copy = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert copy.shape == (70, 48, 64, 3) and copy.max() < 40
    assert {path.name for path in output.iterdir()} == {"a_b", "features"}
    for path in output.rglob("*.png"):  # the colours of the plot are not near it
        red, green, blue = np.moveaxis(imread(path)[..., :3], -1, 0)
        assert not ((red > 0.6) & (green < 0.4) & (blue > 0.6)).any()
    picture = imread(output / "a_b" / "scores.png")[..., :3]
    lower = picture[int(0.7 * len(picture)) :]
    assert (lower.max(-1) < 0.1).mean() > 0.1, "black frames below the curve"
    kinds = {path.suffix for path in output.rglob("*") if path.is_file() and path.name != ".lock"}
    assert kinds == {".csv", ".json", ".png", ".mp4", ".npy"}
