"""The four scripts on a tiny rendering: what they write, how they resume, how they refuse."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anonymization_training import init_anonymizer, init_privacy, init_utility, train_anonymizer
from anonymization_training.params_anonymization import (
    INIT_ANONYMIZER,
    INIT_PRIVACY,
    INIT_UTILITY,
    made_of,
)
from aux_code import config
from aux_code.artefacts import differences, is_current, record_of, sha256
from aux_code.checkpoints import load_checkpoint, read_json
from aux_code.datasets.digest import dataset_digest
from aux_code.model_loaders import load_anonymizer, load_budget, load_utility
from aux_code.parameters import parse
from aux_code.runs import run_script
from aux_code.training_state import TrainingState
from tests.anonymization_training.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
SHORT = (*TINY, "--max_steps", "4", "--minutes_between_saves", "0")
"""Three batches are an epoch: four steps of minimax (two epochs), three of settling, a save after
each."""
STATE = "train_anonymizer_state.pth"
RESULTS = ["best.pth", "last.pth", "params_train_anonymizer.json"]


@pytest.fixture
def run_until(monkeypatch):
    """run_until(main, options, n): runs a script and ends it after the n-th save of its state."""

    def run(main, options: list[str], n: int) -> None:
        save, steps = TrainingState.save, []

        def save_then_stop(self, position) -> None:
            save(self, position)
            steps.append(position["step"])
            if len(steps) == n:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TrainingState, "save", save_then_stop)
            main([*options, "--minutes_between_saves", "0"])
        assert steps == list(range(1, n + 1))

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
        assert set(meta["metrics"]) == {quality[role]} and meta["seconds"] > 0
        assert set(meta["architectures"]) == {role.removeprefix("init_")}
        script = path.parent.name.removesuffix("_miniature")
        files = sorted(p.name for p in path.parent.iterdir())
        assert files == sorted([path.name, f"params_{script}.json"])


def test_utility_trains_on_obfuscated_persons(inits, artifacts):
    one_step, saved = [*TINY, "--max_steps", "1"], artifacts / "saved_models"
    init_utility.main([*one_step, "--anonymizer", "blacken", "--run_id", "blacken"])
    inputs = load_checkpoint(saved / "blacken" / "ft_action.pth")["meta"]["inputs"]
    assert inputs["anonymizer"] == {"path": "blacken", "sha256": ""}
    boxes = config.UCF101_ROOT / "person_boxes.csv"
    assert inputs["person_boxes"] == {"path": str(boxes), "sha256": sha256(boxes)}
    narrow = saved / "init_anonymizer_miniature_ted_spad_plus" / "fa_recon.pth"
    init_anonymizer.main([*one_step, "--preset", "miniature_ted_spad_plus"])
    more = ["--anonymizer", str(narrow), "--omega", "0.1", "--run_id", "mine"]
    init_utility.main([*one_step, *more])
    inputs = load_checkpoint(saved / "mine" / "ft_action.pth")["meta"]["inputs"]
    assert inputs["anonymizer"]["sha256"] == sha256(narrow) and "person_boxes" not in inputs


@pytest.mark.parametrize(
    "script, output",
    [(init_anonymizer, "fa_recon"), (init_utility, "ft_action"), (init_privacy, "fb_ssl")],
)
def test_interrupted_initialisations_resume_to_the_same_network(
    inits, artifacts, run_until, script, output
):
    options = [*TINY, "--max_steps", "3", "--run_id", "resumed"]
    run_until(script.main, options, 2)
    script.main([*options, "--resume"])
    whole = next(path for path in inits.values() if path.stem == output)
    same_weights(whole, artifacts / "saved_models" / "resumed" / f"{output}.pth")


def same_weights(first: Path, second: Path) -> None:
    """Every tensor of every network of two checkpoints, bit for bit; metrics and epoch too."""
    a, b = load_checkpoint(first), load_checkpoint(second)
    roles = [key for key in a if key.endswith("_model_state_dict")]
    assert roles and a["epoch"] == b["epoch"] and a["meta"]["metrics"] == b["meta"]["metrics"]
    for role in roles:
        assert a[role].keys() == b[role].keys()
        for name, value in a[role].items():
            assert torch.equal(value, b[role][name]), (role, name)


INTERRUPTIONS = [
    # run_id, signal, file, n-th write, moment; expected exit code
    (["half a state", "SIGKILL", STATE, 2, "before"], -9),
    (["after best", "SIGKILL", "best.pth", 1, "after"], -9),
    (["settling", "SIGKILL", STATE, 6, "after"], -9),
    (["after last", "SIGKILL", "last.pth", 1, "after"], -9),
    (["ctrl-c", "SIGINT", STATE, 3, "before"], 130),
    (["terminated in settling", "SIGTERM", STATE, 5, "after"], 143),
]


def test_train_anonymizer_resumes_bit_for_bit_from_wherever_it_was_ended(
    inits, init_options, artifacts, tiny_data
):
    options = [*SHORT, *init_options]
    environment = {
        **os.environ,
        "TED_SPAD_DATA_ROOT": str(tiny_data),
        "TED_SPAD_ARTIFACT_ROOT": str(artifacts),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interrupted_runs.py")), *options],
        input=json.dumps([runs for runs, _ in INTERRUPTIONS]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    codes = json.loads(ended.stdout.splitlines()[-1])
    assert codes == [code for _, code in INTERRUPTIONS], ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr and ended.stderr.count("--resume goes on") == 2

    train_anonymizer.main([*options, "--run_id", "whole"])
    whole = artifacts / "saved_models" / "whole"
    check_run(whole, inits)
    for (run_id, *_), _ in INTERRUPTIONS:
        folder = artifacts / "saved_models" / run_id
        assert (folder / STATE).is_file()
        train_anonymizer.main([*options, "--run_id", run_id, "--resume"])
        for name in ("last.pth", "best.pth"):
            same_weights(whole / name, folder / name)
        assert sorted(p.name for p in folder.iterdir()) == RESULTS
    last = (folder / "last.pth").stat().st_mtime_ns
    train_anonymizer.main([*options, "--run_id", run_id, "--resume"])  # nothing left to do
    assert (folder / "last.pth").stat().st_mtime_ns == last


def check_run(folder: Path, inits: dict[str, Path]) -> None:
    """A whole run: files, meta, networks; and it did train."""
    assert sorted(p.name for p in folder.iterdir()) == RESULTS
    meta = load_checkpoint(folder / "last.pth")["meta"]
    digests = {role: entry["sha256"] for role, entry in meta["inputs"].items()}
    assert digests == {role: sha256(path) for role, path in inits.items()}
    assert set(meta["metrics"]) == {"top1", "nt_xent_accuracy"}
    assert set(meta["architectures"]) == {"fa", "ft", "fb"}
    loaders = {"init_fa": load_anonymizer, "init_ft": load_utility, "init_fb": load_budget}
    for role, load in loaders.items():
        before, after = load(inits[role]).state_dict(), load(folder / "last.pth").state_dict()
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before), role
    assert list((folder.parents[1] / "logs" / folder.name).iterdir())


def test_a_run_in_turns_trains_all_players(inits, init_options, artifacts):
    options = ["--alternate", "batches", "--epochs", "2", "--settle_epochs", "0"]
    train_anonymizer.main([*SHORT, *init_options, *options, "--run_id", "turns"])
    last = artifacts / "saved_models" / "turns" / "last.pth"
    fresh = load_checkpoint(last)["fa_model_state_dict"]
    started = load_checkpoint(inits["init_fa"])["fa_model_state_dict"]
    counter = next(name for name in fresh if name.endswith("num_batches_tracked"))
    assert fresh[counter] > started[counter]
    assert updates_of_fa(artifacts / "logs" / "turns") == [1, 3]


def updates_of_fa(logs: Path) -> list[int]:
    """Steps at which TensorBoard has a loss of step 1."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs)).Reload()
    return [event.step for event in events.Scalars("step1/total")]


