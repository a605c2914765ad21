"""Steps run once, in order, several at a time; what failed or was interrupted goes on."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

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


def when(is_true, then) -> threading.Thread:
    """Does something as soon as something else is so."""

    def look() -> None:
        deadline = time.monotonic() + 60
        while not is_true() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_a_step_starts_after_those_it_needs_and_finished_work_is_not_repeated(make_step, calls):
    first, other = make_step("first", nap=0.2), make_step("other")
    last = make_step("last", needs=(first, other))
    steps = [first, other, last]
    outcome, text = run(steps)
    assert set(outcome.done) == {"first", "other", "last"} and calls()[-1] == "last"
    assert read_json(last.outputs[0])["text"] == "firstotherlast" and "3 of 3 steps done" in text
    outcome, text = run(steps)
    assert (
        set(outcome.kept) == {"first", "other", "last"} and not outcome.done and len(calls()) == 3
    )
    assert "3 were done before" in text


def test_what_decides_is_work_again_and_what_does_not_is_none(make_step, calls):
    first = make_step("first")
    last = make_step("last", needs=(first,))
    run([first, last])
    free = [
        make_step("first", n_workers=3, device="cpu"),
        make_step("last", needs=(first,), nap=0.1),
    ]
    assert run(free)[0].kept == ["first", "last"], "workers, device and naps change no result"
    write_json(first.outputs[0], {**read_json(first.outputs[0]), "text": "changed by hand"})
    assert run([first, last])[0].done == ["last"], "the input's content decides, not its date"
    last.outputs[0].unlink()
    assert run([first, last])[0].done == ["last"]
    assert run([make_step("first", value=2)])[0].done == ["first"], "another option"
    assert run([make_step("first", preset="changed")])[0].done == ["first"], "another preset"
    assert len(calls()) == 6


def test_moved_artefacts_stay_finished(make_step, artifacts, monkeypatch):
    first = make_step("first")
    last = make_step("last", needs=(first,))
    run([first, last])
    (artifacts / "saved_models").rename(artifacts / "moved")
    monkeypatch.setattr(config, "SAVED_MODELS_ROOT", artifacts / "moved")
    first = make_step("first")
    assert progress_of(make_step("last", needs=(first,))) == "done"


def test_what_took_long_is_replaced_with_overwrite_only(make_step):
    run([make_step("a", took=601)])
    changed = make_step("a", took=601, value=1)
    outcome, text = run([changed])
    assert outcome.failed == ["a"] and "value: 0, now 1" in text and "--overwrite" in text
    assert run([changed], overwrite=True)[0].done == ["a"]
    assert run([changed], forced=frozenset(["a"]))[0].done == ["a"], "--force implies it"


def test_force_repeats_a_finished_step(make_step, calls):
    steps = [make_step("a"), make_step("b")]
    run(steps)
    assert run(steps, forced=frozenset(["b"]))[0].done == ["b"]
    assert sorted(calls()) == ["a", "b", "b"]


def test_a_failure_stops_only_what_depends_on_it_and_shows_its_log(make_step, calls):
    bad = make_step("bad", status=1)
    steps = [bad, make_step("after", needs=(bad,)), make_step("good", nap=0.2)]
    outcome, text = run(steps, jobs=1)
    assert (outcome.failed, outcome.not_run, outcome.done) == (["bad"], ["after"], ["good"])
    assert "something went wrong here" in text and str(log_path(bad)) in text
    assert "after" not in calls()


def test_a_step_that_failed_or_was_killed_goes_on_where_it_stood(make_step, calls, capfd):
    """A full disk, an error, the machine's memory: hours of training are not begun again."""
    failed = make_step("failed", steps=3, status=2)
    assert run([failed])[0].failed == ["failed"] and progress_of(failed) == "resumes"
    assert run([make_step("failed", steps=3)])[0].done == ["failed"]
    assert calls() == ["failed", "failed resumed"]
    assert "saved 1" not in log_path(failed).read_text(), "all three steps stood there"

    killed = make_step("killed", steps=3, nap=1.0)
    state = config.SAVED_MODELS_ROOT / "killed" / "toy_state.pth"
    thread = when(state.is_file, lambda: _kill(killed))
    outcome, text = run([killed])
    thread.join()
    assert outcome.failed == ["killed"] and "SIGKILL look at the machine's memory" in text
    assert run([killed])[0].done == ["killed"]
    assert calls()[2:] == ["killed", "killed resumed"]
    assert "saved 1" not in log_path(killed).read_text() and not state.exists()


