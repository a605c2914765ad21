"""Steps run once, in order, several at a time; failures and interruptions leave a state from which
a rerun goes on."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aux_code.errors import UserError
from reproduction.executor import Outcome, run_tasks
from reproduction.preparation import timings_of
from reproduction.status import StatusDisplay
from reproduction.tasks import Task

ROOT = Path(__file__).resolve().parents[2]


def run(
    tasks: list[Task], jobs: int = 2, forced: frozenset[str] = frozenset()
) -> tuple[Outcome, str]:
    stream = io.StringIO()
    return run_tasks(tasks, jobs, StatusDisplay(stream), forced), stream.getvalue()


def test_a_step_starts_after_those_it_needs(make_task, calls):
    first, other = make_task("first", sleep=0.2), make_task("other")
    last = make_task("last", needs=(first, other))
    outcome, text = run([last, first, other])
    assert set(outcome.done) == {"first", "other", "last"} and calls()[-1] == "last"
    assert last.outputs[0].read_text() == "firstotherlast"
    assert "3 of 3 steps done" in text


def test_finished_work_is_not_repeated(make_task, calls):
    first = make_task("first")
    tasks = [first, make_task("last", needs=(first,))]
    run(tasks)
    outcome, text = run(tasks)
    assert outcome.kept == ["first", "last"] and not outcome.done and len(calls()) == 2
    assert "2 were done before" in text


def test_changed_input_or_option_or_lost_output_is_work_again(make_task, calls):
    first = make_task("first")
    last = make_task("last", needs=(first,))
    run([first, last])
    first.outputs[0].write_text("changed by hand")
    assert run([first, last])[0].done == ["last"], "the input's content decides, not its date"
    last.outputs[0].unlink()
    assert run([first, last])[0].done == ["last"]
    assert run([make_task("first", sleep=0.01)])[0].done == ["first"], "another option"
    assert calls() == ["first", "last", "last", "last", "first"]


def test_a_changed_preset_is_work_again(make_task):
    from dataclasses import replace

    task = make_task("a")
    run([replace(task, parameters={"epochs": 1})])
    assert run([replace(task, parameters={"epochs": 1})])[0].kept == ["a"]
    assert run([replace(task, parameters={"epochs": 2})])[0].done == ["a"]


def test_force_repeats_a_finished_step(make_task, calls):
    tasks = [make_task("a"), make_task("b")]
    run(tasks)
    assert run(tasks, forced=frozenset(["b"]))[0].done == ["b"]
    assert sorted(calls()) == ["a", "b", "b"]


def test_a_failure_stops_only_what_depends_on_it_and_shows_its_log(make_task, calls):
    bad = make_task("bad", status=1)
    after = make_task("after", needs=(bad,))
    good = make_task("good", sleep=0.2)
    outcome, text = run([bad, after, good], jobs=1)
    assert (outcome.failed, outcome.not_run, outcome.done) == (["bad"], ["after"], ["good"])
    assert "something went wrong here" in text and str(bad.log_path) in text
    assert "after" not in calls()


def test_a_step_that_ends_well_without_its_output_has_failed(make_task, artifacts):
    from dataclasses import replace

    task = replace(make_task("a"), outputs=(artifacts / "never_written",))
    outcome, text = run([task])
    assert outcome.failed == ["a"] and "never_written" in text


def test_status_3_counts_as_done_with_a_warning(make_task):
    outcome, text = run([make_task("partly", status=3)])
    assert outcome.done == ["partly"] and "some inputs failed" in text


def test_processor_time_is_that_of_each_step(make_task, artifacts):
    busy = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.4: pass\n"
    (artifacts / "step.py").write_text(
        busy + (artifacts / "step.py").read_text().replace("time.sleep", "0 and ")
    )
    tasks = [make_task(name) for name in "ab"]
    run(tasks, jobs=2)
    for task in tasks:
        assert 0.4 <= read_stamp(task)["cpu_seconds"] < 0.8, "not that of both"
    assert sum(timing["cpu_seconds"] for timing in timings_of(tasks).values()) >= 0.8


def test_two_steps_overlap_with_two_jobs_and_never_with_one(make_task):
    for jobs in (1, 2):
        tasks = [make_task(f"{name}{jobs}", sleep=0.4) for name in "ab"]
        run(tasks, jobs)
        spans = sorted((stamp["started"], stamp["finished"]) for stamp in map(read_stamp, tasks))
        assert (spans[1][0] < spans[0][1]) == (jobs == 2)


def read_stamp(task: Task) -> dict:
    from aux_code.checkpoints import read_json

    return read_json(task.stamp_path)


def test_the_longest_chain_goes_first(make_task, calls):
    single = make_task("single")
    head = make_task("head")
    middle = make_task("middle", needs=(head,))
    run([single, head, middle, make_task("tail", needs=(middle,))], jobs=1)
    assert calls()[:2] == ["head", "middle"], (
        "`single` was ready as early, but nothing waits for it"
    )


def test_an_interrupted_step_is_resumed_and_its_folder_kept(make_task, calls, artifacts):
    from dataclasses import replace

    folder = artifacts / "own"
    folder.mkdir()
    (folder / "half").write_text("work")
    task = replace(make_task("slow", sleep=30), own_folder=folder)
    task.mark_started()  # as a killed run leaves it
    worker = threading.Thread(target=_interrupt_when_started, args=(calls, 1))
    worker.start()
    with pytest.raises(KeyboardInterrupt):
        run([task])
    worker.join()
    assert calls() == ["slow resumed"] and (folder / "half").exists()
    assert task.was_interrupted() and not task.is_done()


def test_a_fresh_start_empties_the_folder_that_is_only_its_own(make_task, artifacts):
    from dataclasses import replace

    folder = artifacts / "own"
    folder.mkdir()
    (folder / "old").write_text("features of another network")
    run([replace(make_task("a"), own_folder=folder)])
    assert not folder.exists()


def _interrupt_when_started(calls, n: int) -> None:
    deadline = time.monotonic() + 20
    while len(calls()) < n and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_interruption_ends_the_children(make_task, calls, artifacts):
    task = make_task("slow", sleep=30)
    worker = threading.Thread(target=_interrupt_when_started, args=(calls, 1))
    worker.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run([task])
    worker.join()
    assert time.monotonic() - began < 20
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(artifacts / "step.py") not in listing


def test_a_second_run_on_the_same_artefacts_is_refused(make_task, artifacts):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w'); "
         "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(30)",
         str(_lock(artifacts))], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match="TED_SPAD_ARTIFACT_ROOT"):
            run([make_task("a")])
    finally:
        holder.kill()
        holder.wait()
    assert run([make_task("a")])[0].done == ["a"]


def _lock(artifacts: Path) -> Path:
    path = artifacts / "logs" / "reproduce" / "lock"
    path.parent.mkdir(parents=True)
    return path


def test_the_estimate_learns_from_the_same_stage(make_task):
    from reproduction.estimates import Estimates

    tasks = [make_task(f"miniature_s0_{i}") for i in range(4)]
    estimates = Estimates(tasks)
    estimates.learn(tasks[0], 10.0)
    assert estimates.seconds_left(tasks[1:], [], jobs=1) == pytest.approx(30)
    assert estimates.seconds_left(tasks[1:], [], jobs=2) == pytest.approx(15)
    assert estimates.seconds_left(tasks[2:], [(tasks[1], 4.0)], jobs=2) == pytest.approx(13)
    assert (
        Estimates([make_task("paper_s0_a")]).seconds_left([make_task("paper_s0_a")], [], 1) is None
    )


def test_a_stages_fixed_share_is_told_from_what_grows_with_the_work(artifacts):
    """In the miniature most of an extraction is decoding, the same for all methods, whatever f_A
    costs."""
    import reproduce
    from reproduction.costs import gflop
    from reproduction.estimates import Estimates
    from reproduction.plan import PlanSettings, build_plan

    methods = ["raw", "blur", "spact", "ted_spad"]
    tasks = build_plan(methods, [0], PlanSettings("miniature"), reproduce.preset_parameters)
    steps = {task.method: task for task in tasks if task.name.startswith("extraction_ucf_crime")}
    estimates = Estimates(tasks)
    estimates.learn(steps["raw"], 10.0)
    assert estimates.seconds(steps["spact"]) == 10.0, (
        "one kind alone: no reason to believe in thirteen times as much"
    )
    estimates.learn(steps["spact"], 13.0)
    assert estimates.seconds(steps["ted_spad"]) == pytest.approx(13.0)
    assert estimates.seconds(steps["blur"]) == pytest.approx(10.0)
    assert gflop(steps["ted_spad"]) > 10 * gflop(steps["blur"])
