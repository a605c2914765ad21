"""The stage as a whole on tiny sets: what it learns and writes, how it fails and resumes."""

import itertools
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from aux_code import config
from aux_code.checkpoints import load_checkpoint, read_json, write_json
from aux_code.datasets import lists
from aux_code.datasets.vispr import VISPR1, VISPR2
from aux_code.metrics import attribute_metrics
from aux_code.model_loaders import load_budget, load_fa_model, load_fb_model, load_ft_model
from privacy_training import released_splits, train_privacy
from privacy_training.leakage_plots import MAX_LINES, sample_figure
from privacy_training.params_privacy import PRESETS, made_of
from privacy_training.released_images import TrainingImages


def weights_of(run_id: str) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(config.SAVED_MODELS_ROOT / run_id / "attacker.pth")
    return checkpoint["fb_model_state_dict"]


def test_learns_an_easy_attribute_but_none_that_is_chance_and_keeps_what_it_read(run_stage):
    run_stage("--epochs", 1, run_id="raw")
    compared = ("--plots", "--compare", config.RESULTS_ROOT / "privacy_raw.json")
    result = run_stage("--epochs", 12, *compared)
    scores = result["protocols"]["validation"]
    assert scores["per_attribute"]["a17_color"] > 0.95 > 0.8 > scores["per_attribute"]["a4_gender"]
    assert result["chance"]["per_attribute"]["a17_color"] == 0.5
    low, high = result["confidence_interval"]
    assert low < scores["cmap"] < high
    assert [entry["epoch"] for entry in result["curve"]] == list(range(1, 13))
    assert result["curve"][-1]["test_cmap"] == result["protocols"]["last"]["cmap"]
    assert result["inputs"]["fa"] == {"path": "raw", "sha256": ""}
    with np.load(config.RESULTS_ROOT / "privacy_tiny.npz") as saved:
        assert saved["probabilities"].shape == saved["labels"].shape == (32, 7)
        assert saved["names"][0] == "2017_00000000.jpg"
        last = attribute_metrics(saved["last"], saved["labels"]).cmap
        assert last == pytest.approx(result["protocols"]["last"]["cmap"])
    folder = config.SAVED_MODELS_ROOT / "tiny"
    assert load_budget(folder / "attacker.pth")(torch.rand(2, 3, 24, 24)).shape == (2, 7)
    assert not (folder / "privacy_state.pth").exists()
    for name in ("attributes", "samples"):
        with Image.open(config.RESULTS_ROOT / f"privacy_tiny_{name}.png") as image:
            assert min(image.size) > 100


@pytest.mark.parametrize("n_attributes", [7, 40])
def test_samples_show_their_attributes_below_each_other(n_attributes):
    """No line lies under another image or outside; of many attributes the present ones show."""
    names, truth = [f"a{i}" for i in range(n_attributes)], torch.zeros(5, n_attributes)
    truth[:, -1] = 1
    figure = sample_figure(torch.rand(5, 3, 8, 8), torch.rand(5, n_attributes), truth, names)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = [axes for axes in figure.axes if axes.images]
    images = [axes.images[0].get_window_extent(renderer) for axes in shown]
    assert len(shown) == 5
    for axes in shown:
        lines = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(lines) == min(n_attributes, MAX_LINES)
        assert axes.texts[-1].get_weight() == "bold"
        assert all(upper.y0 >= lower.y0 + 8 for upper, lower in itertools.pairwise(lines))
        assert not any(line.overlaps(image) for line in lines for image in images)


def test_grey_anonymizer_hides_the_colour(run_stage, checkpoint_of):
    """In the release the option that names an anonymizer has no effect on its own."""
    fa = load_fa_model("small", output_channels=1)
    torch.nn.init.zeros_(fa.network.mend.weight)
    result = run_stage("--anonymizer", checkpoint_of("fa", fa), "--epochs", 3)
    assert result["protocols"]["last"]["per_attribute"]["a17_color"] < 0.75
    assert len(result["inputs"]["fa"]["sha256"]) == 64


