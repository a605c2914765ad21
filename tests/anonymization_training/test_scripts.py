"""The four scripts on a tiny rendering: what they write, how they resume, how they refuse."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anonymization_training import (
    evaluate_utility,
    init_anonymizer,
    init_privacy,
    init_utility,
    minimax,
)
from anonymization_training import params_anonymization as presets
from anonymization_training import train_anonymizer as trainer
from anonymization_training.training_batches import load_training_data
from aux_code import config
from aux_code.artefacts import differences, is_current, record_of, sha256
from aux_code.checkpoints import load_checkpoint, read_json
from aux_code.datasets.digest import dataset_digest
from aux_code.errors import UserError
from aux_code.model_loaders import (
    load_anonymizer,
    load_budget,
    load_fa_model,
    load_fb_model,
    load_ft_model,
    load_utility,
)
from aux_code.parameters import parse
from aux_code.runs import run_script
from tests.anonymization_training.conftest import TINY, naming, point_config_to, same_weights
from tests.datasets.media import write_lines, write_video
from tests.fill import layout, shapes

SHORT = (*TINY, "--max_steps", "4", "--minutes_between_saves", "0")
"""Three batches are an epoch: four steps of minimax (two epochs), three of settling, a save after
each."""
STATE = "train_anonymizer_state.pth"
RESULTS = ["best.pth", "last.pth", "params_train_anonymizer.json"]


@pytest.fixture
def train(inits, artifacts):
    """train(run_id, *options) runs train_anonymizer.py for a few steps; the folder it wrote."""

    def run(run_id: str, *options: str) -> Path:
        trainer.main([*SHORT, *naming(inits), "--run_id", run_id, *options])
        return artifacts / "saved_models" / run_id

    return run


def test_the_initialisations_write_what_the_minimax_starts_from(inits):
    images = torch.rand(2, 3, 24, 24)
    assert load_anonymizer(inits["init_fa"])(images).shape == images.shape
    logits, embedding = load_utility(inits["init_ft"])(torch.rand(1, 3, 8, 24, 24))
    assert logits.ndim == embedding.ndim == 2
    torch.testing.assert_close(load_budget(inits["init_fb"])(images).norm(dim=1), torch.ones(2))
    quality = {"init_fa": "psnr", "init_ft": "validation_top1", "init_fb": "nt_xent_accuracy"}
    for role, path in inits.items():
        meta = load_checkpoint(path)["meta"]
        assert meta["parameters"]["max_steps"] == 3 and meta["parameters"]["preset"] == "miniature"
        counts = {"ft_steps", "ft_clips"} if role == "init_ft" else set()
        assert set(meta["metrics"]) == {quality[role]} | counts and meta["seconds"] > 0
        assert set(meta["architectures"]) == {role.removeprefix("init_")}
        script = path.parent.name.removesuffix("_miniature")
        assert {p.name for p in path.parent.iterdir()} == {path.name, f"params_{script}.json"}


def test_utility_trains_on_obfuscated_persons(artifacts):
    saved = artifacts / "saved_models"

    def inputs_after_a_step(*options: str) -> dict:
        init_utility.main([*TINY, "--max_steps", "1", "--run_id", "mine", *options])
        return load_checkpoint(saved / "mine" / "ft_action.pth")["meta"]["inputs"]

    boxes = config.UCF101_ROOT / "person_boxes.csv"
    inputs = inputs_after_a_step("--anonymizer", "blacken")
    assert inputs["anonymizer"] == {"path": "blacken", "sha256": ""}
    assert inputs["person_boxes"] == {"path": str(boxes), "sha256": sha256(boxes)}
    init_anonymizer.main([*TINY, "--max_steps", "1", "--preset", "miniature_ted_spad_plus"])
    narrow = saved / "init_anonymizer_miniature_ted_spad_plus" / "fa_recon.pth"
    inputs = inputs_after_a_step("--anonymizer", str(narrow))
    assert inputs["anonymizer"]["sha256"] == sha256(narrow) and "person_boxes" not in inputs


def test_a_row_goes_on_from_the_start_and_counts_all_that_its_f_t_saw(inits, artifacts, train):
    start = load_checkpoint(inits["init_ft"])["meta"]
    batch, given = start["parameters"]["batch_videos"], ["--init_weights", str(inits["init_ft"])]
    assert start["metrics"]["ft_steps"] == 3 and start["metrics"]["ft_clips"] == 3 * batch
    row = [*TINY, "--preset", "miniature_row", "--run_id", "row", "--max_steps", "2"]
    init_utility.main([*row, "--anonymizer", "mosaic4_grey_noise0.05", *given])
    content = load_checkpoint(artifacts / "saved_models" / "row" / "ft_action.pth")
    own, counts = content["meta"]["parameters"]["batch_videos"], content["meta"]["metrics"]
    assert (counts["ft_steps"], counts["ft_clips"]) == (5, 3 * batch + 2 * 3 * own)
    head = "ft_model_state_dict"
    before = load_checkpoint(inits["init_ft"])[head]
    moved = [(before[name] - value.float()).abs().max() for name, value in content[head].items()
             if value.is_floating_point() and "running" not in name]  # fmt: skip
    assert 0 < max(moved) < 0.02, "two steps from the start, not random weights"
    for preset, clips in (("miniature", 3), ("miniature_spact", 3), ("miniature_invariance_1", 2)):
        saved = load_checkpoint(train(preset, "--preset", preset, "--max_steps", "1") / "last.pth")
        counts, videos = saved["meta"]["metrics"], saved["meta"]["parameters"]["batch_videos"]
        assert counts["ft_steps"] == 3 + 2 and counts["ft_clips"] == 3 * batch + 2 * clips * videos


@pytest.mark.parametrize("script", [init_anonymizer, init_utility, init_privacy])
def test_interrupted_initialisations_resume_to_the_same_network(
    inits, artifacts, interrupt, script
):
    options = [*TINY, "--max_steps", "3", "--minutes_between_saves", "0", "--run_id", "resumed"]
    interrupt(2, lambda: script.main(options))
    script.main([*options, "--resume"])
    stage = script.__name__.split(".")[-1]
    whole = next(path for path in inits.values() if path.parent.name.startswith(stage))
    same_weights(whole, artifacts / "saved_models" / "resumed" / whole.name)


INTERRUPTIONS = [
    # run_id, signal, file, n-th write, moment; expected exit code
    (["half a state", "SIGKILL", STATE, 2, "before"], -9),
    (["after best", "SIGKILL", "best.pth", 1, "after"], -9),
    (["settling", "SIGKILL", STATE, 6, "after"], -9),
    (["after last", "SIGKILL", "last.pth", 1, "after"], -9),
    (["ctrl-c", "SIGINT", STATE, 3, "before"], 130),
    (["terminated in settling", "SIGTERM", STATE, 5, "after"], 143),
]


def test_train_anonymizer_resumes_bit_for_bit_from_wherever_it_was_ended(inits, environment, train):
    script = str(Path(__file__).with_name("interrupted_runs.py"))
    ended = subprocess.run(
        [sys.executable, script, *SHORT, *naming(inits)],
        input=json.dumps([runs for runs, _ in INTERRUPTIONS]),
        **{"env": environment, "capture_output": True, "text": True, "timeout": 540},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    codes = json.loads(ended.stdout.splitlines()[-1])
    assert codes == [code for _, code in INTERRUPTIONS], ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr and ended.stderr.count("--resume goes on") == 2

    whole = train("whole")
    assert sorted(p.name for p in whole.iterdir()) == RESULTS
    assert list((config.LOGS_ROOT / "whole").iterdir())
    meta = load_checkpoint(whole / "last.pth")["meta"]
    digests = {role: entry["sha256"] for role, entry in meta["inputs"].items()}
    assert digests == {role: sha256(path) for role, path in inits.items()}
    assert set(meta["metrics"]) == {"top1", "nt_xent_accuracy", "ft_steps", "ft_clips"}
    assert set(meta["architectures"]) == {"fa", "ft", "fb"}
    for role, load in zip(inits, (load_anonymizer, load_utility, load_budget)):
        before, after = (load(p).state_dict() for p in (inits[role], whole / "last.pth"))
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before), role

    for (run_id, *_), _ in INTERRUPTIONS:
        assert (whole.parent / run_id / STATE).is_file()
        folder = train(run_id, "--resume")
        for name in ("last.pth", "best.pth"):
            same_weights(whole / name, folder / name)
        assert sorted(p.name for p in folder.iterdir()) == RESULTS
    last = (folder / "last.pth").stat().st_mtime_ns
    train(run_id, "--resume")  # nothing left to do
    assert (folder / "last.pth").stat().st_mtime_ns == last


def test_every_seed_holds_out_the_same_videos(artifacts):
    """A network of one seed may start the training of another one."""
    asked = (parse(presets.INIT_UTILITY, [*TINY, "--seed", seed]) for seed in "012")
    held_out = [load_training_data(params, with_images=False).validation.items for params in asked]
    assert held_out[0] == held_out[1] == held_out[2]


def test_frames_of_a_video_as_positives_need_no_image(train, monkeypatch):
    monkeypatch.setattr(trainer, "image_source", None)
    train("frames", "--budget_positives", "frames", "--max_steps", "1")
    events = EventAccumulator(str(config.LOGS_ROOT / "frames")).Reload()
    assert len(events.Scalars("step1/budget")) == len(events.Scalars("step2/budget")) == 1


def test_a_run_in_turns_updates_the_anonymizer_in_every_second_step(train):
    train("turns", "--alternate", "batches", "--settle_epochs", "0")
    events = EventAccumulator(str(config.LOGS_ROOT / "turns")).Reload()
    assert [event.step for event in events.Scalars("step1/total")] == [1, 3]


def refuse(main, named: list[str], capsys) -> None:
    """The script ends with status 2 and one line that holds these words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and len(error.splitlines()) == 1 and error.startswith("error: ")
    assert all(word in error for word in named), error


