"""Which networks a new video is extracted with, and what its results are called."""

from dataclasses import replace

import pytest

from anomaly_detection_mgfn.params_mgfn import MINIATURE
from anomaly_detection_mgfn.score_plot import plot_scores
from anomaly_detection_mgfn.score_video import find_recipe, safe_name
from aux_code import config
from aux_code.checkpoints import sha256_of
from aux_code.errors import UserError


@pytest.fixture
def meta(tmp_path, monkeypatch):
    """Meta of a detector whose f_T lies in a run's folder and is recorded by its name alone."""
    monkeypatch.setattr(config, "SAVED_MODELS_ROOT", tmp_path / "saved_models")
    weights = tmp_path / "saved_models" / "run" / "ft.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    utility = {"path": "ft.pth", "sha256": sha256_of(weights)}
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
