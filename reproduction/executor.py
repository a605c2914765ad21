"""Runs tasks as processes, several at once, in an order that respects what each waits for."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aux_code import config
from aux_code.errors import UserError
from reproduction.by_hand import holds_its_features, was_run_by_hand
from reproduction.estimates import Estimates
from reproduction.status import StatusDisplay
from reproduction.tasks import Task
from reproduction.warm_start import StartedStep, StepServer

DONE_STATUSES = (0, 3)
"""Exit statuses that leave usable outputs; 3: some inputs failed, and the log names them."""

SECONDS_TO_LEAVE = 30.0
"""How long a stopped process may take to save its state before it is killed."""


@dataclass
class Outcome:
    """What a call of `run_tasks` did."""

    done: list[str] = field(default_factory=list)
    """Finished in this call."""
    kept: list[str] = field(default_factory=list)
    """Finished before."""
    failed: list[str] = field(default_factory=list)
    """Ended with an error; the log says which."""
    not_run: list[str] = field(default_factory=list)
    """Wait for something that failed."""


@dataclass
class _Running:
    task: Task
    process: StartedStep
    started: float


def run_tasks(
    tasks: list[Task],
    jobs: int,
    display: StatusDisplay,
    forced: frozenset[str] = frozenset(),
    part: str = "",
) -> Outcome:
    """Runs what is not done, at most `jobs` processes at once; a failure stops only what depends on
    it.

    Args:
        tasks: in any order; their `needs` name tasks of the same list.
        jobs: at least 1.
        display: shows what happens.
        forced: names of tasks that run although they are done.
        part: name of a part of a plan whose other parts may run at the same time, in other
            processes.

    Raises:
        KeyboardInterrupt, Terminated: after every process was told to save its state and has left.
    """
    with _only_one_here(part) as lock:
        return _Executor(tasks, jobs, display, forced, lock).run()


class _Executor:
    def __init__(
        self,
        tasks: list[Task],
        jobs: int,
        display: StatusDisplay,
        forced: frozenset[str],
        lock: int,
    ):
        self.tasks = {task.name: task for task in tasks}
        self.jobs, self.display = max(1, jobs), display
        self.forced, self.running, self.outcome = set(forced), [], Outcome()
        self.waiting = list(tasks)
        self.estimates = Estimates(tasks)
        self.priority = self.estimates.longest_chain(tasks)
        self.server = StepServer(_shared_variables(tasks), kept_open=(lock,))

    def run(self) -> Outcome:
        self.display.begin(len(self.tasks), self.jobs)
        try:
            while self.waiting or self.running:
                self._settle_waiting()
                self._start_ready()
                self._collect_finished()
                self.display.refresh(
                    [(r.task, r.started) for r in self.running], self._seconds_left()
                )
                if self.running:
                    time.sleep(0.1)
        finally:
            self._stop_children()
            self.server.close()
            self.display.end()
        return self.outcome

    def _settle_waiting(self) -> None:
        """Takes out of the queue what is done already and what waits for a failure."""
        changed = True
        while changed:
            changed = False
            lost = {*self.outcome.failed, *self.outcome.not_run}
            for task in list(self.waiting):
                if lost.intersection(task.needs):
                    self.outcome.not_run.append(task.name)
                elif self._is_ready(task) and task.name not in self.forced and self._is_done(task):
                    self.outcome.kept.append(task.name)
                    self.display.kept(task)
                else:
                    continue
                self.waiting.remove(task)
                changed = True

    def _is_done(self, task: Task) -> bool:
        if not task.is_done() and was_run_by_hand(task):
            task.mark_done(None, None, 0)
            return True
        return task.is_done()

    def _is_ready(self, task: Task) -> bool:
        finished = {*self.outcome.done, *self.outcome.kept}
        return all(name in finished for name in task.needs)

    def _start_ready(self) -> None:
        ready = sorted(
            (t for t in self.waiting if self._is_ready(t)), key=lambda t: -self.priority[t.name]
        )
        for task in ready[: self.jobs - len(self.running)]:
            self.waiting.remove(task)
            self.running.append(self._start(task))
            self.display.started(task)

    def _start(self, task: Task) -> _Running:
        resume = task.was_interrupted() and task.script.endswith(".py")
        task.log_path.parent.mkdir(parents=True, exist_ok=True)
        if (
            task.own_folder
            and not resume
            and (task.name in self.forced or not holds_its_features(task))
        ):
            shutil.rmtree(task.own_folder, ignore_errors=True)
        task.mark_started()
        task.log_path.write_text(
            task.shell_line() + (" --resume" if resume else "") + "\n", encoding="utf-8"
        )
        process = self.server.start(task.command(resume), str(task.log_path), task.environment)
        return _Running(task, process, time.time())

    def _collect_finished(self) -> None:
        for running in list(self.running):
            if running.process.poll() is None:
                continue
            self.running.remove(running)
            task, status, finished = running.task, running.process.returncode, time.time()
            missing = [path for path in task.outputs if not path.exists()]
            if status in DONE_STATUSES and not missing:
                task.mark_done(running.started, finished, status, running.process.cpu_seconds)
                self.forced.discard(task.name)
                self.outcome.done.append(task.name)
                self.estimates.learn(task, finished - running.started)
                self.display.finished(task, finished - running.started, status)
            else:
                task.started_path.unlink(missing_ok=True)
                self.outcome.failed.append(task.name)
                self.display.failed(task, _reason(status, missing))

    def _seconds_left(self) -> float | None:
        now = time.time()
        running = [(r.task, now - r.started) for r in self.running]
        return self.estimates.seconds_left(self.waiting, running, self.jobs)

    def _stop_children(self) -> None:
        """Tells what still runs to leave (SIGINT may be ignored in a background job) and kills what
        does not."""
        for running in self.running:
            _signal_group(running.process, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        for running in self.running:
            try:
                running.process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(running.process, signal.SIGKILL)
                running.process.wait()


def _shared_variables(tasks: list[Task]) -> dict[str, str]:
    """Environment variables that have the same value in all tasks."""
    environments = [task.environment.items() for task in tasks]
    return dict(set.intersection(*map(set, environments))) if environments else {}


def _signal_group(process: StartedStep, number: int) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass


def _reason(status: int, missing: list) -> str:
    if status in DONE_STATUSES:
        return f"it ended well but did not write {', '.join(map(str, missing))}"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}; on SIGKILL look at the machine's memory"
    return f"it ended with status {status}"


@contextmanager
def _only_one_here(part: str) -> Iterator[int]:
    """A lock on the artefacts that this process and its children hold, so that two runs do not
    write the same files.

    A whole plan excludes everybody; parts of a plan exclude a whole one and themselves, not each
    other.
    """
    folder = config.LOGS_ROOT / "reproduce"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / "lock", "a+") as everything,
        open(folder / f"lock_{part or 'all'}", "a+") as own,
    ):
        try:
            fcntl.flock(everything, (fcntl.LOCK_SH if part else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another reproduce.py (or a script it started) still works in {config.ARTIFACT_ROOT}; wait for it, "
                "end it, or set TED_SPAD_ARTIFACT_ROOT to another folder"
            ) from error
        yield everything.fileno()