PAPERS = ["starts from", "none", "conv1.weight, layer1", "checkpoint of"]
MISTAKES = [
    (trainer, "", ["--init_fa", "init_anonymizer.py"]),
    (trainer, "--init_fa nowhere.pth", ["--init_fa", "nowhere.pth"]),
    (init_utility, "--anonymizer pixelate", ["pixelate", "blacken"]),
    (init_utility, "--init_weights none.pth", ["none.pth"]),
    (init_utility, "--preset paper", ["Kinetics-400", *PAPERS]),
    (init_utility, "--preset release", ["Kinetics-400", *PAPERS]),
    (init_privacy, "--preset paper", ["SimCLR", *PAPERS]),
    (init_privacy, "--preset paper --init_weights r3d_18", ["r3d_18", "resnet50"]),
    (evaluate_utility, "--preset miniature", ["--checkpoint"]),
    (init_utility, "--anonymizer blur --boxes none.csv", ["none.csv"]),
    (init_anonymizer, "--fa_arch vae", ["vae", "unet++"]),
    (init_anonymizer, "--size 8", ["--size must be at least 9", "small"]),
    (
        init_utility,
        "--ft_arch mvitv2 --size 256",
        ["mvitv2: f_T takes", "224, 224; change", "--size"],
    ),
    (init_anonymizer, "", ["UCF101_ROOT", "/nothing"]),
    (init_privacy, "", ["VISPR_ROOT", "/nothing"]),
]


