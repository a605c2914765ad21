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
from anomaly_detection_mgfn.scoring import frame_scores
from aux_code import config
from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.errors import UserError

SMALL = "--preset miniature --device cpu --n_threads 1 --epochs 12 --n_segments 8".split()


def options(small_set, *more):
    data = ["--dataset", str(small_set.dataset), "--features", str(small_set.features)]
    return [*SMALL, *data, *more]


@pytest.fixture
def run_main(monkeypatch, small_set):
    def run(*more):
        monkeypatch.setattr(sys, "argv", ["main.py", *options(small_set, *more)])
        return script.main()

    return run


def results(run_id):
    return json.loads((config.RESULTS_ROOT / f"anomaly_own_{run_id}.json").read_text())


def checkpoint(run_id, name="last"):
    return config.SAVED_MODELS_ROOT / run_id / "mgfn_own" / f"{name}.pth"


def start(small_set, folder, *more):
    """The script as a process of its own, with its artefacts in a folder."""
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script.__file__, *options(small_set, *more)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)


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
    truth, flat = [], {"validation": [], "last": [], "best_on_test": []}
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
        assert found["protocols"][protocol]["auc"] == pytest.approx(expected, abs=1e-9)
    assert found["chance_ap"] == pytest.approx(np.concatenate(truth).mean())
    assert 0 <= found["false_alarm_rate"] <= 1
    assert found["inputs"]["manifest"]["sha256"]


def test_the_same_seed_gives_the_same_results_and_another_seed_others(run_main):
    for run_id, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        run_main("--run_id", run_id, "--seed", seed, "--epochs", "3")
    assert results("a")["protocols"] == results("b")["protocols"] != results("c")["protocols"]


def test_evaluating_the_checkpoint_gives_the_result_of_its_training(run_main):
    run_main("--run_id", "a", "--epochs", "3")
    best, expected = checkpoint("a", "best"), results("a")["protocols"]["validation"]
    run_main("--eval_only", "--checkpoint", str(best), "--run_id", "e")
    assert results("e")["protocols"]["checkpoint"] == pytest.approx(expected)
    loaded = load_network(best)
    assert loaded.epoch == expected["epoch"]
    assert loaded.meta["features"]["anonymizer"] == {"name": "raw", "sha256": ""}


def test_a_published_state_dict_evaluates(run_main, tmp_path):
    torch.manual_seed(0)
    net = MGFN(feature_dim=16, dims=(16, 24, 32), depths=(2, 1, 3))
    path, state = tmp_path / "published.pth", net.state_dict()
    save_checkpoint(path, {f"module.{k}": v for k, v in state.items()})
    run_main("--eval_only", "--pretrained_ckpt", str(path), "--run_id", "p")
    assert set(results("p")["protocols"]) == {"checkpoint"}
    loaded = load_network(path).net.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


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
    small = MGFN(feature_dim=5, dims=(8, 8, 8), depths=(1, 1, 1))
    save_checkpoint(tmp_path / "small.pth", small.state_dict())
    save_checkpoint(tmp_path / "text.pth", {"a": torch.zeros(1)})
    for words, *arguments in (
        ("--checkpoint", "--eval_only"),
        ("blur", "--anonymizer", "blur"),
        ("dimension 5", "--eval_only", "--checkpoint", str(tmp_path / "small.pth")),
        ("no MGFN weights", "--eval_only", "--checkpoint", str(tmp_path / "text.pth")),
        ("--checkpoint", "--score", "video.mp4"),
        ("video.mp4", "--score", "video.mp4", "--checkpoint", str(tmp_path / "small.pth")),
    ):
        with pytest.raises(UserError, match=words):
            run_main(*arguments)


def test_killed_and_resumed_run_equals_an_uninterrupted_one(run_main, small_set, tmp_path):
    """The kill is a real one, of a process; what goes on afterwards and the reference run in this
    one."""
    more = ["--epochs", "25", "--minutes_between_saves", "0"]
    broken, state = (
        start(small_set, tmp_path, *more, "--run_id", "broken"),
        checkpoint("broken", "state"),
    )
    wait_for(state, broken)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert 0 < load_checkpoint(state)["position"]["epoch"] < 25
    run_main("--run_id", "broken", "--resume", *more)
    run_main("--run_id", "whole", *more)
    for name in ("last", "best", "best_on_test"):
        one, other = (load_network(checkpoint(run, name)) for run in ("whole", "broken"))
        assert one.epoch == other.epoch
        weights = other.net.state_dict()
        assert all(torch.equal(own, weights[key]) for key, own in one.net.state_dict().items())
    assert results("whole")["protocols"] == results("broken")["protocols"]
    assert not state.exists(), "a finished run leaves no state behind"


