"""Stage 1 in two processes over gloo: what one process does with the whole batch, and what happens
when one dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.anonymization_training.conftest import ROOT, TINY, naming, same_weights

STEPS = Path(__file__).with_name("distributed_steps.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SCRIPT = ROOT / "anonymization_training" / "train_anonymizer.py"


def start(words: list, environment: dict[str, str]) -> subprocess.Popen:
    """A Python process with these arguments."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment, **pipes)


def finish(process: subprocess.Popen) -> None:
    """Waits for a process that succeeds."""
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error[-3000:]


def fail(process: subprocess.Popen) -> str:
    """Standard error of a process that does not."""
    error = process.communicate(timeout=120)[1]
    assert process.returncode != 0, error[-3000:]
    return error


def test_two_processes_with_four_videos_do_what_one_does_with_eight(tmp_path, environment):
    files = {tmp_path / "one.pth": (), tmp_path / "two.pth": TORCHRUN}
    for output, prefix in files.items():
        finish(start([*prefix, STEPS, output], environment))
    one, two = (torch.load(output, weights_only=True) for output in files)
    assert list(one) == list(two) == ["triplet", "invariance", "lltc", "float32"]
    for case, alone in one.items():
        others, tolerance = two[case], 1e-4 if case == "float32" else 1e-10
        totals = [losses["step1/total"] for losses in alone["losses"]]
        assert case == "float32" or totals[0] != pytest.approx(totals[-1], rel=1e-3), "it learns"
        for losses, other in zip(alone["losses"], others["losses"], strict=True):
            assert other == pytest.approx(losses, rel=10 * tolerance), case
        for gradient, other in zip(alone["gradients"], others["gradients"], strict=True):
            assert (gradient - other).norm() <= tolerance * gradient.norm(), case
        for state, other in zip(alone["states"], others["states"], strict=True):
            assert state.keys() == other.keys()
            for name, value in state.items():
                if case == "float32" and "running" not in name:
                    continue  # Adam turns rounding into steps
                difference, norm = (other[name] - value).double().norm(), value.double().norm()
                assert difference <= tolerance * norm, (case, name)


def kill_worker(process: subprocess.Popen, rank: int) -> None:
    """SIGKILL to a rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in children}
    own = [pid for pid, words in environments.items() if b"RANK=%d" % rank in words.split(b"\0")]
    assert len(own) == 1, f"no worker of rank {rank}"
    os.kill(own[0], signal.SIGKILL)


def test_a_job_goes_on_from_where_workers_died_or_were_terminated(environment, artifacts, inits):
    """With cross-entropy alone, where f_T's head has no gradient on any rank."""
    whole, broken = (artifacts / "saved_models" / name for name in ("whole", "broken"))
    state = broken / "train_anonymizer_state.pth"
    options = [*TINY, "--minutes_between_saves", "0", "--utility_loss", "ce", *naming(inits)]

    def start_job(*more) -> subprocess.Popen:
        """Until it has saved its state."""
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = start([*TORCHRUN, *more, "--run_id", "broken"], environment)
        deadline = time.monotonic() + 240
        while not state.exists() or state.stat().st_mtime_ns == before:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, process.communicate()[1][-3000:]
            time.sleep(0.02)
        return process

    process = start_job(SCRIPT, *options)
    kill_worker(process, 1)
    error = fail(process)
    assert "SIGKILL" in error or "Signal 9" in error, error[-3000:]
    assert "lost another process of this job" in error and "--resume" in error, error[-3000:]

    process = start_job(SCRIPT, *options, "--resume")
    process.terminate()
    error = fail(process)
    assert "--resume goes on" in error and not (broken / "last.pth").exists(), error[-3000:]

    process = start_job("--max_restarts", "1", SCRIPT, *options, "--resume")
    kill_worker(process, 0)
    finish(process)

    finish(start([*TORCHRUN, SCRIPT, *options, "--run_id", "whole"], environment))
    written = ["best.pth", "last.pth", "params_train_anonymizer.json"]
    for folder in (whole, broken):
        assert sorted(p.name for p in folder.iterdir()) == written
    assert len(list((artifacts / "logs" / "whole").iterdir())) == 1
    same_weights(whole / "last.pth", broken / "last.pth")