def _kill(step: Step) -> None:
    """By the folder in its environment, as nobody else tells its process."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            mine = b"toy_step" in (path / "comm").read_bytes()
        except OSError:
            continue
        if mine and os.getsid(int(path.name)) == int(path.name):
            log = os.readlink(path / "fd" / "1")
            if log == str(log_path(step)):
                os.kill(int(path.name), signal.SIGKILL)


def test_an_unfinished_state_of_something_else_is_not_resumed(make_step, calls):
    run([make_step("a", steps=2, status=2)])
    changed = make_step("a", steps=2, value=1)
    assert progress_of(changed) == "to do"
    assert run([changed])[0].done == ["a"] and calls() == ["a", "a"]
    assert "toy_state.set_aside.pth" in log_path(changed).read_text()


def test_a_step_that_ends_well_without_its_output_has_failed(make_step, artifacts):
    step = replace(make_step("a"), outputs=(artifacts / "never_written",))
    outcome, text = run([step])
    assert outcome.failed == ["a"] and "never_written" in text


def test_status_3_counts_as_done_with_a_warning(make_step):
    partly = make_step("partly", status=3)
    outcome, text = run([partly, make_step("after", needs=(partly,))])
    assert outcome.done == ["partly", "after"] and "some inputs failed" in text


def test_times_are_those_of_each_step(make_step):
    steps = [make_step(name, busy=1.5, took=0.1) for name in "ab"]
    run(steps, jobs=2)
    timings = read_timings()
    assert all(0.5 < timings[name]["cpu_seconds"] < 10 for name in "ab"), "not that of both"
    a, b = timings["a"], timings["b"]
    assert max(a["started"], b["started"]) < min(a["finished"], b["finished"]), "two at once"
    assert worked_seconds(timings) < a["seconds"] + b["seconds"]
    assert expected_seconds(steps[0], timings) == a["seconds"]
    other = make_step("c")
    assert expected_seconds(other, timings) == pytest.approx((a["seconds"] + b["seconds"]) / 2)
    assert expected_seconds(replace(other, scale="paper"), timings) is None
    assert a["command"] == steps[0].shell_line() and a["stage"] == "toy"


def test_wall_clock_counts_overlapping_work_once():
    spans = {"a": (0, 10), "b": (5, 12), "c": (100, 101)}
    timings = {n: {"started": s, "finished": f} for n, (s, f) in spans.items()}
    assert worked_seconds(timings) == 13 and worked_seconds({}) == 0
    assert [clock(s) for s in (5, 3605, 200_000)] == ["0:05", "1:00:05", "56 hours"]


def test_one_at_a_time_the_longest_chain_first(make_step, calls):
    single, head = make_step("single"), make_step("head")
    middle = make_step("middle", needs=(head,))
    run([single, head, middle, make_step("tail", needs=(middle,))], jobs=1)
    assert calls()[:2] == ["head", "middle"], "`single` was ready, but nothing waits for it"
    spans = sorted((t["started"], t["finished"]) for t in read_timings().values())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


@pytest.mark.parametrize("scale", ["miniature", "paper"])
def test_interruption_ends_the_children_and_the_same_command_goes_on(make_step, calls, scale):
    step = replace(make_step("slow", steps=2, nap=1.5), scale=scale)
    state = config.SAVED_MODELS_ROOT / "slow" / "toy_state.pth"
    thread = when(state.is_file, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run([step])
    thread.join()
    assert not step.outputs[0].exists() and progress_of(step) == "resumes"
    assert run([step])[0].done == ["slow"] and calls() == ["slow", "slow resumed"]


def test_a_second_run_on_the_same_artefacts_is_refused(make_step, artifacts):
    lock = artifacts / "logs" / "reproduce" / "lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w'); "
         "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(30)", str(lock)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match="TED_SPAD_ARTIFACT_ROOT"):
            run([make_step("a")])
    finally:
        holder.kill()
        holder.wait()
    assert run([make_step("a")])[0].done == ["a"]
