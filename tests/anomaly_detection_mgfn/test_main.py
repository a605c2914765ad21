"""The command line: results of the three protocols, evaluation of a checkpoint, kill and resume,
wrong usage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomaly_detection_mgfn import main as script
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import load_network, write_scores
from anomaly_detection_mgfn.scoring import frame_scores
from aux_code import config
from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.errors import UserError

SCRIPT = Path(script.__file__)
SMALL = [
    "--preset",
    "miniature",
    "--device",
    "cpu",
    "--n_threads",
    "1",
    "--epochs",
    "12",
    "--n_segments",
    "8",
]


def options(small_set, *more):
    return [
        *SMALL,
        "--dataset",
        str(small_set.dataset),
        "--features",
        str(small_set.features),
        *more,
    ]


@pytest.fixture
def run_main(monkeypatch, small_set):
    def run(*more):
        monkeypatch.setattr(sys, "argv", ["main.py", *options(small_set, *more)])
        return script.main()

    return run


def results(run_id):
    return json.loads((config.RESULTS_ROOT / f"anomaly_own_{run_id}.json").read_text())


def test_training_writes_three_protocols_and_the_scores_they_come_from(run_main, small_set):
    assert run_main("--run_id", "a", "--feature_noise", "1") == 0
    found = results("a")
    assert set(found["protocols"]) == {"last", "validation", "best_on_test"}
    for metrics in found["protocols"].values():
        assert set(metrics) == {"auc", "ap", "average_precision", "epoch"}
    best = found["protocols"]["best_on_test"]["auc"]
    assert best >= max(metrics["auc"] for metrics in found["protocols"].values())
    assert best > 0.75, "the synthetic events are easy to find"
    scores = np.load(config.RESULTS_ROOT / "anomaly_own_a_scores.npz")
    truth, flat = [], []
    for video in found["videos"]:
        labels = np.zeros(video["n_frames"])
        for start, end in video["events"]:
            labels[start:end] = 1
        assert video["events"] == [list(e) for e in small_set.events[video["name"]]]
        truth.append(labels)
        flat.append(
            frame_scores(scores[video["name"]], video["n_frames"], found["frames_per_feature"])
        )
    expected = roc_auc_score(np.concatenate(truth), np.concatenate(flat))
    assert found["protocols"]["validation"]["auc"] == pytest.approx(expected, abs=1e-9)
    assert found["chance_ap"] == pytest.approx(np.concatenate(truth).mean())
    assert 0 <= found["false_alarm_rate"] <= 1
    assert found["inputs"]["manifest"]["sha256"]


def test_the_same_seed_gives_the_same_results_and_another_seed_others(run_main):
    for run_id, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        run_main("--run_id", run_id, "--seed", seed, "--epochs", "3")
    assert results("a")["protocols"] == results("b")["protocols"] != results("c")["protocols"]


def test_evaluating_the_checkpoint_gives_the_result_of_its_training(run_main):
    run_main("--run_id", "a", "--epochs", "3")
    best = config.SAVED_MODELS_ROOT / "a" / "mgfn_own" / "best.pth"
    run_main("--eval_only", "--checkpoint", str(best), "--run_id", "e")
    assert results("e")["protocols"]["checkpoint"] == pytest.approx(
        results("a")["protocols"]["validation"]
    )
    loaded = load_network(best)
    assert loaded.epoch == results("a")["protocols"]["validation"]["epoch"]
    assert loaded.meta["features"]["anonymizer"] == {"name": "raw", "sha256": ""}


def test_a_published_state_dict_evaluates(run_main, tmp_path):
    torch.manual_seed(0)
    net = MGFN(feature_dim=16, dims=(16, 24, 32), depths=(2, 1, 3))
    save_checkpoint(
        tmp_path / "published.pth", {f"module.{k}": v for k, v in net.state_dict().items()}
    )
    run_main("--eval_only", "--pretrained_ckpt", str(tmp_path / "published.pth"), "--run_id", "p")
    assert set(results("p")["protocols"]) == {"checkpoint"}
    loaded = load_network(tmp_path / "published.pth").net
    assert all(
        torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items()
    )


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = MGFN(feature_dim=16, dims=(16, 24, 32), depths=(2, 1, 3)).state_dict()
    state["surplus"] = state.pop("fc.bias")
    save_checkpoint(tmp_path / "mgfn.pkl", state)
    with pytest.raises(UserError, match=r"(?s)mgfn.pkl.*missing: fc.bias.*unexpected: surplus"):
        load_network(tmp_path / "mgfn.pkl")
    save_checkpoint(tmp_path / "stage1.pth", {"fa_model_state_dict": {"a": torch.zeros(1)}})
    with pytest.raises(UserError, match="it holds fa_model_state_dict"):
        load_network(tmp_path / "stage1.pth")


def test_wrong_usage_is_named(run_main, tmp_path):
    run_main("--run_id", "a", "--epochs", "1")
    checkpoint = config.SAVED_MODELS_ROOT / "a" / "mgfn_own" / "last.pth"
    with pytest.raises(UserError, match="--checkpoint"):
        run_main("--eval_only")
    with pytest.raises(UserError, match="blur"):
        run_main("--anonymizer", "blur")
    save_checkpoint(
        tmp_path / "other.pth", MGFN(feature_dim=5, dims=(8, 8, 8), depths=(1, 1, 1)).state_dict()
    )
    with pytest.raises(UserError, match="dimension 5"):
        run_main("--eval_only", "--checkpoint", str(tmp_path / "other.pth"))
    save_checkpoint(tmp_path / "text.pth", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="no MGFN weights"):
        run_main("--eval_only", "--checkpoint", str(tmp_path / "text.pth"))
    with pytest.raises(UserError, match="--checkpoint"):
        run_main("--score", "video.mp4")
    with pytest.raises(UserError, match="video.mp4"):
        run_main("--score", "video.mp4", "--checkpoint", str(checkpoint))


def test_killed_and_resumed_run_equals_an_uninterrupted_one(run_main, small_set, tmp_path):
    """The kill is a real one, of a process; what goes on afterwards and the reference run in this
    one."""
    more = ["--epochs", "25", "--minutes_between_saves", "0"]
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *options(small_set, *more, "--run_id", "broken")]
    broken = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=tmp_path)
    state = tmp_path / "saved_models" / "broken" / "mgfn_own" / "state.pth"
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline and broken.poll() is None:
        time.sleep(0.01)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert 0 < load_checkpoint(state)["position"]["epoch"] < 25
    run_main("--run_id", "broken", "--resume", *more)
    run_main("--run_id", "whole", *more)
    for name in ("last", "best", "best_on_test"):
        paths = [
            tmp_path / "saved_models" / run / "mgfn_own" / f"{name}.pth"
            for run in ("whole", "broken")
        ]
        one, other = (load_checkpoint(path) for path in paths)
        assert one["epoch"] == other["epoch"]
        weights = "mgfn_model_state_dict"
        assert all(torch.equal(value, other[weights][key]) for key, value in one[weights].items())
    assert results("whole")["protocols"] == results("broken")["protocols"]
    assert not state.exists(), "a finished run leaves no state behind"


def test_a_finished_run_is_not_done_again(run_main):
    run_main("--run_id", "a", "--epochs", "2")
    path = config.RESULTS_ROOT / "anomaly_own_a.json"
    written = path.stat().st_mtime_ns
    assert run_main("--run_id", "a", "--epochs", "2", "--resume") == 0
    assert path.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="lr"):
        run_main("--run_id", "a", "--epochs", "2", "--resume", "--lr", "0.1")


def test_more_epochs_than_a_finished_run_had_are_refused(run_main):
    run_main("--run_id", "a", "--epochs", "2", "--lr_schedule", "constant")
    with pytest.raises(UserError, match="finished after 2 epochs"):
        run_main("--run_id", "a", "--epochs", "3", "--lr_schedule", "constant", "--resume")


def test_terminated_run_saves_and_goes_on(run_main, small_set, tmp_path):
    more = ["--epochs", "3000", "--run_id", "stopped"]
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    stopped = subprocess.Popen(
        [sys.executable, str(SCRIPT), *options(small_set, *more)], env=environment, cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    logs = tmp_path / "logs" / "stopped"
    while not logs.is_dir() and time.monotonic() < deadline and stopped.poll() is None:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=60) == 143
    state = tmp_path / "saved_models" / "stopped" / "mgfn_own" / "state.pth"
    assert 0 < load_checkpoint(state)["position"]["epoch"] < 3000


def test_seeds_are_summarised_as_mean_and_deviation(run_main):
    assert run_main("--run_id", "a", "--epochs", "2", "--seeds", "3", "5") == 0
    summary = json.loads((config.RESULTS_ROOT / "anomaly_own_a_seeds.json").read_text())
    runs = [results(f"a_s{seed}") for seed in (3, 5)]
    assert summary["seeds"] == [3, 5] and set(summary["protocols"]) == {
        "last",
        "validation",
        "best_on_test",
    }
    for name, metrics in summary["protocols"].items():
        values = [run["protocols"][name]["auc"] for run in runs]
        assert metrics["auc"]["mean"] == pytest.approx(np.mean(values))
        assert metrics["auc"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    rates = [run["false_alarm_rate"] for run in runs]
    assert summary["false_alarm_rate"]["mean"] == pytest.approx(np.mean(rates))
    assert set(summary["per_category"]) == set(runs[0]["per_category"])


def test_test_videos_alone_can_be_evaluated(run_main, small_set):
    """No list and no features of training videos."""
    run_main("--run_id", "a", "--epochs", "1")
    last = str(config.SAVED_MODELS_ROOT / "a" / "mgfn_own" / "last.pth")
    (small_set.dataset / "train.csv").unlink()
    small_set.arrays = {
        name: array for name, array in small_set.arrays.items() if name.startswith("test")
    }
    small_set.write()
    assert run_main("--eval_only", "--checkpoint", last, "--run_id", "e") == 0
    assert results("e")["protocols"]["checkpoint"] == pytest.approx(
        results("a")["protocols"]["last"]
    )


def test_process_says_what_is_wrong_in_one_line(small_set, tmp_path):
    (small_set.features / f"{list(small_set.arrays)[0]}.npy").write_bytes(b"")
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), *options(small_set)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr and ".npy" in done.stderr


def test_scores_of_any_video_name(tmp_path):
    names = ["file", "a=b #1.x", "ünïcode", "args"]
    arrays = [np.arange(3, dtype=np.float32) + i for i in range(4)]
    write_scores(tmp_path / "s.npz", names, arrays)
    found = np.load(tmp_path / "s.npz")
    assert sorted(found.files) == sorted(names)
    for name, array in zip(names, arrays):
        np.testing.assert_array_equal(found[name], array)