def test_feature_level(run_stage, checkpoint_of):
    path = checkpoint_of("ft", load_ft_model("small", num_classes=10, motion=False))
    options = ("--level", "feature", "--utility", path, "--feature_learning_rate", 5e-3)
    result = run_stage("--epochs", 30, *options)
    assert result["level"] == "feature"
    assert result["protocols"]["validation"]["per_attribute"]["a17_color"] > 0.9


FEATURES = "--level feature --utility {ft} "
MISTAKES = {
    "--level feature": "--utility",
    "--anonymizer ted_spad": "neither a file nor one of",
    "--attackers small small_vit --anonymizer nowhere.pth": "neither a file nor one of",
    "--anonymizer {ft}": "ft.pth.*fa_model_state_dict",
    "--anonymizer {fb}": "fb.pth.*fa_model_state_dict",
    "--level feature --utility {fa}": "fa.pth.*ft_model_state_dict",
    "--attacker_weights {fa}": "fa.pth.*fb_model_state_dict",
    "--attributes a4_gender a99_shoe_size": "a99_shoe_size.*a17_color",
    "--attacker linear_probe": "--attacker_weights",
    "--seeds 1 1": "once",
    "--attackers small small": "once",
    "--attributes a a": "once",
    FEATURES + "--attackers vit": "vit works on images",
    FEATURES + "--attackers linear_probe": "linear_probe works on images",
    FEATURES + "--attacker inversion": "inversion works on images",
    "--compare {other}": "other.json is no result",
}


@pytest.mark.parametrize("options, message", MISTAKES.items())
def test_what_is_missing_or_of_another_kind_is_refused(
    refused, checkpoint_of, tmp_path, options, message
):
    """The release evaluates an untrained anonymizer when it is given none."""
    nets = {"fa": load_fa_model("small"), "fb": load_fb_model("small")}
    nets["ft"] = load_ft_model("small", num_classes=10)
    files = {role: checkpoint_of(role, net) for role, net in nets.items()}
    write_json(tmp_path / "other.json", {})
    refused(message, *options.format(**files, other=tmp_path / "other.json").split())


def test_failing_epoch_fails_the_run(refused, monkeypatch):
    broken = torch.full((16, 3, 24, 24), torch.nan)
    monkeypatch.setattr(TrainingImages, "release", lambda *_: broken)
    refused("not finite", "--epochs", 3)
    assert not (config.RESULTS_ROOT / "privacy_tiny.json").exists()


AVERAGED = ("--schedule", "constant", "--weight_averaging", 0.5)
SCHEDULES = [("--schedule", "cosine"), ("--schedule", "plateau"), AVERAGED]


@pytest.mark.parametrize("learning", SCHEDULES)
def test_resumed_run_equals_an_uninterrupted_one(run_stage, interrupt, learning):
    options = ("--epochs", 5, *learning, "--precision", "fp32")
    whole = run_stage(*options, run_id="whole")
    interrupt(2, lambda: run_stage(*options))
    torch.manual_seed(99)
    assert run_stage(*options, "--resume")["curve"] == whole["curve"]
    torch.testing.assert_close(weights_of("tiny"), weights_of("whole"), rtol=0, atol=0)


def test_training_ends_at_the_plateau_of_the_averaged_weights(run_stage):
    """Evaluated and saved is the average; a plateau that allows any gain ends it at once."""
    plateau = ("--plateau_epochs", 2, "--plateau_gain", 1)
    at_once = ("--epochs", 9, *AVERAGED, "--evaluate_every", 1, *plateau)
    report = run_stage(*at_once)
    assert report["plateau"]["reached"] and report["plateau"]["last_epoch"] == 3
    assert len(report["curve"]) == 3
    assert len(run_stage(*at_once, "--least_epochs", 6, run_id="least")["curve"]) == 6
    unending = ("--epochs", 5, *AVERAGED, "--plateau_epochs", 4, "--plateau_gain", 0)
    assert len(run_stage(*unending, run_id="on")["curve"]) == 5
    run_stage("--epochs", 5, "--schedule", "constant", run_id="plain")
    averaged, plain = weights_of("on"), weights_of("plain")
    assert averaged.keys() == plain.keys()
    assert not torch.equal(averaged["fc.weight"], plain["fc.weight"])


