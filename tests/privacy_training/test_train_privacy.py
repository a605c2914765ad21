"""The stage as a whole on tiny sets: what it learns, what it writes, how it fails and how it
resumes."""

import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from aux_code import config
from aux_code.checkpoints import load_checkpoint, read_json, save_checkpoint
from aux_code.datasets import lists
from aux_code.datasets.vispr import VISPR2
from aux_code.errors import UserError
from aux_code.model_loaders import (
    load_anonymizer,
    load_budget,
    load_fa_model,
    load_fb_model,
    load_ft_model,
)
from aux_code.training_state import TrainingState
from privacy_training import attribute_prediction, leakage_plots, train_privacy
from privacy_training.attribute_prediction import build_average
from privacy_training.leakage_plots import plot_samples
from privacy_training.params_privacy import PrivacyParams


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


@pytest.mark.parametrize("n_attributes", [7, 40])
def test_samples_show_their_attributes_below_each_other(n_attributes, monkeypatch):
    """No line may lie under another picture or outside; of many attributes the present ones are
    shown."""
    figures = []
    monkeypatch.setattr(leakage_plots, "_save", lambda figure, path: figures.append(figure))
    names = [f"a{i}" for i in range(n_attributes)]
    truth = torch.zeros(5, n_attributes)
    truth[:, -1] = 1
    plot_samples(None, torch.rand(5, 3, 8, 8), torch.rand(5, n_attributes), truth, names)
    (figure,) = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = [axes for axes in figure.axes if axes.images]
    pictures = [axes.images[0].get_window_extent(renderer) for axes in shown]
    assert len(shown) == 5
    for axes in shown:
        lines = [text.get_window_extent(renderer) for text in axes.texts]
        assert (
            len(lines) == min(n_attributes, leakage_plots.MAX_LINES)
            and axes.texts[-1].get_weight() == "bold"
        )
        assert all(upper.y0 >= lower.y0 + 8 for upper, lower in itertools.pairwise(lines))
        assert not any(line.overlaps(picture) for line in lines for picture in pictures)


def test_grey_anonymizer_hides_the_colour(run_stage, tmp_path):
    """In the release the option that names an anonymizer has no effect on its own."""
    fa = load_fa_model("small", output_channels=1)
    path = checkpoint_of(tmp_path / "fa.pth", "fa", fa)
    with torch.no_grad():
        fa.network.mend.weight.zero_()
    blank = checkpoint_of(tmp_path / "blank.pth", "fa", fa)
    assert (
        run_stage("--anonymizer", blank, "--epochs", 3)["protocols"]["last"]["per_attribute"][
            "a17_color"
        ]
        < 0.75
    )
    assert (
        len(run_stage("--anonymizer", path, "--epochs", 1, run_id="grey")["inputs"]["fa"]["sha256"])
        == 64
    )


def test_feature_level(run_stage, tmp_path):
    ft = load_ft_model("small", num_classes=10, motion=False)
    path = checkpoint_of(tmp_path / "ft.pth", "ft", ft)
    result = run_stage(
        "--level", "feature", "--utility", path, "--epochs", 30, "--feature_learning_rate", 5e-3
    )
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


AVERAGED = ("--schedule", "constant", "--weight_averaging", 0.5)


@pytest.mark.parametrize(
    "learning", [("--schedule", "cosine"), ("--schedule", "plateau"), AVERAGED]
)
def test_resumed_run_equals_an_uninterrupted_one(run_stage, monkeypatch, learning):
    options = ("--epochs", 5, *learning, "--precision", "fp32")
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
    a, b = (
        load_checkpoint(config.SAVED_MODELS_ROOT / name / "attacker.pth")
        for name in ("whole", "parts")
    )
    for name, value in a["fb_model_state_dict"].items():
        assert torch.equal(value, b["fb_model_state_dict"][name]), name


def test_training_ends_at_the_plateau_of_the_averaged_weights(run_stage):
    """Evaluated, saved and judged is the average; a plateau that allows any gain ends the training
    at once."""
    at_once = (
        "--epochs",
        9,
        *AVERAGED,
        "--evaluate_every",
        1,
        "--plateau_epochs",
        2,
        "--plateau_gain",
        1,
    )
    report = run_stage(*at_once)
    assert report["plateau"]["reached"] and report["plateau"]["last_epoch"] == 3 == len(
        report["curve"]
    )
    assert len(run_stage(*at_once, "--least_epochs", 6, run_id="least")["curve"]) == 6
    unending = run_stage(
        "--epochs", 5, *AVERAGED, "--plateau_epochs", 4, "--plateau_gain", 0, run_id="on"
    )
    assert len(unending["curve"]) == 5
    averaged, plain = (
        load_checkpoint(config.SAVED_MODELS_ROOT / run_id / "attacker.pth")["fb_model_state_dict"]
        for run_id in (
            "on",
            run_stage("--epochs", 5, "--schedule", "constant", run_id="plain")["run_id"],
        )
    )
    assert averaged.keys() == plain.keys()
    assert not torch.equal(averaged["fc.weight"], plain["fc.weight"])


