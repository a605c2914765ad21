"""The stage as a whole on tiny sets: what it learns, what it writes, how it fails and how it resumes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from aux_code import config
from aux_code.checkpoints import load_checkpoint, read_json, save_checkpoint
from aux_code.datasets import lists
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_budget, load_fa_model, load_fb_model, load_ft_model
from aux_code.training_state import TrainingState
from privacy_training import attribute_prediction, train_privacy


def checkpoint_of(path, role: str, net) -> str:
    """Writes a checkpoint of one network in our format."""
    meta = {"architectures": {role: net.architecture}}
    save_checkpoint(path, {f"{role}_model_state_dict": net.state_dict(), "meta": meta})
    return str(path)


def test_learns_an_easy_attribute_from_raw_pictures(run_stage):
    result = run_stage("--epochs", 12)
    scores = result["protocols"]["validation"]
    assert scores["per_attribute"]["a17_color"] > 0.95
    assert result["chance"]["per_attribute"]["a17_color"] == 0.5
    # the other labels are drawn at random: nothing can be learned that holds on the test split
    assert scores["per_attribute"]["a4_gender"] < 0.8
    low, high = result["confidence_interval"]
    assert low < scores["cmap"] < high
    assert [entry["epoch"] for entry in result["curve"]] == list(range(1, 13))
    assert result["curve"][-1]["test_cmap"] == result["protocols"]["last"]["cmap"]


def test_predictions_and_attacker_are_kept(run_stage):
    result = run_stage("--epochs", 2)
    with np.load(config.RESULTS_ROOT / "privacy_tiny.npz") as saved:
        assert saved["probabilities"].shape == saved["labels"].shape == (32, 7)
        assert saved["names"][0] == "2017_00000000.jpg"
    attacker = load_budget(config.SAVED_MODELS_ROOT / "tiny" / "attacker.pth")
    assert attacker(torch.rand(2, 3, 24, 24)).shape == (2, 7)
    assert result["inputs"]["fa"] == {"path": "raw", "sha256": ""}
    assert not (config.SAVED_MODELS_ROOT / "tiny" / "privacy_state.pth").exists()


def test_plots_are_written(run_stage):
    run_stage("--epochs", 1, run_id="raw")
    run_stage("--epochs", 1, "--plots", "--compare", config.RESULTS_ROOT / "privacy_raw.json")
    for name in ("attributes", "samples"):
        with Image.open(config.RESULTS_ROOT / f"privacy_tiny_{name}.png") as picture:
            assert min(picture.size) > 200


def test_grey_anonymizer_hides_the_colour(run_stage, tmp_path):
    """In the release the option that names an anonymizer has no effect on its own."""
    fa = load_fa_model("small", output_channels=1)
    path = checkpoint_of(tmp_path / "fa.pth", "fa", fa)
    with torch.no_grad():
        fa.network.mend.weight.zero_()
    blank = checkpoint_of(tmp_path / "blank.pth", "fa", fa)
    assert run_stage("--anonymizer", blank, "--epochs", 3)["protocols"]["last"]["per_attribute"]["a17_color"] < 0.75
    assert len(run_stage("--anonymizer", path, "--epochs", 1, run_id="grey")["inputs"]["fa"]["sha256"]) == 64


def test_feature_level(run_stage, tmp_path):
    ft = load_ft_model("small", num_classes=10, motion=False)
    path = checkpoint_of(tmp_path / "ft.pth", "ft", ft)
    result = run_stage("--level", "feature", "--utility", path, "--epochs", 30, "--feature_learning_rate", 5e-3)
    assert result["level"] == "feature"
    assert result["protocols"]["validation"]["per_attribute"]["a17_color"] > 0.9


def test_feature_level_without_utility_is_refused(run_stage):
    with pytest.raises(UserError, match="--utility"):
        run_stage("--level", "feature")


def test_anonymizer_without_weights_is_refused(run_stage, tmp_path):
    """The release evaluates an untrained anonymizer when it is given none."""
    with pytest.raises(UserError, match="neither a file nor one of"):
        run_stage("--anonymizer", "ted_spad")
    other = checkpoint_of(tmp_path / "ft.pth", "ft", load_ft_model("small", num_classes=10))
    with pytest.raises(UserError, match="fa_model_state_dict"):
        run_stage("--anonymizer", other)


def test_failing_epoch_fails_the_run(run_stage, monkeypatch):
    def broken(pictures, *_):
        return pictures * float("nan")

    monkeypatch.setattr(attribute_prediction, "augment_released", broken)
    with pytest.raises(UserError, match="not finite"):
        run_stage("--epochs", 3)
    assert not (config.RESULTS_ROOT / "privacy_tiny.json").exists()


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_resumed_run_equals_an_uninterrupted_one(run_stage, monkeypatch, schedule):
    options = ("--epochs", 5, "--schedule", schedule, "--precision", "fp32")
    whole = run_stage(*options, run_id="whole")
    save = TrainingState.save

    def save_and_stop(self, position):
        save(self, position)
        if len(position["history"]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_stage(*options, run_id="parts")
    monkeypatch.setattr(TrainingState, "save", save)
    torch.manual_seed(99)
    parts = run_stage(*options, "--resume", run_id="parts")
    assert parts["curve"] == whole["curve"]
    a, b = (load_checkpoint(config.SAVED_MODELS_ROOT / name / "attacker.pth") for name in ("whole", "parts"))
    for name, value in a["fb_model_state_dict"].items():
        assert torch.equal(value, b["fb_model_state_dict"][name]), name


def test_resume_with_other_parameters_is_refused(run_stage, monkeypatch):
    def stop(self, position):
        raise KeyboardInterrupt

    save = TrainingState.save
    monkeypatch.setattr(TrainingState, "save", lambda self, position: (save(self, position), stop(self, position)))
    with pytest.raises(KeyboardInterrupt):
        run_stage("--epochs", 3)
    with pytest.raises(UserError, match="image_learning_rate"):
        run_stage("--epochs", 3, "--image_learning_rate", 0.5, "--resume")


def test_one_unreadable_image_is_counted_and_named(run_stage, vispr_root):
    (vispr_root / "train2017" / "2017_00000003.jpg").write_bytes(b"no picture")
    run_stage("--epochs", 1)
    report = (config.SAVED_MODELS_ROOT / "tiny" / "unreadable.txt").read_text()
    assert "2017_00000003.jpg" in report
    result = read_json(config.RESULTS_ROOT / "privacy_tiny.json")
    assert result["unreadable"]["train"] == [str(vispr_root / "train2017" / "2017_00000003.jpg")]
    assert result["n_pictures"] == {"train": 47, "validation": 24, "test": 32}
    assert "1 pictures do not decode" in (config.RESULTS_ROOT / "privacy_tiny.md").read_text()
    with pytest.raises(UserError, match="unreadable"):
        run_stage("--epochs", 1, "--max_unreadable_share", 0.0)


def test_blacken_uses_the_boxes_file(run_stage, vispr_root, tmp_path):
    """The square is the only evidence of the colour; black boxes over it leave chance."""
    counts = {"train": 48, "val": 24, "test": 32}
    rows = [f"{s}2017/2017_{i:08d}.jpg,0,16,10,36,30" for s, n in counts.items() for i in range(n)]
    (vispr_root / "person_boxes.csv").write_text("\n".join(["file,frame,x0,y0,x1,y1", *rows]) + "\n")
    result = run_stage("--anonymizer", "blacken", "--epochs", 12)
    assert result["protocols"]["last"]["per_attribute"]["a17_color"] < 0.8


def test_max_steps_ends_the_training(run_stage):
    assert len(run_stage("--max_steps", 4)["curve"]) == 2


def test_attribute_with_one_label_only_is_refused(run_stage, vispr_root):
    for path in (vispr_root / "train2017").glob("*.json"):
        path.write_text('{"labels": ["a4_gender"]}')
    with pytest.raises(UserError, match="a17_color"):
        run_stage("--epochs", 1)


def test_cmyk_and_grey_pictures_are_taken(run_stage, vispr_root):
    for i, mode in enumerate(("CMYK", "L")):
        path = vispr_root / "test2017" / f"2017_{i:08d}.jpg"
        Image.open(path).convert(mode).save(path)
    assert run_stage("--epochs", 1)["protocols"]["last"]["cmap"] > 0


def test_raw_is_the_identity():
    frames = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_anonymizer("raw")(frames), frames)


def test_pictures_without_annotation_and_annotations_without_picture_are_named(
    run_stage, vispr_root, caplog, monkeypatch
):
    (vispr_root / "test2017" / "2017_00000005.json").unlink()
    (vispr_root / "val2017" / "2017_00000002.jpg").unlink()
    with pytest.raises(UserError, match="1 of 32 VISPR annotations are missing.*2017_00000005"):
        run_stage("--epochs", 1)
    monkeypatch.setattr(lists, "MAX_MISSING_SHARE", 0.1)  # one of 10,000 is below the real bound
    result = run_stage("--epochs", 1)
    assert result["n_pictures"] == {"train": 48, "validation": 23, "test": 31}
    assert "1 images have no annotation and are left out: 2017_00000005" in caplog.text
    assert "1 annotations have no image: " in caplog.text and "2017_00000002.jpg" in caplog.text


def test_unknown_attribute_lists_what_exists(run_stage):
    with pytest.raises(UserError, match="a99_shoe_size.*a17_color"):
        run_stage("--attributes", "a4_gender", "a99_shoe_size")


def test_attribute_without_positive_in_the_test_split_is_reported_and_not_averaged(run_stage, vispr_root):
    for path in (vispr_root / "test2017").glob("*.json"):
        labels = [name for name in read_json(path)["labels"] if name != "a4_gender"]
        path.write_text(json.dumps({"labels": labels}))
    result = run_stage("--epochs", 1)
    scores = result["protocols"]["last"]["per_attribute"]
    assert result["absent_attributes"]["test"] == ["a4_gender"] and scores["a4_gender"] is None
    known = [value for value in scores.values() if value is not None]
    assert len(known) == 6 and result["protocols"]["last"]["cmap"] == pytest.approx(np.mean(known))


def test_checkpoints_of_other_stages_are_refused(run_stage, tmp_path):
    fa = checkpoint_of(tmp_path / "fa.pth", "fa", load_fa_model("small"))
    with pytest.raises(UserError, match="fa.pth.*ft_model_state_dict"):
        run_stage("--level", "feature", "--utility", fa)
    with pytest.raises(UserError, match="fa.pth.*fb_model_state_dict"):
        run_stage("--attacker_weights", fa)
    run_stage("--epochs", 1)
    with pytest.raises(UserError, match="attacker.pth.*fa_model_state_dict"):
        run_stage("--anonymizer", config.SAVED_MODELS_ROOT / "tiny" / "attacker.pth", run_id="other")


def test_weights_that_do_not_fit_are_refused_before_any_picture_is_released(run_stage, tmp_path, monkeypatch):
    path = checkpoint_of(tmp_path / "fb.pth", "fb", load_fb_model("small", ssl=True))
    monkeypatch.setattr(train_privacy, "attack_splits", lambda *_: pytest.fail("pictures were released first"))
    with pytest.raises(UserError, match="does not fit"):
        run_stage("--attacker", "small_vit", "--attacker_weights", path)