def test_resume_with_something_else_is_refused(run_stage, interrupt, refused, checkpoint_of):
    """Once such an attack was trained anew without a word, over the finished result."""
    fa = load_fa_model("small")
    options = ("--epochs", 3, "--anonymizer", checkpoint_of("fa", fa))
    written = config.SAVED_MODELS_ROOT / "tiny" / "params_train_privacy.json"

    def refuse_others():
        before, rate = written.read_bytes(), ("--image_learning_rate", 0.5)
        refused("image_learning_rate: 0.004, now 0.5", *options, *rate, "--resume")
        torch.manual_seed(99)
        checkpoint_of("fa", load_fa_model("small"))
        refused("fa: another file.*--run_id", *options, "--resume")
        checkpoint_of("fa", fa)
        assert written.read_bytes() == before, "parameters are written once they are accepted"

    interrupt(2, lambda: run_stage(*options))
    refuse_others()
    first = run_stage(*options, "--resume")
    refuse_others()
    assert run_stage(*options, "--resume") == first


def test_a_costly_result_is_replaced_only_if_asked(run_stage, interrupt, refused):
    first = run_stage("--epochs", 1)
    write_json(config.RESULTS_ROOT / "privacy_tiny.json", {**first, "seconds": 700})
    refused("12 minutes.*epochs: 1, now 2.*--overwrite", "--epochs", 2)
    assert len(run_stage("--epochs", 2, "--overwrite")["curve"]) == 2
    interrupt(2, lambda: run_stage("--epochs", 3))
    run_stage("--epochs", 1)
    assert (config.SAVED_MODELS_ROOT / "tiny" / "privacy_state.set_aside.pth").is_file()