def test_a_finished_run_is_not_done_again(run_main):
    run_main("--run_id", "a", "--epochs", "2")
    path = config.RESULTS_ROOT / "anomaly_own_a.json"
    written = path.stat().st_mtime_ns
    assert run_main("--run_id", "a", "--epochs", "2", "--resume", "--n_threads", "2") == 0
    assert path.stat().st_mtime_ns == written
    for option, value in (("lr", "0.1"), ("epochs", "3")):
        with pytest.raises(UserError, match=f"{option}: .*, now {value}"):
            run_main("--run_id", "a", "--epochs", "2", "--resume", f"--{option}", value)


def test_a_finished_run_is_of_its_features_and_labels(run_main, small_set, tmp_path):
    """Features of another anonymizer under the same run id once gave back the old result."""
    run_main("--run_id", "a", "--epochs", "2")
    resume = ("--run_id", "a", "--epochs", "2", "--resume")
    other = replace(small_set, features=tmp_path / "other")
    other.write(anonymizer={"name": "blur", "sha256": ""})
    with pytest.raises(UserError, match="anonymizer: another file; manifest: another file"):
        run_main(*resume, "--features", str(other.features))
    other.write()
    assert run_main(*resume, "--features", str(other.features)) == 0, "a copy is the same"
    path = small_set.dataset / "train.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",0,", ",1,", 1), encoding="utf-8")
    with pytest.raises(UserError, match="own: other lists or files"):
        run_main(*resume)


def test_a_detector_of_other_features_is_refused(run_main, small_set, tmp_path):
    run_main("--run_id", "a", "--epochs", "1")
    last = checkpoint("a")
    evaluate = ("--eval_only", "--checkpoint", str(last), "--run_id", "e")
    for changes, words in (
        ({"anonymizer": {"name": "blur", "sha256": ""}}, "anonymizer raw, here blur"),
        ({"anonymizer": {"name": "fa.pth", "sha256": "1" * 64}}, "anonymizer raw, here fa.pth"),
        ({"utility": {"path": "other.pth", "sha256": ""}}, "utility ft.pth, here other.pth"),
        ({"size": 64, "crop": 1.0}, "crop 0.8, here 1.0; size 48, here 64"),
    ):
        small_set.write(**changes)
        with pytest.raises(UserError, match=f"{last} was trained on other features.*{words}"):
            run_main(*evaluate)
    small_set.write(precision="bf16")
    assert run_main(*evaluate) == 0


def test_terminated_run_saves_and_goes_on(run_main, small_set, tmp_path):
    stopped = start(small_set, tmp_path, "--epochs", "3000", "--run_id", "stopped")
    wait_for(tmp_path / "logs" / "stopped", stopped)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    assert stopped.returncode == 143
    assert 0 < load_checkpoint(checkpoint("stopped", "state"))["position"]["epoch"] < 3000


def test_seeds_are_summarised_as_mean_and_deviation(run_main):
    assert run_main("--run_id", "a", "--epochs", "2", "--seeds", "3", "5") == 0
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


def test_test_videos_alone_can_be_evaluated(run_main, small_set):
    """No list and no features of training videos."""
    run_main("--run_id", "a", "--epochs", "1")
    last = str(checkpoint("a"))
    (small_set.dataset / "train.csv").unlink()
    arrays = small_set.arrays.items()
    small_set.arrays = {name: array for name, array in arrays if name.startswith("test")}
    small_set.write()
    assert run_main("--eval_only", "--checkpoint", last, "--run_id", "e") == 0
    expected = results("a")["protocols"]["last"]
    assert results("e")["protocols"]["checkpoint"] == pytest.approx(expected)


def test_process_says_what_is_wrong_in_one_line(small_set, tmp_path):
    (small_set.features / f"{list(small_set.arrays)[0]}.npy").write_bytes(b"")
    process = start(small_set, tmp_path)
    stderr = process.communicate()[1]
    assert process.returncode == 2 and stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in stderr and ".npy" in stderr


def test_scores_of_any_video_name(tmp_path):
    names = ["file", "a=b #1.x", "ünïcode", "args"]
    arrays = [np.arange(3, dtype=np.float32) + i for i in range(4)]
    write_scores(tmp_path / "s.npz", dict(zip(names, arrays, strict=True)))
    found = np.load(tmp_path / "s.npz")
    assert sorted(found.files) == sorted(names)
    for name, array in zip(names, arrays):
        np.testing.assert_array_equal(found[name], array)
