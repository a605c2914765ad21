"""Steps run once, in order, several at a time; what failed or was interrupted goes on."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from aux_code import config
from aux_code.checkpoints import read_json, write_json
from aux_code.errors import UserError
from reproduction.plan import Step, progress_of
from reproduction.runner import Outcome, clock, expected_seconds, log_path, read_timings, run_steps
from reproduction.tables import worked_seconds


def run(steps: list[Step], jobs: int = 2, **wishes) -> tuple[Outcome, str]:
    stream = io.StringIO()
    return run_steps(steps, jobs, stream=stream, **wishes), stream.getvalue()


def test_a_step_starts_after_those_it_needs_and_finished_work_is_not_repeated(make_step, calls):
    first, other = make_step("first", nap=0.2), make_step("other")
    last = make_step("last", needs=(first, other))
    outcome, text = run([first, other, last])
    assert sorted(outcome.done) == ["first", "last", "other"] and calls()[-1] == "last"
    assert read_json(last.outputs[0])["text"] == "firstotherlast" and "3 of 3 steps done" in text
    outcome, text = run([first, other, last])
    assert len(outcome.kept) == len(calls()) == 3 and not outcome.done
    assert "3 were done before" in text


def test_what_decides_is_work_again_and_what_does_not_is_none(make_step, calls, monkeypatch):
    first = make_step("first")
    last = make_step("last", needs=(first,))
    run([first, last])
    other_first = make_step("first", n_workers=3, device="cpu")
    other_last = make_step("last", needs=(first,), nap=0.1)
    assert run([other_first, other_last])[0].kept == ["first", "last"], "they change no result"
    write_json(first.outputs[0], {**read_json(first.outputs[0]), "text": "changed by hand"})
    assert run([first, last])[0].done == ["last"], "the input's content decides, not its date"
    last.outputs[0].unlink()
    assert run([first, last])[0].done == ["last"]
    with monkeypatch.context() as patch:
        root = config.SAVED_MODELS_ROOT
        patch.setattr(config, "SAVED_MODELS_ROOT", root.rename(root.with_name("moved")))
        moved = make_step("last", needs=(make_step("first"),))
        assert progress_of(moved) == "done", "paths do not decide"
        config.SAVED_MODELS_ROOT.rename(root)
    assert run([make_step("first", value=2)])[0].done == ["first"], "another option"
    assert run([make_step("first", preset="changed")])[0].done == ["first"], "another preset"
    assert len(calls()) == 6


def test_what_took_long_is_replaced_with_overwrite_only(make_step, calls):
    other = make_step("b")
    run([make_step("a", took=601), other])
    changed = make_step("a", took=601, value=1)
    outcome, text = run([changed, other])
    assert outcome.failed == ["a"] and "value: 0, now 1" in text and "--overwrite" in text
    assert run([changed], overwrite=True)[0].done == ["a"]
    outcome, _ = run([changed, other], forced=frozenset(["a"]))
    assert outcome.done == ["a"] and outcome.kept == ["b"], "--force implies it, for what it names"
    assert sorted(calls()) == [*"aaaab"]


def test_each_end_is_told_and_the_longest_chain_goes_first(make_step, calls):
    good, bad, partly = make_step("good"), make_step("bad", status=1), make_step("partly", status=3)
    empty = replace(make_step("empty"), outputs=(config.ARTIFACT_ROOT / "never_written",))
    after = [make_step(f"after_{step.name}", needs=(step,)) for step in (bad, partly)]
    outcome, text = run([good, empty, bad, partly, *after], jobs=1)
    assert sorted(outcome.failed) == ["bad", "empty"] and outcome.not_run == ["after_bad"]
    assert sorted(outcome.done) == ["after_partly", "good", "partly"], "a failure stops no others"
    assert "something went wrong here" in text and str(log_path(bad)) in text
    assert "some inputs failed" in text and "never_written" in text
    assert calls()[:2] == ["bad", "partly"], "`good` was ready, but nothing waits for it"
    assert "after_bad" not in calls()
    spans = sorted((t["started"], t["finished"]) for t in read_timings().values())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:])), "one at a time"


def test_a_step_that_failed_or_was_killed_goes_on_where_it_stood(make_step, calls):
    """An error, a full disk, the machine's memory: hours of training are not begun again."""
    for name, status, reason in (
        ("failed", 2, "status 2"),
        ("killed", -signal.SIGKILL, "SIGKILL look at the machine's memory"),
    ):
        step = make_step(name, steps=3, status=status)
        outcome, text = run([step])
        assert outcome.failed == [name] and reason in text and progress_of(step) == "resumes"
        assert run([make_step(name, steps=3)])[0].done == [name] and not step.state.exists()
        assert calls()[-2:] == [name, f"{name} resumed"]
        assert "saved 1" not in log_path(step).read_text(), "all three steps stood there"
    run([make_step("a", steps=2, status=2)])
    changed = make_step("a", steps=2, value=1)
    assert progress_of(changed) == "to do", "the state is one of something else"
    assert run([changed])[0].done == ["a"] and calls()[-2:] == ["a", "a"]
    assert "toy_state.set_aside.pth" in log_path(changed).read_text()
    changed.state.with_name("toy_state.set_aside.pth").rename(changed.state)
    assert progress_of(changed) == "done", "what is current stays so beside it"


