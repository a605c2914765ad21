"""main.py --score as a user runs it: from files to scores and copy, and no image of people."""

import csv
import json
import sys

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from anomaly_detection_mgfn import main as script
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import checkpoint_meta, save_network
from anomaly_detection_mgfn.params_mgfn import MINIATURE
from aux_code import config
from aux_code.artefacts import Recipe, build_meta, sha256
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_ft_model

MAGENTA = np.array([255, 0, 255], np.uint8)
"""What the videos show and nothing that is written may."""


def write_magenta(path, n_frames, rate=25):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = av.VideoFrame.from_ndarray(np.broadcast_to(MAGENTA, (48, 64, 3)).copy(), format="rgb24")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(n_frames):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def shows_magenta(pixels):
    """Whether any pixel (..., 3) in [0, 1] is near it; the colours of the plot are not."""
    red, green, blue = np.moveaxis(pixels[..., :3], -1, 0)
    return bool(((red > 0.6) & (green < 0.4) & (blue > 0.6)).any())


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """(f_A that releases black frames, detector for its features): checkpoints of the stages."""
    for name in ("SAVED_MODELS_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / "artifacts" / name.lower())
    monkeypatch.setenv("TED_SPAD_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=3)
    with torch.no_grad():
        fa.mend.weight.zero_()
        fa.mend.bias.fill_(-9.0)
    networks = tmp_path / "last.pth"
    meta = build_meta(
        "test", {"fa": fa.architecture, "ft": ft.architecture}, MINIATURE, Recipe({}), {}
    )
    states = {"fa_model_state_dict": fa.state_dict(), "ft_model_state_dict": ft.state_dict()}
    save_checkpoint(networks, {**states, "meta": meta})
    content = {"sha256": sha256(networks)}
    manifest = {"size": 48, "crop": 0.8, "n_crops": 1, "feature_dim": 64, "frames_per_feature": 32}
    manifest |= {
        "anonymizer": {"name": str(networks), **content},
        "utility": {"path": str(networks), **content},
    }
    net = MGFN(64, MINIATURE.dims, MINIATURE.depths)
    meta = checkpoint_meta(MINIATURE, Recipe({}), manifest, 1.0)
    save_network(tmp_path / "mgfn.pth", net.state_dict(), 1, meta)
    return networks, tmp_path / "mgfn.pth"


def score(monkeypatch, detector, target, *more):
    fa, checkpoint = detector
    arguments = ["--preset", "miniature", "--device", "cpu", "--n_threads", "1", "--run_id", "own"]
    arguments += ["--score", str(target), "--checkpoint", str(checkpoint), "--anonymizer", str(fa)]
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments, *more])
    return script.main()


def decoded(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_folder_of_videos_to_scores_intervals_pictures_and_copies(
    tmp_path, monkeypatch, detector
):
    videos = tmp_path / "my videos"
    write_magenta(videos / "cam 1" / "a b.mp4", 70)
    (videos / "broken.mp4").write_bytes(b"no video")
    rows = ["video,label,anomalies", "cam 1/a b.mp4,1,10-40", "broken.mp4,0,"]
    (videos / "test.csv").write_text("\n".join(rows))
    options = ("--anonymized_copy", "--threshold", "0", "--min_interval", "0.2")
    assert score(monkeypatch, detector, videos, *options) == 3, "one of the videos does not decode"
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
    copy = decoded(folder / "anonymized.mp4")
    assert copy.shape == (70, 48, 64, 3) and copy.max() < 40
    assert {path.name for path in output.iterdir()} == {"a_b", "features"}
    assert not [path for path in output.rglob("*.png") if shows_magenta(imread(path))]
    picture = imread(output / "a_b" / "scores.png")[..., :3]
    lower = picture[int(0.7 * len(picture)) :]
    assert (lower.max(-1) < 0.1).mean() > 0.1, "black frames below the curve"
    kinds = {path.suffix for path in output.rglob("*") if path.is_file() and path.name != ".lock"}
    assert kinds == {".csv", ".json", ".png", ".mp4", ".npy"}


def test_an_anonymizer_that_the_detector_does_not_know_is_refused(tmp_path, monkeypatch, detector):
    write_magenta(tmp_path / "cam.mp4", 40)
    other = tmp_path / "other.pth"
    fa = load_fa_model("small")
    meta = {"architectures": {"fa": fa.architecture}}
    save_checkpoint(other, {"fa_model_state_dict": fa.state_dict(), "meta": meta})
    for anonymizer in (str(other), "raw"):
        with pytest.raises(UserError, match="trained on features of another anonymizer"):
            score(monkeypatch, (anonymizer, detector[1]), tmp_path / "cam.mp4")
