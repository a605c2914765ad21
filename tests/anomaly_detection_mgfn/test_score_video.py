"""Which networks a new video is extracted with, and what its results are called."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anomaly_detection_mgfn.params_mgfn import MINIATURE
from anomaly_detection_mgfn.score_plot import anonymized_frames, plot_scores
from anomaly_detection_mgfn.score_video import (
    ExtractedSources,
    candidate_paths,
    find_recipe,
    result_folders,
    safe_name,
)
from aux_code import config
from aux_code.artefacts import sha256
from aux_code.errors import UserError


@pytest.fixture
def meta(tmp_path, monkeypatch):
    """Meta of a detector whose f_T lies in a run's folder and is recorded by its name alone."""
    monkeypatch.setattr(config, "SAVED_MODELS_ROOT", tmp_path / "saved_models")
    weights = tmp_path / "saved_models" / "run" / "ft.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    utility = {"path": "ft.pth", "sha256": sha256(weights)}
    return {"features": {"anonymizer": {"name": "blur", "sha256": ""}, "utility": utility}}


def test_networks_are_those_of_the_training_features(meta, tmp_path):
    recipe = find_recipe(replace(MINIATURE, checkpoint="best.pth"), meta)
    assert recipe.anonymizer == "blur"
    assert recipe.utility == str(tmp_path / "saved_models" / "run" / "ft.pth")


def test_other_networks_are_refused(meta, tmp_path):
    with pytest.raises(UserError, match="raw"):
        find_recipe(replace(MINIATURE, checkpoint="best.pth", anonymizer="raw"), meta)
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    with pytest.raises(UserError, match="other.pth"):
        find_recipe(replace(MINIATURE, checkpoint="best.pth", utility=str(other)), meta)
    (tmp_path / "saved_models" / "run" / "ft.pth").unlink()
    with pytest.raises(UserError, match="--utility"):
        find_recipe(replace(MINIATURE, checkpoint="best.pth"), meta)
    with pytest.raises(UserError, match="how its features were made"):
        find_recipe(replace(MINIATURE, checkpoint="best.pth"), {})


def test_folder_names_and_picture(tmp_path):
    assert safe_name("a/b #1=ü.x") == "a_b__1_ü.x"
    plot_scores(tmp_path / "scores.png", ([0.1, 0.9, 0.4], 25.0), 0.5, ((1, 2),), None)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_every_video_has_a_folder_of_its_own(tmp_path):
    folders = result_folders(tmp_path, ["a b", "a_b", "a?b", "c"])
    assert [folder.name for folder in folders.values()] == ["a_b", "a_b_2", "a_b_3", "c"]


def test_videos_in_folders_are_found_by_either_name(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.v.mp4").touch()
    found = candidate_paths(tmp_path)
    assert found["x.v"] == found["x__x.v"] == tmp_path / "x" / "x.v.mp4"


def test_another_video_of_the_same_name_is_not_given_the_old_features(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "cam.mp4").write_bytes(day.encode())
    monday, tuesday = ({"cam": tmp_path / day / "cam.mp4"} for day in ("monday", "tuesday"))
    features = folder / "cam.npy"
    features.touch()
    ExtractedSources(folder).record(monday)
    ExtractedSources(folder).forget_changed(monday)
    assert features.exists()
    ExtractedSources(folder).forget_changed(tuesday)
    assert not features.exists(), "another file"
    features.touch()
    monday["cam"].write_bytes(b"recorded again")
    ExtractedSources(folder).forget_changed(monday)
    assert not features.exists(), "another content"


def test_frames_are_shown_only_where_they_are_anonymized(tmp_path):
    """Raw frames never; frames with blackened people only where their boxes are known."""
    video = tmp_path / "own" / "cam"
    video.mkdir(parents=True)
    for i in range(6):
        write_image(video / f"{i:03d}.png", np.full((40, 40, 3), 200, np.uint8))
    assert anonymized_frames(video, "raw", 32, 6) is None
    assert anonymized_frames(video, "blacken", 32, 6) is None
    boxes = tmp_path / "boxes.csv"
    rows = [f"own/cam,{i},4,4,20,36" for i in range(6)]
    boxes.write_text("\n".join(["file,frame,x0,y0,x1,y1", *rows]))
    shown = anonymized_frames(video, "blacken", 32, 6, str(boxes))
    assert shown.shape == (6, 32, 32, 3)
    assert (shown[:, :, :16] == 0).all() and (shown[:, :, 17:] == 200).all()
    assert anonymized_frames(video, "downsample2x", 32, 6).shape == (6, 32, 32, 3)


def write_image(path, pixels):
    Image.fromarray(pixels).save(path)
