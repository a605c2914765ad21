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

from aux_code.checkpoints import load_checkpoint
from tests.anonymization_training.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
STEPS = Path(__file__).with_name("distributed_steps.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SCRIPT = ROOT / "anonymization_training" / "train_anonymizer.py"


def start(words: list, environment: dict[str, str]) -> subprocess.Popen:
    """A Python process with these arguments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Standard output and error of a process that succeeds."""
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return output, error


@pytest.mark.parametrize(
    "term, positives", [("triplet", "views"), ("invariance", "frames"), ("lltc", "views")]
)
def test_two_processes_with_four_videos_do_what_one_does_with_eight(tmp_path, term, positives):
    results = []
    for prefix in ((), TORCHRUN):
        output = tmp_path / f"{len(results)}.pth"
        finish(start([*prefix, STEPS, output, term, positives], {}))
        results.append(torch.load(output, weights_only=True))
    one, two = results
    for alone, together in zip(one["losses"], two["losses"], strict=True):
        assert alone.keys() == together.keys()
        assert together == pytest.approx(alone, rel=1e-5, abs=1e-6)
    first, last = (one["losses"][i]["step1/total"] for i in (0, -1))
    assert first != pytest.approx(last, rel=1e-3), "it learns"
    for alone, together in zip(one["states"], two["states"], strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture
def environment(artifacts: Path, tiny_data: Path) -> dict[str, str]:
    """Of scripts that read the tiny data and write below this test's folder."""
    return {"TED_SPAD_DATA_ROOT": str(tiny_data), "TED_SPAD_ARTIFACT_ROOT": str(artifacts)}


@pytest.fixture
def options(init_options: list[str]):
    """options(run_id, *more) of train_anonymizer.py, for a few steps."""
    few = [*TINY, "--max_steps", "4", "--minutes_between_saves", "0", *init_options]
    return lambda run_id, *more: [*few, "--run_id", run_id, *more]


def same_networks(first: Path, second: Path) -> None:
    """Bit for bit, metrics too."""
    one, other = load_checkpoint(first), load_checkpoint(second)
    assert one["meta"]["metrics"] == other["meta"]["metrics"]
    for role in ("fa", "ft", "fb"):
        state = other[f"{role}_model_state_dict"]
        for name, value in one[f"{role}_model_state_dict"].items():
            assert torch.equal(value, state[name]), (role, name)


def worker_of(process: subprocess.Popen, rank: int) -> int:
    """Process id of a rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"no worker of rank {rank}")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the file exists."""
    deadline = time.monotonic() + 240
    while not path.exists():
        alive = process.poll() is None and time.monotonic() < deadline
        assert alive, process.communicate()[1][-3000:]
        time.sleep(0.02)


def test_a_worker_that_dies_ends_the_job_and_a_restart_goes_on(options, environment, artifacts):
    whole, broken = (artifacts / "saved_models" / name for name in ("whole", "broken"))
    finish(start([*TORCHRUN, SCRIPT, *options("whole")], environment))
    written = ["best.pth", "last.pth", "params_train_anonymizer.json"]
    assert sorted(p.name for p in whole.iterdir()) == written
    assert len(list((artifacts / "logs" / "whole").iterdir())) == 1

    process = start([*TORCHRUN, SCRIPT, *options("broken")], environment)
    wait_for(broken / "train_anonymizer_state.pth", process)
    os.kill(worker_of(process, 1), signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and ("SIGKILL" in error or "Signal 9" in error), error[-3000:]
    assert "lost another process of this job" in error and "--resume" in error, error[-3000:]
    assert not (broken / "last.pth").exists()
    finish(start([*TORCHRUN, SCRIPT, *options("broken", "--resume")], environment))
    same_networks(whole / "last.pth", broken / "last.pth")


def test_torchrun_itself_replaces_a_worker_that_dies(options, environment, artifacts):
    """With cross-entropy alone, where f_T's head has no gradient on any rank."""
    folder = artifacts / "saved_models" / "replaced"
    words = options("replaced", "--resume", "--utility_loss", "ce")
    process = start([*TORCHRUN, "--max_restarts", "1", SCRIPT, *words], environment)
    wait_for(folder / "train_anonymizer_state.pth", process)
    os.kill(worker_of(process, 0), signal.SIGKILL)
    finish(process)
    assert (folder / "last.pth").is_file() and not (folder / "train_anonymizer_state.pth").exists()


def test_sigterm_saves_on_all_ranks_at_the_same_step(options, environment, artifacts):
    folder = artifacts / "saved_models" / "stopped"
    process = start([*TORCHRUN, SCRIPT, *options("stopped")], environment)
    wait_for(folder / "train_anonymizer_state.pth", process)
    process.terminate()
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and "--resume goes on" in error, error[-3000:]
    finish(start([*TORCHRUN, SCRIPT, *options("stopped", "--resume")], environment))
    assert (folder / "last.pth").is_file() and not (folder / "train_anonymizer_state.pth").exists()


def test_a_batch_that_cannot_be_shared_is_refused(options, environment):
    process = start([*TORCHRUN, SCRIPT, *options("odd", "--batch_images", "7")], environment)
    _, error = process.communicate(timeout=240)
    assert process.returncode != 0 and "2 processes cannot share batches of 7 equally" in error
