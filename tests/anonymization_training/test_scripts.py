"""The four scripts on a tiny rendering: what they write, how they resume, how they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anonymization_training import init_anonymizer, init_privacy, init_utility, train_anonymizer
from aux_code.artefacts import sha256
from aux_code.checkpoints import load_checkpoint
from aux_code.model_loaders import load_anonymizer, load_budget, load_utility
from aux_code.runs import run_script

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--preset",
    "miniature",
    "--device",
    "cpu",
    "--size",
    "24",
    "--batch_videos",
    "16",
    "--batch_images",
    "8",
)
SHORT = (*TINY, "--max_steps", "4", "--minutes_between_saves", "0")
"""Three batches are an epoch: four steps of minimax (two epochs), three of settling, a save after
each."""
STATE = "train_anonymizer_state.pth"


def start(inits: dict[str, Path]) -> list[str]:
    """Options that name the initial checkpoints."""
    return [word for role, path in inits.items() for word in (f"--{role}", str(path))]


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
        assert set(meta["metrics"]) == {quality[role]} and set(meta["architectures"]) == {
            role.removeprefix("init_")
        }
        files = {p.name for p in path.parent.iterdir()}
        assert path.name in files and not any(
            name.endswith(("_state.pth", ".tmp")) for name in files
        )
        assert any(name.startswith("params_init_") for name in files)


def test_utility_trains_on_obfuscated_persons(inits, artifacts):
    init_utility.main([*TINY, "--max_steps", "1", "--anonymizer", "blacken", "--run_id", "blacken"])
    meta = load_checkpoint(artifacts / "saved_models" / "blacken" / "ft_action.pth")["meta"]
    assert meta["inputs"]["anonymizer"] == {"path": "blacken", "sha256": ""}
    narrow = artifacts / "saved_models" / "init_anonymizer_miniature_ted_spad_plus" / "fa_recon.pth"
    init_anonymizer.main([*TINY, "--preset", "miniature_ted_spad_plus", "--max_steps", "1"])
    init_utility.main(
        [
            *TINY,
            "--max_steps",
            "1",
            "--anonymizer",
            str(narrow),
            "--omega",
            "0.1",
            "--run_id",
            "mine",
        ]
    )
    meta = load_checkpoint(artifacts / "saved_models" / "mine" / "ft_action.pth")["meta"]
    assert meta["inputs"]["anonymizer"]["sha256"] == sha256(narrow)


@pytest.mark.parametrize("script, output", [(init_anonymizer, "fa_recon"), (init_utility, "ft_action"),
                                            (init_privacy, "fb_ssl")])  # fmt: skip
def test_interrupted_initialisations_resume_to_the_same_network(
    inits, artifacts, monkeypatch, script, output
):
    from aux_code.training_state import TrainingState

    save, saves = TrainingState.save, []

    def save_then_stop(self, position) -> None:
        save(self, position)
        saves.append(position["step"])
        if position["step"] == 2:
            raise KeyboardInterrupt

    options = [*TINY, "--max_steps", "3", "--run_id", "resumed"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", save_then_stop)
        script.main([*options, "--minutes_between_saves", "0"])
    assert saves == [1, 2]
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
        different = [
            name for name, value in a[role].items() if not torch.equal(value, b[role][name])
        ]
        assert not different, (role, different)


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
    inits, artifacts, tiny_data
):
    options = [*SHORT, *start(inits)]
    environment = {**os.environ, "TED_SPAD_DATA_ROOT": str(tiny_data), "TED_SPAD_ARTIFACT_ROOT": str(artifacts),
                   "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interrupted_runs.py")), *options],
        input=json.dumps([runs for runs, _ in INTERRUPTIONS]), env=environment, capture_output=True, text=True,
        timeout=540,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == [code for _, code in INTERRUPTIONS], (
        ended.stderr[-3000:]
    )
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
        assert sorted(p.name for p in folder.iterdir()) == [
            "best.pth",
            "last.pth",
            "params_train_anonymizer.json",
        ]
    last = (folder / "last.pth").stat().st_mtime_ns
    train_anonymizer.main([*options, "--run_id", run_id, "--resume"])  # nothing left to do
    assert (folder / "last.pth").stat().st_mtime_ns == last


def check_run(folder: Path, inits: dict[str, Path]) -> None:
    """A whole run: files, meta, networks; and it did train."""
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.pth",
        "last.pth",
        "params_train_anonymizer.json",
    ]
    meta = load_checkpoint(folder / "last.pth")["meta"]
    assert {role: entry["sha256"] for role, entry in meta["inputs"].items()} == {
        role: sha256(path) for role, path in inits.items()
    }
    assert set(meta["metrics"]) == {"top1", "nt_xent_accuracy"} and set(meta["architectures"]) == {
        "fa",
        "ft",
        "fb",
    }
    for load, role in (
        (load_anonymizer, "init_fa"),
        (load_utility, "init_ft"),
        (load_budget, "init_fb"),
    ):
        before, after = load(inits[role]).state_dict(), load(folder / "last.pth").state_dict()
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before), role
    assert list((folder.parents[1] / "logs" / folder.name).iterdir())


def test_a_run_in_turns_trains_all_players(inits, artifacts):
    for steps in ("1", "2"):
        options = [
            "--alternate",
            "batches",
            "--adversary_steps",
            steps,
            "--run_id",
            f"turns{steps}",
        ]
        train_anonymizer.main([*SHORT, *start(inits), *options, "--minutes_between_saves", "9", "--epochs", "2",
                               "--settle_epochs", "0"])  # fmt: skip
        fresh = load_checkpoint(artifacts / "saved_models" / f"turns{steps}" / "last.pth")[
            "fa_model_state_dict"
        ]
        started = load_checkpoint(inits["init_fa"])["fa_model_state_dict"]
        counter = next(name for name in fresh if name.endswith("num_batches_tracked"))
        assert fresh[counter] > started[counter]
        assert updates_of_fa(artifacts / "logs" / f"turns{steps}") == [1, 3]


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
    from aux_code import config

    monkeypatch.setattr(config, f"{root}_ROOT", artifacts / "nothing")
    refuse(lambda: main([*TINY]), [f"{root}_ROOT", str(artifacts / "nothing")], capsys)


def refuse(main, named: list[str], capsys) -> None:
    """The script ends with status 2 and one line that holds these words."""
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
    inits, artifacts, monkeypatch, capsys
):
    from anonymization_training import minimax

    def broken(*_) -> torch.Tensor:
        return torch.tensor(float("nan"))

    monkeypatch.setattr(minimax, "nt_xent_loss", broken)
    with pytest.raises(SystemExit) as caught:
        run_script(lambda: train_anonymizer.main([*SHORT, *start(inits), "--run_id", "nan"]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2
    assert "step 0" in error and "step1/" in error and ".avi" in error and ".jpg" in error
    assert not (artifacts / "saved_models" / "nan" / "last.pth").exists()


def test_resuming_with_other_parameters_is_refused(inits, artifacts, capsys, monkeypatch):
    from aux_code.training_state import TrainingState

    save = TrainingState.save

    def save_then_stop(self, position) -> None:
        save(self, position)
        raise KeyboardInterrupt

    options = [*SHORT, *start(inits), "--run_id", "changed"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", save_then_stop)
        train_anonymizer.main(options)
    capsys.readouterr()
    refuse(
        lambda: train_anonymizer.main([*options, "--resume", "--omega", "0.5"]),
        ["omega", "--run_id"],
        capsys,
    )
