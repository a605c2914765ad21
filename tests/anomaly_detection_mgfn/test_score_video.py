"""Which networks a new video is extracted with, and what its results are called."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomaly_detection_mgfn.feature_bags import FeatureSource
from anomaly_detection_mgfn.params_mgfn import MINIATURE
from anomaly_detection_mgfn.score_plot import anonymized_frames
from anomaly_detection_mgfn.score_video import find_networks, result_folders, video_paths
from aux_code.artefacts import sha256
from aux_code.errors import UserError


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "saved_models" / "run" / "ft.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return path


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
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
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
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights of f_A")
    digest = sha256(folder if recorded == "folder" else weights)
    meta["features"]["anonymizer"] = {"name": "elsewhere/released", "sha256": digest}
    assert find(meta).anonymizer == str(folder)
    assert find(meta, anonymizer=str(folder))
    weights.write_bytes(b"other weights")
    for anonymizer in (str(folder), "raw"):
        with pytest.raises(UserError, match="trained on features of another anonymizer"):
            find(meta, anonymizer=anonymizer)


def test_every_video_has_a_folder_of_its_own(tmp_path):
    folders = result_folders(tmp_path, ["a b", "a_b", "a?b", "c#1=ü.x"])
    assert [path.name for path in folders.values()] == ["a_b", "a_b_2", "a_b_3", "c_1_ü.x"]


def test_videos_are_found_by_the_source_of_their_features(tmp_path):
    """The folder may hold features of other videos, and of the same file from where it was."""
    for path in ("new/x/a.mp4", "new/y/a.mp4", "new/moved.mp4", "other/b.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    sources = {"x__a": "new/x/a.mp4", "y__a": "new/y/a.mp4", "moved": "old/moved.mp4"}
    sources |= {"b": "other/b.mp4", "a": "old/a.mp4"}
    videos = {name: {"source": {"path": str(tmp_path / own)}} for name, own in sources.items()}
    source = FeatureSource(tmp_path, {}, 1, 1, 32, {"videos": videos})
    new, empty = (replace(MINIATURE, score=str(tmp_path / name)) for name in ("new", "empty"))
    paths = video_paths(new, source).items()
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in paths}
    assert found == {"x__a": "new/x/a.mp4", "y__a": "new/y/a.mp4", "moved": "new/moved.mp4"}
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
    boxes = tmp_path / "boxes.csv"
    rows = [f"own/cam,{i},4,4,20,36" for i in range(6)]
    boxes.write_text("\n".join(["file,frame,x0,y0,x1,y1", *rows]))
    shown = anonymized_frames(video, "blacken", 32, 6, boxes).frames
    assert shown.shape == (6, 32, 32, 3)
    assert (shown[:, :, :16] == 0).all() and (shown[:, :, 17:] == 200).all()
    assert anonymized_frames(video, "downsample2x", 32, 6).frames.shape == (6, 32, 32, 3)