def test_running_average_by_hand():
    params = PrivacyParams(weight_averaging=0.75)
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = build_average(net, params)
    seen = []
    for value in (1.0, 3.0, -2.0):
        torch.nn.init.constant_(net[0].weight, value)
        net[1].running_mean.fill_(2 * value)
        average.update_parameters(net)
        seen.append((average.module[0].weight.item(), average.module[1].running_mean.item()))
    expected = [1.0, 0.75 + 0.25 * 3, 0.75 * 1.5 - 0.25 * 2]
    assert seen == [(pytest.approx(e), pytest.approx(2 * e)) for e in expected]
    assert build_average(net, PrivacyParams()) is None


def test_resume_with_other_parameters_is_refused(run_stage, monkeypatch):
    def stop(self, position):
        raise KeyboardInterrupt

    save = TrainingState.save
    monkeypatch.setattr(
        TrainingState, "save", lambda self, position: (save(self, position), stop(self, position))
    )
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
    (vispr_root / "person_boxes.csv").write_text(
        "\n".join(["file,frame,x0,y0,x1,y1", *rows]) + "\n"
    )
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


def test_attribute_without_positive_in_the_test_split_is_reported_and_not_averaged(
    run_stage, vispr_root
):
    for path in (vispr_root / "test2017").glob("*.json"):
        labels = [name for name in read_json(path)["labels"] if name != "a4_gender"]
        path.write_text(json.dumps({"labels": labels}))
    result = run_stage("--epochs", 1)
    scores = result["protocols"]["last"]["per_attribute"]
    assert result["absent_attributes"]["test"] == ["a4_gender"] and scores["a4_gender"] is None
    known = [value for value in scores.values() if value is not None]
    assert len(known) == 6 and result["protocols"]["last"]["cmap"] == pytest.approx(np.mean(known))


def relabel(folder, change) -> None:
    """Rewrites the labels of every annotation of a split: change(names, index) -> names."""
    for i, path in enumerate(sorted(folder.glob("*.json"))):
        path.write_text(json.dumps({"labels": change(read_json(path)["labels"], i)}))


def test_a_split_without_any_of_the_attributes_is_refused(run_stage, vispr_root):
    relabel(vispr_root / "test2017", lambda names, i: ["a1_age_approx"])
    with pytest.raises(UserError, match="test2017: no image has any of a17_color"):
        run_stage("--epochs", 1)


def test_all_takes_what_can_be_learned_and_reports_the_rest(run_stage, vispr_root):
    relabel(vispr_root / "test2017", lambda names, i: [*names, "a73_landmark"] if i < 3 else names)
    result = run_stage("--epochs", 1, "--attributes", "all")
    assert result["absent_attributes"]["train"] == ["a73_landmark"]
    names = list(result["chance"]["per_attribute"])
    assert names[0] == "a0_safe" and names[-1] == "a65_rel_social" and "a73_landmark" not in names


def test_the_second_set_of_attributes(run_stage, vispr_root):
    with pytest.raises(
        UserError,
        match="unknown VISPR attributes a6_hair_color, a16_race.*the annotations have a0_safe",
    ):
        run_stage("--epochs", 1, "--attributes", "vispr2")
    for folder in vispr_root.glob("*2017"):
        relabel(
            folder,
            lambda names, i: (
                [name for k, name in enumerate(VISPR2) if (i >> k % 3) & 1] or ["a0_safe"]
            ),
        )
    result = run_stage("--epochs", 1, "--attributes", "vispr2")
    assert tuple(result["protocols"]["last"]["per_attribute"]) == VISPR2
    assert "Other attributes" in (config.RESULTS_ROOT / "privacy_tiny.md").read_text()


def test_pictures_of_which_none_decodes_end_the_run(run_stage, vispr_root):
    for path in (vispr_root / "val2017").glob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="val: no image decodes"):
        run_stage("--epochs", 1, "--max_unreadable_share", 1.0)


def test_checkpoints_of_other_stages_are_refused(run_stage, tmp_path):
    fa = checkpoint_of(tmp_path / "fa.pth", "fa", load_fa_model("small"))
    with pytest.raises(UserError, match="fa.pth.*ft_model_state_dict"):
        run_stage("--level", "feature", "--utility", fa)
    with pytest.raises(UserError, match="fa.pth.*fb_model_state_dict"):
        run_stage("--attacker_weights", fa)
    run_stage("--epochs", 1)
    with pytest.raises(UserError, match="attacker.pth.*fa_model_state_dict"):
        run_stage(
            "--anonymizer", config.SAVED_MODELS_ROOT / "tiny" / "attacker.pth", run_id="other"
        )


def test_weights_that_do_not_fit_are_refused_before_any_picture_is_released(
    run_stage, tmp_path, monkeypatch
):
    path = checkpoint_of(tmp_path / "fb.pth", "fb", load_fb_model("small", ssl=True))
    monkeypatch.setattr(
        train_privacy, "attack_splits", lambda *_: pytest.fail("pictures were released first")
    )
    with pytest.raises(UserError, match="does not fit"):
        run_stage("--attacker", "small_vit", "--attacker_weights", path)