@pytest.mark.parametrize("script, options, named", MISTAKES)
def test_mistakes_are_one_line_and_status_2(artifacts, monkeypatch, capsys, script, options, named):
    if named[-1] == "/nothing":
        monkeypatch.setattr(config, named[0], artifacts / "nothing")
    words = options.split() if "--preset" in options else [*TINY, *options.split()]
    refuse(lambda: script.main(words), named, capsys)


@pytest.mark.parametrize(
    "options, named", [(["--preset", "tiny"], "miniature_spact"), (["--omegga", "1"], "--omega")]
)
def test_unknown_presets_and_options_list_what_exists(artifacts, capsys, options, named):
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: trainer.main(options))
    captured = capsys.readouterr()
    assert caught.value.code == 2 and named in captured.out + captured.err


@pytest.mark.parametrize(
    "role, network, named",
    [
        ("init_ft", load_ft_model("small", num_classes=400), "400 outputs"),
        ("init_fb", load_fb_model("small"), "no projection head"),
    ],
)
def test_networks_of_the_wrong_kind_are_refused_with_what_fits(
    train, artifacts, capsys, role, network, named
):
    file, part = artifacts / "other.pth", role.removeprefix("init_")
    meta = {"architectures": {part: network.architecture}}
    torch.save({f"{part}_model_state_dict": network.state_dict(), "meta": meta}, file)
    words = [f"--{role} {file}", named, ".py, which adapts weights by --init_weights"]
    refuse(lambda: train("wrong", f"--{role}", str(file)), words, capsys)