@pytest.mark.parametrize(
    "main, options, named",
    [
        (train_anonymizer.main, [], ["--init_fa", "init_anonymizer.py"]),
        (train_anonymizer.main, ["--init_fa", "nowhere.pth"], ["--init_fa", "nowhere.pth"]),
        (init_utility.main, ["--anonymizer", "pixelate"], ["pixelate", "blacken"]),
        (init_utility.main, ["--init_weights", "none.pth"], ["none.pth"]),
        (init_utility.main, ["--anonymizer", "blur", "--boxes", "none.csv"], ["none.csv"]),
        (init_anonymizer.main, ["--fa_arch", "vae"], ["vae", "unet++"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(artifacts, capsys, main, options, named):
    refuse(lambda: main([*TINY, *options]), named, capsys)


@pytest.mark.parametrize(
    "main, root", [(init_anonymizer.main, "UCF101"), (init_privacy.main, "VISPR")]
)
def test_missing_data_is_one_line_that_names_the_folder(artifacts, monkeypatch, capsys, main, root):
    monkeypatch.setattr(config, f"{root}_ROOT", artifacts / "nothing")
    refuse(lambda: main([*TINY]), [f"{root}_ROOT", str(artifacts / "nothing")], capsys)


def refuse(main, named: list[str], capsys) -> None:
    """The script ends with status 2 and one line that holds these words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    assert all(word in error for word in named), error


@pytest.mark.parametrize(
    "options, named", [(["--preset", "tiny"], "miniature_spact"), (["--omegga", "1"], "--omega")]
)
def test_unknown_presets_and_options_list_what_exists(artifacts, capsys, options, named):
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: train_anonymizer.main(options))
    captured = capsys.readouterr()
    assert caught.value.code == 2 and named in captured.out + captured.err


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_files(
    init_options, artifacts, monkeypatch, capsys
):
    from anonymization_training import minimax

    def broken(*_) -> torch.Tensor:
        return torch.tensor(float("nan"))

    monkeypatch.setattr(minimax, "nt_xent_loss", broken)
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: train_anonymizer.main([*SHORT, *init_options, "--run_id", "nan"]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2
    assert "step 0" in error and "step1/" in error and ".avi" in error and ".jpg" in error
    assert not (artifacts / "saved_models" / "nan" / "last.pth").exists()


def copied(inits: dict[str, Path], folder: Path) -> tuple[list[str], dict[str, Path]]:
    """Options that name copies of the initial checkpoints, and the copies."""
    folder.mkdir()
    copies = {role: Path(shutil.copy(path, folder)) for role, path in inits.items()}
    return [word for role, path in copies.items() for word in (f"--{role}", str(path))], copies


def test_a_state_goes_on_with_what_it_was_made_of_and_nothing_else(
    inits, init_options, artifacts, run_until, capsys
):
    options, files = copied(inits, artifacts / "copies")
    options = [*SHORT, *options, "--run_id", "mine"]
    folder = artifacts / "saved_models" / "mine"
    run_until(train_anonymizer.main, options, 1)
    described = read_json(folder / "params_train_anonymizer.json")
    changed = [*options, "--omega", "0.5", "--resume"]
    refuse(lambda: train_anonymizer.main(changed), ["omega: 0.1, now 0.5", "--run_id"], capsys)
    checkpoint = load_checkpoint(files["init_ft"])
    torch.save(checkpoint | {"epoch": 99}, files["init_ft"])
    resumed = [*options, "--resume"]
    refuse(lambda: train_anonymizer.main(resumed), ["init_ft: another file"], capsys)
    assert read_json(folder / "params_train_anonymizer.json") == described
    # equal files under other names are the same inputs
    train_anonymizer.main([*SHORT, *init_options, "--run_id", "mine", "--resume"])
    refuse(lambda: train_anonymizer.main(resumed), ["last.pth", "init_ft: another file"], capsys)


def test_a_start_without_resume_sets_an_unfinished_state_aside(
    init_options, artifacts, run_until, capsys
):
    options = [*SHORT, *init_options, "--run_id", "mine"]
    folder = artifacts / "saved_models" / "mine"
    run_until(train_anonymizer.main, options, 1)
    train_anonymizer.main([*options, "--max_steps", "1"])
    kept = {"train_anonymizer_state.set_aside.pth", *RESULTS}
    assert {p.name for p in folder.iterdir()} == kept
    refuse(lambda: train_anonymizer.main([*options, "--resume"]), ["max_steps: 1, now 4"], capsys)


def test_a_result_knows_its_data_and_the_precision_in_force(
    inits, tiny_data, artifacts, monkeypatch
):
    """What --resume and reproduce.py ask; nothing is trained."""
    data = artifacts / "data"
    shutil.copytree(tiny_data, data)
    monkeypatch.setattr(config, "UCF101_ROOT", data / "UCF101")
    monkeypatch.setattr(config, "VISPR_ROOT", data / "VISPR")
    presets = {"init_fa": INIT_ANONYMIZER, "init_ft": INIT_UTILITY, "init_fb": INIT_PRIVACY}
    asked = {role: parse(p, [*TINY, "--max_steps", "3"]) for role, p in presets.items()}
    (data / "UCF101" / "Videos" / "note.txt").write_text("an extra file")
    for role, params in asked.items():
        assert is_current(inits[role], made_of(replace(params, n_workers=3, run_id="other")))
        now = made_of(params).in_force["precision"]
        other = "fp32" if now == "bf16" else "bf16"
        found = differences(record_of(inits[role]), made_of(replace(params, precision=other)))
        assert found == [f"precision in force: {now}, now {other}"]
    video = next((data / "UCF101" / "Videos").glob("*/*.avi"))
    video.write_bytes(video.read_bytes() + b"0")
    next((data / "VISPR" / "train2017").glob("*.jpg")).unlink()
    dataset_digest.cache_clear()
    found = {role: differences(record_of(inits[role]), made_of(p)) for role, p in asked.items()}
    ucf101, vispr = "UCF101: other lists or files", "VISPR: other lists or files"
    assert found == {"init_fa": [ucf101, vispr], "init_ft": [ucf101], "init_fb": [vispr]}
