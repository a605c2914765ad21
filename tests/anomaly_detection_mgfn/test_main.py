"""The command line: results of the three protocols, one checkpoint, kill and resume, usage."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomaly_detection_mgfn import main as script
from anomaly_detection_mgfn.evaluation import write_scores
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import load_network
from anomaly_detection_mgfn.mil_training import MilTraining
from anomaly_detection_mgfn.scoring import frame_scores
from aux_code import config
from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.errors import UserError
from tests.anomaly_detection_mgfn.conftest import SMALL

EPOCHS = "--epochs 12 --n_segments 8".split()


def files(small_set):
    return ["--dataset", str(small_set.dataset), "--features", str(small_set.features)]


@pytest.fixture
def run(run_main, small_set):
    return lambda *more: run_main(*EPOCHS, *files(small_set), *more)


def results(run_id):
    return json.loads((config.RESULTS_ROOT / f"anomaly_own_{run_id}.json").read_text())


def checkpoint(run_id, name="last"):
    return config.SAVED_MODELS_ROOT / run_id / "mgfn_own" / f"{name}.pth"


def interrupted(small_set, folder, path, number, *more):
    """The script in a process and folder of its own gets a signal as soon as the path is there;
    its exit status."""
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script.__file__, *SMALL, *EPOCHS, *files(small_set), *more]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=folder)
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=60)


def test_training_writes_three_protocols_and_the_scores_they_come_from(run, small_set):
    assert run("--run_id", "a", "--feature_noise", "1") == 0
    found, scores = results("a"), np.load(config.RESULTS_ROOT / "anomaly_own_a_scores.npz")
    protocols = found["protocols"]
    assert set(protocols) == {"last", "validation", "best_on_test"}
    for metrics in protocols.values():
        assert set(metrics) == {"auc", "ap", "average_precision", "epoch"}
    areas = {name: metrics["auc"] for name, metrics in protocols.items()}
    assert areas["best_on_test"] == max(areas.values())
    assert min(areas.values()) > 0.75, "the synthetic events are easy to find"
    truth, flat = [], {protocol: [] for protocol in protocols}
    for video in found["videos"]:
        name, n_frames = video["name"], video["n_frames"]
        labels = np.zeros(n_frames)
        for start, end in video["events"]:
            labels[start:end] = 1
        assert video["events"] == [list(e) for e in small_set.events[name]]
        truth.append(labels)
        for protocol, own in flat.items():
            key = name if protocol == "validation" else f"{protocol}/{name}"
            own.append(frame_scores(scores[key], n_frames, found["frames_per_feature"]))
    for protocol, own in flat.items():
        expected = roc_auc_score(np.concatenate(truth), np.concatenate(own))
        assert areas[protocol] == pytest.approx(expected, abs=1e-9)
    assert found["chance_ap"] == pytest.approx(np.concatenate(truth).mean())
    assert 0 <= found["false_alarm_rate"] <= 1
    assert found["inputs"]["manifest"]["sha256"]


def test_without_held_out_videos_all_train_and_no_epoch_is_validated(run, small_set, caplog):
    caplog.set_level("INFO")
    assert run("--run_id", "all", "--epochs", "3", "--validation_fraction", "0") == 0
    n_train = sum(name.startswith("train") for name in small_set.labels)
    assert f"{n_train} training, 0 validation" in caplog.text
    assert set(results("all")["protocols"]) == {"last", "best_on_test"}
    assert checkpoint("all", "best_on_test").is_file() and not checkpoint("all", "best").exists()


def test_a_checkpoint_evaluates_as_in_its_training_and_on_such_features_only(run, small_set):
    run("--run_id", "a", "--epochs", "3")
    best, expected = checkpoint("a", "best"), results("a")["protocols"]["validation"]
    loaded = load_network(best)
    assert loaded.epoch == expected["epoch"]
    assert loaded.meta["features"]["anonymizer"] == {"name": "raw", "sha256": ""}
    with pytest.raises(UserError, match="is the result of a training; give another --run_id"):
        run("--eval_only", "--checkpoint", best, "--run_id", "a")
    evaluate = ("--eval_only", "--checkpoint", best, "--run_id", "e")
    for changes, words in (
        ({"anonymizer": {"name": "blur", "sha256": ""}}, "anonymizer raw, here blur"),
        ({"anonymizer": {"name": "fa.pth", "sha256": "1" * 64}}, "anonymizer raw, here fa.pth"),
        ({"utility": {"path": "other.pth", "sha256": ""}}, "utility ft.pth, here other.pth"),
        ({"size": 64, "crop": 1.0}, "crop 0.8, here 1.0; size 48, here 64"),
    ):
        small_set.write(**changes)
        with pytest.raises(UserError, match=f"{best} was trained on other features.*{words}"):
            run(*evaluate)
    # no list and no features of training videos, another precision
    (small_set.dataset / "train.csv").unlink()
    for name in [name for name in small_set.arrays if name.startswith("train")]:
        del small_set.arrays[name]
    small_set.write(precision="bf16")
    assert run(*evaluate) == 0
    assert results("e")["protocols"]["checkpoint"] == pytest.approx(expected)


def test_weights_that_do_not_fit_are_named(run, tmp_path):
    other = MGFN(feature_dim=5, dims=(8, 8, 8), depths=(1, 1, 1)).state_dict()
    state = MGFN(feature_dim=16, dims=(16, 24, 32), depths=(2, 1, 3)).state_dict()
    state["surplus"] = state.pop("fc.bias")
    path, one = tmp_path / "mgfn.pkl", torch.zeros(1)
    for words, content in (
        ("dimension 5", other),
        ("no MGFN weights", {"a": one}),
        ("(?s)mgfn.pkl.*missing: fc.bias.*unexpected: surplus", state),
        ("it holds fa_model_state_dict", {"fa_model_state_dict": {"a": one}}),
    ):
        save_checkpoint(path, content)
        with pytest.raises(UserError, match=words):
            run("--eval_only", "--checkpoint", path)
    assert not config.SAVED_MODELS_ROOT.exists(), "nothing was accepted"


def test_wrong_usage_is_named(run):
    for words, *arguments in (
        ("--checkpoint", "--eval_only"),
        ("blur", "--anonymizer", "blur"),
        ("scores are not finite; lower --lr", "--lr", "1e30"),
        ("--checkpoint", "--score", "video.mp4"),
        ("video.mp4", "--score", "video.mp4", "--checkpoint", "mgfn.pth"),
    ):
        with pytest.raises(UserError, match=words):
            run(*arguments)


def test_killed_and_resumed_run_equals_an_uninterrupted_one(run, small_set, tmp_path, monkeypatch):
    """A process is killed; what goes on afterwards and the reference run in this one."""
    more = ["--epochs", "25", "--minutes_between_saves", "0"]
    state, trained, step = checkpoint("broken", "state"), [], MilTraining.train_epoch
    interrupted(small_set, tmp_path, state, signal.SIGKILL, *more, "--run_id", "broken")
    reached = load_checkpoint(state)["position"]["epoch"]
    assert 0 < reached < 25
    with pytest.raises(UserError, match="lr: .*, now 0.5"):
        run("--run_id", "broken", "--resume", *more, "--lr", "0.5")

    def noted(self, data, epoch):
        trained.append(epoch)
        return step(self, data, epoch)

    monkeypatch.setattr(MilTraining, "train_epoch", noted)
    run("--run_id", "broken", "--resume", *more)
    assert trained == list(range(reached, 25))
    run("--run_id", "whole", *more)
    for name in ("last", "best", "best_on_test"):
        one, other = (load_network(checkpoint(run_id, name)) for run_id in ("whole", "broken"))
        assert one.epoch == other.epoch
        weights = other.net.state_dict()
        assert all(torch.equal(own, weights[key]) for key, own in one.net.state_dict().items())
    assert results("whole")["protocols"] == results("broken")["protocols"]
    assert not state.exists(), "a finished run leaves no state behind"


def test_a_finished_run_is_not_done_again_and_is_of_its_inputs(run, small_set, tmp_path):
    """Features of another anonymizer under the same run id once gave back the old result."""
    once = ("--run_id", "a", "--epochs", "2")
    run(*once)
    path = config.RESULTS_ROOT / "anomaly_own_a.json"
    written = path.stat().st_mtime_ns
    assert run(*once, "--resume", "--n_threads", "2") == 0
    for option, value in (("lr", "0.1"), ("epochs", "3")):
        with pytest.raises(UserError, match=f"{option}: .*, now {value}"):
            run(*once, "--resume", f"--{option}", value)
    other = replace(small_set, features=tmp_path / "other")
    other.write(anonymizer={"name": "blur", "sha256": ""})
    with pytest.raises(UserError, match="anonymizer: another file; manifest: another file"):
        run(*once, "--resume", "--features", other.features)
    other.write()
    assert run(*once, "--resume", "--features", other.features) == 0, "a copy is the same"
    assert path.stat().st_mtime_ns == written
    path = small_set.dataset / "train.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",0,", ",1,", 1), encoding="utf-8")
    with pytest.raises(UserError, match="own: other lists or files"):
        run(*once, "--resume")


def test_terminated_run_saves_and_goes_on(small_set, tmp_path):
    path, more = tmp_path / "logs" / "stopped", ("--epochs", "3000", "--run_id", "stopped")
    assert interrupted(small_set, tmp_path, path, signal.SIGTERM, *more) == 143
    assert 0 < load_checkpoint(checkpoint("stopped", "state"))["position"]["epoch"] < 3000


def test_seeds_are_summarised_and_each_gives_results_of_its_own(run):
    assert run("--run_id", "a", "--epochs", "2", "--seeds", "3", "5") == 0
    summary = json.loads((config.RESULTS_ROOT / "anomaly_own_a_seeds.json").read_text())
    runs = [results(f"a_s{seed}") for seed in (3, 5)]
    assert summary["seeds"] == [3, 5]
    assert set(summary["protocols"]) == {"last", "validation", "best_on_test"}
    for name, metrics in summary["protocols"].items():
        values = [run["protocols"][name]["auc"] for run in runs]
        assert metrics["auc"]["mean"] == pytest.approx(np.mean(values))
        assert metrics["auc"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    rates = [run["false_alarm_rate"] for run in runs]
    assert summary["false_alarm_rate"]["mean"] == pytest.approx(np.mean(rates))
    assert set(summary["per_category"]) == set(runs[0]["per_category"])
    run("--run_id", "b", "--epochs", "2", "--seed", "3")
    assert results("b")["protocols"] == runs[0]["protocols"] != runs[1]["protocols"]


def test_scores_of_any_video_name(tmp_path):
    arrays = {name: np.arange(3) for name in ("file", "a=b #1.x", "ünïcode", "args")}
    write_scores(tmp_path / "s.npz", arrays)
    found = np.load(tmp_path / "s.npz")
    assert found.files == list(arrays)
    assert all((found[name] == array).all() for name, array in arrays.items())
