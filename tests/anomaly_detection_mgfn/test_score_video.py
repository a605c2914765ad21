"""New videos: which networks, what the results are called, and --score as a whole."""

import csv
import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from anomaly_detection_mgfn.feature_bags import FeatureSource
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import checkpoint_meta, save_network
from anomaly_detection_mgfn.params_mgfn import MINIATURE
from anomaly_detection_mgfn.score_plot import anonymized_frames
from anomaly_detection_mgfn.score_video import find_networks, video_paths
from aux_code import config
from aux_code.artefacts import Recipe, sha256
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_ft_model
from tests.datasets.media import write_lines
from tests.feature_extraction.videos import write_video


@pytest.fixture
def weights(tmp_path):
    return write_lines(tmp_path / "saved_models" / "run" / "ft.pth", "weights")


@pytest.fixture
def meta(weights):
    """Meta of a detector whose f_T lies in a run's folder and is recorded by its name alone."""
    utility = {"path": "ft.pth", "sha256": sha256(weights)}
    return {"features": {"anonymizer": {"name": "blur", "sha256": ""}, "utility": utility}}


def find(meta, **changes):
    return find_networks(replace(MINIATURE, checkpoint="best.pth", **changes), meta)


def test_networks_are_those_of_the_training_features_and_others_refused(meta, weights, tmp_path):
    networks = find(meta)
    assert (networks.anonymizer, networks.utility) == ("blur", str(weights))
    other = write_lines(tmp_path / "other.pth", "other weights")
    for words, changes in (("raw", {"anonymizer": "raw"}), ("other.pth", {"utility": str(other)})):
        with pytest.raises(UserError, match=words):
            find(meta, **changes)
    weights.unlink()
    for words, found in (("--utility", meta), ("how its features were made", {})):
        with pytest.raises(UserError, match=words):
            find(found)


@pytest.mark.parametrize("recorded", ["folder", "its weights"])
def test_a_model_folder_is_found_by_its_content(meta, tmp_path, recorded):
    """Manifests hold the SHA-256 of the folder; of its weights in earlier ones."""
    folder = tmp_path / "saved_models" / "released"
    weights = write_lines(folder / "model.safetensors", "weights of f_A")
    digest = sha256(folder if recorded == "folder" else weights)
    meta["features"]["anonymizer"] = {"name": "elsewhere/released", "sha256": digest}
    assert find(meta).anonymizer == str(folder)
    assert find(meta, anonymizer=str(folder))
    write_lines(weights, "other weights")
    for anonymizer in (str(folder), "raw"):
        with pytest.raises(UserError, match="trained on features of another anonymizer"):
            find(meta, anonymizer=anonymizer)


def test_videos_are_found_by_the_source_of_features(tmp_path):
    """The folder may hold features of other videos, and of the same file from where it was."""
    for path in ("new/x/a.mp4", "disk/a.mp4", "new/moved.mp4", "other/b.mp4", "disk/cam/000.jpg"):
        write_lines(tmp_path / path)
    (tmp_path / "new" / "y").symlink_to(tmp_path / "disk")
    sources = {"x__a": "new/x/a.mp4", "y__a": "disk/a.mp4", "moved": "old/moved.mp4"}
    sources |= {"b": "other/b.mp4", "a": "old/a.mp4", "cam": "disk/cam"}
    videos = {name: {"source": {"path": str(tmp_path / own)}} for name, own in sources.items()}
    source = FeatureSource(tmp_path, {}, 1, 1, 32, {"videos": videos})
    new, empty = (replace(MINIATURE, score=str(tmp_path / name)) for name in ("new", "empty"))
    paths = video_paths(new, source).items()
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in paths}
    linked = {"y__a": "disk/a.mp4", "cam": "disk/cam"}
    assert found == {"x__a": "new/x/a.mp4", "moved": "new/moved.mp4", **linked}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video of --score"):
        video_paths(empty, source)


def test_frames_are_shown_only_where_they_are_anonymized(tmp_path):
    """Raw frames never; frames with blackened people only where their boxes are known."""
    video = tmp_path / "own" / "cam"
    video.mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(video / f"{i:03d}.png")
    assert anonymized_frames(video, "raw", 32, 6) is None
    assert anonymized_frames(video, "blacken", 32, 6) is None
    rows = [f"own/cam,{i},4,4,20,36" for i in range(6)]
    boxes = write_lines(tmp_path / "boxes.csv", "file,frame,x0,y0,x1,y1", *rows)
    shown = anonymized_frames(video, "blacken", 32, 6, boxes).frames
    assert shown.shape == (6, 32, 32, 3)
    assert (shown[:, :, :16] == 0).all() and (shown[:, :, 17:] == 200).all()
    assert anonymized_frames(video, "downsample2x", 32, 6).frames.shape == (6, 32, 32, 3)


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
    known = {"name": str(networks), "path": str(networks), "sha256": sha256(networks)}
    manifest |= {"anonymizer": known, "utility": known}
    meta = checkpoint_meta(MINIATURE, Recipe({}), manifest, 1.0)
    net = MGFN(64, MINIATURE.dims, MINIATURE.depths)
    save_network(detector, net.state_dict(), 1, meta)
    named = ("--checkpoint", detector, "--anonymizer", networks, "--run_id", "own")
    return lambda videos, *more: run_main("--score", videos, *named, *more)


def test_a_folder_of_videos_to_scores_intervals_pictures_and_copies(tmp_path, score):
    videos = tmp_path / "my videos"
    (videos / "cam 1").mkdir(parents=True)
    write_video(videos / "cam 1" / "a b.mp4", 70, paint=magenta)
    write_lines(videos / "broken.mp4", "no video")
    rows = ("video,label,anomalies", "cam 1/a b.mp4,1,10-40", "broken.mp4,0,")
    write_lines(videos / "test.csv", *rows)
    options = ("--anonymized_copy", "--threshold", 0, "--min_interval", 0.2)
    assert score(videos, *options) == 3, "one of the videos does not decode"
    folder = config.RESULTS_ROOT / "scores_own" / "a_b"
    output = folder.parent
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
    picture = imread(folder / "scores.png")[..., :3]
    lower = picture[int(0.7 * len(picture)) :]
    assert (lower.max(-1) < 0.1).mean() > 0.1, "black frames below the curve"
    kinds = {path.suffix for path in output.rglob("*") if path.is_file() and path.name != ".lock"}
    assert kinds == {".csv", ".json", ".png", ".mp4", ".npy"}