def test_times_are_those_of_each_step(make_step):
    steps = [make_step(name, busy=1.5, took=0.1) for name in "ab"]
    run(steps, jobs=2)
    timings = read_timings()
    a, b = timings["a"], timings["b"]
    assert all(0.5 < own["cpu_seconds"] < 10 for own in (a, b)), "not that of both"
    assert max(a["started"], b["started"]) < min(a["finished"], b["finished"]), "two at once"
    assert worked_seconds(timings) < a["seconds"] + b["seconds"]
    assert expected_seconds(steps[0], timings) == a["seconds"]
    other = make_step("c")
    assert expected_seconds(other, timings) == pytest.approx((a["seconds"] + b["seconds"]) / 2)
    assert expected_seconds(replace(other, scale="paper"), timings) is None
    assert a["command"] == steps[0].shell_line() and a["stage"] == "toy"

    spans = [{"started": s, "finished": f} for s, f in ((0, 10), (5, 12), (100, 101))]
    assert worked_seconds(dict(enumerate(spans))) == 13 and worked_seconds({}) == 0
    assert [clock(s) for s in (5, 3605, 200_000)] == ["0:05", "1:00:05", "56 hours"]


@pytest.mark.parametrize("scale", ["miniature", "paper"])
def test_interruption_ends_the_children_and_the_same_command_goes_on(make_step, calls, scale):
    step = replace(make_step("slow", steps=2, nap=1.5), scale=scale)

    def interrupt_when_saved() -> None:
        deadline = time.monotonic() + 60
        while not step.state.is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_saved)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run([step])
    thread.join()
    assert not step.outputs[0].exists() and progress_of(step) == "resumes"
    assert run([step])[0].done == ["slow"] and calls() == ["slow", "slow resumed"]


def test_a_second_run_on_the_same_artefacts_is_refused(make_step, artifacts):
    lock = artifacts / "logs" / "reproduce" / "lock"
    lock.parent.mkdir(parents=True)
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    command = [sys.executable, "-c", hold + "print('held', flush=True); time.sleep(30)", str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="TED_SPAD_ARTIFACT_ROOT"):
                run([make_step("a")])
        finally:
            holder.kill()
    assert run([make_step("a")])[0].done == ["a"]


@pytest.mark.parametrize("answer", [errno.EBADF, errno.ENOLCK])
def test_network_disks_lock_what_is_open_for_writing_or_nothing(
    make_step, monkeypatch, caplog, answer
):
    """Their answers simulated: NFS to a read-only descriptor, and a disk that knows no locks."""

    def flock(descriptor: int, operation: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if answer == errno.ENOLCK or mode == os.O_RDONLY:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run([make_step("a")])[0].done == ["a"]
    assert ("cannot be locked" in caplog.text) == (answer == errno.ENOLCK)