def test_what_an_attack_is_made_of(vispr_root, checkpoint_of, tmp_path):
    """Files by content, and only those that it reads; what changes no result is left out."""
    path = checkpoint_of("fb", load_fb_model("small", ssl=True))

    def recipe(**changes):
        return made_of(type(PRESETS["miniature"])(device="cpu", precision="fp32", **changes))

    plain = recipe()
    assert plain.inputs == {"fa": {"path": "raw", "sha256": ""}} and plain.data.keys() == {"VISPR"}
    assert plain.in_force == {"precision": "fp32"}
    assert plain == recipe(run_id="x", resume=True, n_workers=1, plots=False, probe_weights=path)
    probe = recipe(attacker="linear_probe", probe_weights=path, attacker_weights=tmp_path / "none")
    assert len(probe.inputs["attacker"]["sha256"]) == 64 and "seed" in probe.parameters
    (vispr_root / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\n")
    assert recipe(anonymizer="blur").inputs["boxes"]["sha256"]


def test_cmyk_and_grey_images_are_taken_and_unreadable_ones_counted_and_named(
    run_stage, refused, vispr_root
):
    for i, mode in enumerate(("CMYK", "L")):
        path = vispr_root / "test2017" / f"2017_{i:08d}.jpg"
        Image.open(path).convert(mode).save(path)
    path = vispr_root / "train2017" / "2017_00000003.jpg"
    path.write_bytes(b"no picture")
    result = run_stage("--max_steps", 4)
    assert len(result["curve"]) == 2 and result["protocols"]["last"]["cmap"] > 0
    assert path.name in (config.SAVED_MODELS_ROOT / "tiny" / "unreadable.txt").read_text()
    assert result["unreadable"]["train"] == [str(path)]
    assert result["n_pictures"] == {"train": 47, "validation": 24, "test": 32}
    assert "1 images do not decode" in (config.RESULTS_ROOT / "privacy_tiny.md").read_text()
    refused("unreadable", "--max_unreadable_share", 0.0)
    for path in (vispr_root / "val2017").glob("*.jpg"):
        path.write_bytes(b"no picture")
    refused("val: no image decodes", "--max_unreadable_share", 1.0)


def test_blacken_uses_the_boxes_file(run_stage, vispr_root):
    """The square is the only evidence of the colour; black boxes over it leave chance."""
    files = sorted(path.relative_to(vispr_root) for path in vispr_root.glob("*/*.jpg"))
    rows = ["file,frame,x0,y0,x1,y1", *(f"{file},0,16,10,36,30" for file in files)]
    (vispr_root / "person_boxes.csv").write_text("\n".join(rows) + "\n")
    result = run_stage("--anonymizer", "blacken", "--epochs", 12)
    assert result["protocols"]["last"]["per_attribute"]["a17_color"] < 0.8


def test_what_has_no_annotation_or_no_image_is_named(
    run_stage, refused, vispr_root, caplog, monkeypatch
):
    (vispr_root / "test2017" / "2017_00000005.json").unlink()
    (vispr_root / "val2017" / "2017_00000002.jpg").unlink()
    refused("1 of 32 VISPR annotations are missing.*2017_00000005")
    monkeypatch.setattr(lists, "MAX_MISSING_SHARE", 0.1)  # one of 10,000 is below the real bound
    result = run_stage("--epochs", 1)
    assert result["n_pictures"] == {"train": 48, "validation": 23, "test": 31}
    assert "1 images have no annotation and are left out: 2017_00000005" in caplog.text
    assert "1 annotations have no image: " in caplog.text and "2017_00000002.jpg" in caplog.text


def test_without_val2017_a_tenth_of_train_chooses_the_epoch(run_stage, vispr_root):
    shutil.rmtree(vispr_root / "val2017")
    result = run_stage("--epochs", 1)
    assert result["n_pictures"] == {"train": 44, "validation": 4, "test": 32}


def test_every_split_is_opened_before_an_image_is_released(refused, vispr_root, monkeypatch):
    """Hours of releases were lost where the last split turned out to be missing."""
    shutil.rmtree(vispr_root / "test2017")
    early = Mock(side_effect=AssertionError("images were released first"))
    monkeypatch.setattr(released_splits, "release_images", early)
    refused("test2017 holds no images")


def relabel(folder, change) -> None:
    """Rewrites the labels of every annotation of a split: change(names, index) -> names."""
    for i, path in enumerate(sorted(folder.glob("*.json"))):
        path.write_text(json.dumps({"labels": change(read_json(path)["labels"], i)}))


def test_labels_from_which_nothing_follows_are_refused(refused, vispr_root):
    relabel(vispr_root / "test2017", lambda names, i: ["a1_age_approx"])
    refused("test2017: no image has any of a17_color")
    relabel(vispr_root / "train2017", lambda names, i: ["a4_gender"])
    refused("every image has the same label of.*a17_color")


def test_all_takes_what_can_be_learned_and_reports_the_rest(run_stage, vispr_root):
    relabel(vispr_root / "test2017", lambda names, i: [*names, "a73_landmark"] if i < 3 else names)
    result = run_stage("--epochs", 1, "--attributes", "all")
    assert result["absent_attributes"]["train"] == ["a73_landmark"]
    names = list(result["chance"]["per_attribute"])
    assert sorted(names) == sorted(VISPR1), "a0_safe is nothing private"


def test_the_second_set_of_attributes(run_stage, refused, vispr_root):
    options = ("--epochs", 1, "--attributes", "vispr2")
    refused("a6_hair_color, a16_race.*the annotations have a0_safe", *options)

    def second_set(names, i):
        return [name for k, name in enumerate(VISPR2) if (i >> k % 3) & 1] or ["a0_safe"]

    for folder in vispr_root.glob("*2017"):
        relabel(folder, second_set)
    result = run_stage(*options)
    assert tuple(result["protocols"]["last"]["per_attribute"]) == VISPR2
    assert "Other attributes" in (config.RESULTS_ROOT / "privacy_tiny.md").read_text()


@pytest.mark.parametrize("attacker", ["small_vit", "r50"])
def test_weights_that_do_not_fit_are_refused_at_once(refused, checkpoint_of, monkeypatch, attacker):
    path = checkpoint_of("fb", load_fb_model("small", ssl=True))
    early = Mock(side_effect=AssertionError("images were released first"))
    monkeypatch.setattr(train_privacy, "attack_splits", early)
    folder = config.SAVED_MODELS_ROOT / "tiny"
    folder.mkdir(parents=True)
    (folder / "privacy_state.pth").write_bytes(b"of days")
    refused("does not fit", "--attacker", attacker, "--attacker_weights", path)
    assert [path.name for path in folder.iterdir()] == ["privacy_state.pth"]