def test_an_initialisation_of_no_epochs_hands_given_weights_on(inits, artifacts, capsys):
    for script, given in zip((init_anonymizer, init_utility, init_privacy), inits.values()):
        options = ["--epochs", "0", "--init_weights", str(given), "--run_id", "same"]
        script.main([*TINY, *options])
        written = load_checkpoint(config.SAVED_MODELS_ROOT / "same" / given.name)
        assert written["meta"]["inputs"]["init_weights"]["sha256"] == sha256(given)
        role = next(iter(written["meta"]["architectures"])) + "_model_state_dict"
        for name, value in load_checkpoint(given)[role].items():
            assert torch.equal(written[role][name], value), (role, name)
    assert capsys.readouterr().out.count(": not trained") == 2


@pytest.mark.parametrize("script", [init_anonymizer, init_utility, init_privacy])
def test_what_an_initialisation_refuses_leaves_its_folder_as_it_was(script, inits, artifacts):
    """A state of days and the parameters beside it, when a file is mistyped."""
    folder = artifacts / "saved_models" / "mine"
    folder.mkdir(parents=True)
    name = script.__name__.rsplit(".", 1)[-1]
    kept = {script.STATE: b"a state", f"params_{name}.json": b"{}"}
    for file, content in kept.items():
        (folder / file).write_bytes(content)
    wrong = inits["init_fa" if script is init_privacy else "init_fb"]
    with pytest.raises(UserError, match=wrong.name):
        script.main([*TINY, "--run_id", "mine", "--init_weights", str(wrong)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_without_held_out_videos_accuracies_are_the_test_lists_and_named_so(train, capsys):
    folder = train("all", "--validation_fraction", "0", "--max_steps", "1")
    assert {"last.pth", "best_on_test.pth"} < {path.name for path in folder.iterdir()}
    last = folder / "last.pth"
    metrics = load_checkpoint(last)["meta"]["metrics"]
    assert {"test_top1", "nt_xent_accuracy"} <= set(metrics) and "top1" not in metrics
    options = ["--checkpoint", str(last), "--anonymizer", str(last), "--run_id", "test"]
    capsys.readouterr()
    evaluate_utility.main([*TINY[:6], *options])
    result = read_json(config.RESULTS_ROOT / "utility_test.json")
    assert result["top1"] == metrics["test_top1"] and result["list"] == "testlist01"
    assert result["inputs"]["checkpoint"]["sha256"] == sha256(last)
    assert f"{result['n_videos']} videos of testlist01" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_files(train, monkeypatch, capsys):
    monkeypatch.setattr(minimax, "nt_xent_loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: train("nan"))
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and not (config.SAVED_MODELS_ROOT / "nan" / "last.pth").exists()
    assert all(word in error for word in ("step 0", "step1/", ".avi", ".jpg"))


def test_a_state_goes_on_with_what_it_was_made_of_and_nothing_else(
    inits, artifacts, train, interrupt, capsys
):
    copies = {role: Path(shutil.copy(path, artifacts)) for role, path in inits.items()}
    options = naming(copies)
    interrupt(1, lambda: train("mine", *options))
    parameters = config.SAVED_MODELS_ROOT / "mine" / "params_train_anonymizer.json"
    described = read_json(parameters)
    resume = [*options, "--resume"]
    changed = ["omega: 0.1, now 0.5", "--run_id"]
    refuse(lambda: train("mine", *resume, "--omega", "0.5"), changed, capsys)
    torch.save(load_checkpoint(copies["init_ft"]) | {"epoch": 99}, copies["init_ft"])
    refuse(lambda: train("mine", *resume), ["init_ft: another file"], capsys)
    wrong = naming(copies | {"init_fb": copies["init_fa"]})
    refuse(lambda: train("mine", *wrong), ["fa_recon.pth"], capsys)
    assert (parameters.parent / STATE).is_file(), "a wrong file moves no state"
    assert read_json(parameters) == described
    train("mine", "--resume")  # equal files under other names are the same inputs
    refuse(lambda: train("mine", *resume), ["last.pth", "init_ft: another file"], capsys)

    interrupt(1, lambda: train("mine"))
    folder = train("mine", "--max_steps", "1")  # without --resume: the state is set aside
    kept = {"train_anonymizer_state.set_aside.pth", *RESULTS}
    assert {p.name for p in folder.iterdir()} == kept
    refuse(lambda: train("mine", "--resume"), ["max_steps: 1, now 4"], capsys)


def test_a_result_knows_its_data_and_the_precision_in_force(
    inits, tiny_data, artifacts, monkeypatch
):
    """What --resume and reproduce.py ask; nothing is trained."""
    ucf101, vispr = (shutil.copytree(tiny_data / n, artifacts / n) for n in ("UCF101", "VISPR"))
    monkeypatch.setattr(config, "UCF101_ROOT", ucf101)
    monkeypatch.setattr(config, "VISPR_ROOT", vispr)
    scripts = (presets.INIT_ANONYMIZER, presets.INIT_UTILITY, presets.INIT_PRIVACY)
    asked = {role: parse(p, [*TINY, "--max_steps", "3"]) for role, p in zip(inits, scripts)}

    def found(role: str, **changed) -> list[str]:
        return differences(record_of(inits[role]), presets.made_of(replace(asked[role], **changed)))

    (ucf101 / "Videos" / "note.txt").write_text("an extra file")
    for role, params in asked.items():
        same = presets.made_of(replace(params, n_workers=3, run_id="other"))
        assert is_current(inits[role], same)
        now = same.in_force["precision"]
        other = "fp32" if now == "bf16" else "bf16"
        assert found(role, precision=other) == [f"precision in force: {now}, now {other}"]
    video = next((ucf101 / "Videos").glob("*/*.avi"))
    video.write_bytes(video.read_bytes() + b"0")
    next((vispr / "train2017").glob("*.jpg")).unlink()
    dataset_digest.cache_clear()
    videos, images = (f"{name}: other lists or files" for name in ("UCF101", "VISPR"))
    expected = {"init_fa": [videos, images], "init_ft": [videos], "init_fb": [images]}
    assert {role: found(role) for role in asked} == expected


def test_published_weights_are_measured_on_the_test_list_as_it_is_unpacked(tmp_path, monkeypatch):
    """101 classes, CRLF, no training list; 102 outputs, of which the first is unused."""
    point_config_to(monkeypatch, tmp_path, tmp_path)
    root = config.UCF101_ROOT
    names = [f"Action{number:03d}" for number in range(1, 102)]
    names[2], names[37] = "Archery", "HandstandPushups"
    videos = ["Archery/v_Archery_g01_c01.avi", "HandstandPushups/v_HandStandPushups_g01_c04.avi"]
    for video in videos:
        write_video(root / "UCF-101" / video, 40, "mpeg4", (240, 320))
    lists, classes = root / "ucfTrainTestlist", [f"{i} {name}" for i, name in enumerate(names, 1)]
    write_lines(lists / "testlist01.txt", *videos, line_end="\r\n")
    write_lines(lists / "classInd.txt", *classes, line_end="\r\n")

    networks = {"fa": load_fa_model(), "ft": load_ft_model()}
    networks["ft"].i3d.fc.bias.data[3] += 99  # sees archery everywhere
    content = {"epoch": 20, "fa_optimizer": {"state": {}, "param_groups": []}}
    for (role, network), form in zip(networks.items(), ("fa_unetpp", "ft_largei3d_102")):
        state = network.state_dict()
        assert shapes(network) == layout(form)
        content[f"{role}_model_state_dict"] = {f"module.{k}": v for k, v in state.items()}
    torch.save(content, file := tmp_path / "published.pth")
    options = ["--checkpoint", str(file), "--anonymizer", str(file), "--run_id", "published"]
    evaluate_utility.main(["--size", "32", "--device", "cpu", "--n_threads", "1", *options])
    result = read_json(config.RESULTS_ROOT / "utility_published.json")
    assert (result["top1"], result["n_videos"], result["clips_per_video"]) == (1 / 2, 2, 5)
    assert result["list"] == "testlist01"
    assert {own["sha256"] for own in result["inputs"].values()} == {sha256(file)}
