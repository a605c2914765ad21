"""Runs steps as processes, several at once, each after those it needs; keeps what each one took."""

import fcntl
import logging
import math
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from aux_code import config
from aux_code.checkpoints import git_commit, read_json, write_json
from aux_code.errors import UserError
from aux_code.training_state import CHEAP_SECONDS
from reproduction.plan import STAGES, Progress, Step, progress_of
from reproduction.processes import Command, ForkedProcess, PlainProcess, stop

log = logging.getLogger(__name__)

DONE_STATUSES = (0, 3)
"""Exit statuses that leave usable outputs; 3: some inputs failed, and the log names them."""
SECONDS_TO_LEAVE = 30.0
"""How long a stopped process may take to save its state before it is killed."""
LOG_LINES_SHOWN = 15

Timings = dict[str, dict[str, Any]]
"""Name of a step -> started and finished (seconds since the epoch), seconds, cpu_seconds, ..."""


@dataclass
class Outcome:
    """Names of steps: finished now, or before; ended with an error; waiting for such a one."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


class _Running(NamedTuple):
    step: Step
    process: PlainProcess | ForkedProcess
    started: float


def log_path(step: Step) -> Path:
    """Where the stdout and stderr of a step go."""
    return config.LOGS_ROOT / "reproduce" / f"{step.name}.log"


def read_timings() -> Timings:
    """What each step took when it last ran here; empty without any."""
    path = config.LOGS_ROOT / "reproduce" / "timings.json"
    return read_json(path) if path.is_file() else {}


def expected_seconds(step: Step, timings: Mapping[str, dict[str, Any]]) -> float | None:
    """What a step took last time, else the median of its stage at its scale, else None."""
    if step.name in timings:
        return timings[step.name]["seconds"]
    like = (step.stage, step.scale)
    seconds = [t["seconds"] for t in timings.values() if (t["stage"], t["scale"]) == like]
    return statistics.median(seconds) if seconds else None


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss, from two days on as hours."""
    whole = max(0, round(seconds))
    if whole >= 48 * 3600:
        return f"{whole / 3600:,.0f} hours"
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def run_steps(
    steps: Sequence[Step], jobs: int, forced: frozenset[str] = frozenset(), overwrite: bool = False,
    stream: TextIO | None = None,
) -> Outcome:  # fmt: skip
    """Runs what is not done, at most `jobs` at once; a failure stops only what depends on it.

    Args:
        steps: each after those it needs.
        jobs: at least 1.
        forced: names of steps that run although they are done, with --overwrite.
        overwrite: pass --overwrite to every script that runs.
        stream: gets a line for each event.

    Raises:
        UserError: another one works in the same ARTIFACT_ROOT.
        KeyboardInterrupt, Terminated: after every process was told to save its state and has left.
    """
    with _only_one_here() as lock:
        runner = _Runner(steps, jobs, (forced, overwrite), lock, stream or sys.stderr)
        try:
            runner.run()
        finally:
            stop([running.process for running in runner.running], SECONDS_TO_LEAVE)
            kept, seconds = len(runner.outcome.kept), time.time() - runner.begun
            before = f", {kept} were done before" if kept else ""
            n_done = f"{len(runner.outcome.done)} of {len(steps)} steps done"
            runner.say(f"{n_done} in {clock(seconds)}{before}")
    return runner.outcome


class _Runner:
    def __init__(
        self, steps: Sequence[Step], jobs: int, wishes: tuple[frozenset[str], bool],
        lock: Connection, stream: TextIO,
    ):  # fmt: skip
        self.waiting, self.total, self.jobs = list(steps), len(steps), jobs
        self.forced, self.overwrite = wishes
        self.lock, self.stream, self.begun = lock, stream, time.time()
        self.running: list[_Running] = []
        self.progress: dict[str, Progress] = {}
        self.outcome, self.timings = Outcome(), read_timings()
        self.rank = _longest_chains(steps, self.timings)

    def run(self) -> None:
        self.say(f"{self.total} steps, {self.jobs} at once")
        while self.waiting or self.running:
            self._advance()
            for running in list(self.running):
                if running.process.poll() is not None:
                    self.running.remove(running)
                    self._settle(running)
            if self.running:
                time.sleep(0.1)

    def _advance(self) -> None:
        """Starts what can, the longest chain first; drops what is done or waits for a failure."""
        for step in sorted(self.waiting, key=lambda step: -self.rank[step.name]):
            if not {*self.outcome.failed, *self.outcome.not_run}.isdisjoint(step.needs):
                self.outcome.not_run.append(step.name)
            elif not {*self.outcome.done, *self.outcome.kept}.issuperset(step.needs):
                continue
            else:
                if step.name not in self.progress:  # looked up once: all that it needs is there
                    self.progress[step.name] = progress_of(step)
                if self.progress[step.name] == "done" and step.name not in self.forced:
                    self.outcome.kept.append(step.name)
                elif len(self.running) < self.jobs:
                    self.running.append(self._start(step))
                    self._tell("start ", step)
                else:
                    continue
            self.waiting.remove(step)

    def _start(self, step: Step) -> _Running:
        progress = self.progress[step.name]
        overwrite = self.overwrite or step.name in self.forced
        if step.features is not None:
            if progress == "done":  # forced: the script would find nothing to do
                shutil.rmtree(step.features)
            # a folder knows no time of its own: cheap features made in another way are replaced
            took = self.timings.get(step.name, {}).get("seconds", math.inf)
            overwrite |= took <= CHEAP_SECONDS
        flags = step.flags("to do" if progress == "done" else progress, overwrite)
        log_file = log_path(step)
        log_file.write_text(step.shell_line(*flags) + "\n", encoding="utf-8")
        environment, folder = {**os.environ, **step.environment}, str(config.REPOSITORY_ROOT)
        command = Command(step.words(*flags), folder, str(log_file), environment, self.lock)
        start = ForkedProcess if step.scale == "miniature" else PlainProcess
        return _Running(step, start(command), time.time())

    def _settle(self, running: _Running) -> None:
        """Notes how a process ended, and how long it took."""
        step, status, finished = running.step, running.process.poll(), time.time()
        missing = [str(path) for path in step.outputs if not path.exists()]
        if status not in DONE_STATUSES or missing:
            self.outcome.failed.append(step.name)
            lines = log_path(step).read_text(encoding="utf-8", errors="replace").splitlines()[1:]
            shown = "".join(f"\n    {line}" for line in lines[-LOG_LINES_SHOWN:])
            reason = f"{_reason(status, missing)}{shown}\n    (whole log: {log_path(step)})"
            self._tell("FAILED", step, f": {reason}")
            return
        seconds = finished - running.started
        self.timings[step.name] = {
            "stage": step.stage, "scale": step.scale, "started": running.started,
            "finished": finished, "seconds": seconds, "cpu_seconds": running.process.cpu_seconds,
            "status": status, "command": step.shell_line(), "commit": git_commit(),
        }  # fmt: skip
        write_json(config.LOGS_ROOT / "reproduce" / "timings.json", self.timings)
        self.outcome.done.append(step.name)
        warning = f"; some inputs failed, see {log_path(step)}" if status else ""
        self._tell("done  ", step, f" in {clock(seconds)}{self._left()}{warning}")

    def _left(self) -> str:
        """`, about h:mm:ss left`; empty as long as a stage's duration is unknown."""
        left = [expected_seconds(step, self.timings) for step in self.waiting]
        for running in self.running:
            usual = expected_seconds(running.step, self.timings)
            left.append(usual and max(0.0, usual + running.started - time.time()))
        known = left and None not in left
        return f", about {clock(max(sum(left) / self.jobs, *left))} left" if known else ""

    def _tell(self, what: str, step: Step, more: str = "") -> None:
        """Such as `[ 3/90] done   3 extract features: NAME in 0:12, about 9:30 left`."""
        n = len(self.outcome.done) + len(self.outcome.kept)
        position = f"[{n:{len(str(self.total))}d}/{self.total}]"
        self.say(f"{position} {what} {STAGES[step.stage].title}: {step.name}{more}")

    def say(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()


def _longest_chains(steps: Sequence[Step], timings: Timings) -> dict[str, float]:
    """Name -> expected seconds of the longest chain of steps that begins with it."""
    known = {step.name: expected_seconds(step, timings) for step in steps}
    usual = statistics.fmean([s for s in known.values() if s is not None] or [1.0])
    own = {name: usual if seconds is None else seconds for name, seconds in known.items()}
    chains = dict(own)
    for step in reversed(steps):  # after all that need it
        for name in step.needs:
            chains[name] = max(chains[name], own[name] + chains[step.name])
    return chains


def _reason(status: int, missing: list[str]) -> str:
    if status in DONE_STATUSES:
        return f"it ended well but did not write {', '.join(missing)}"
    if status < 0:
        name = signal.Signals(-status).name
        return f"it was ended by {name}; on SIGKILL look at the machine's memory"
    return f"it ended with status {status}"


@contextmanager
def _only_one_here() -> Iterator[Connection]:
    """A lock on ARTIFACT_ROOT that this process and its steps hold; a connection, since one of
    these can be given to other processes. NFS locks only what is open for writing."""
    path = config.LOGS_ROOT / "reproduce" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Connection(os.open(path, os.O_RDWR | os.O_CREAT)) as lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "another reproduce.py (or a script it started) still works in "
                f"{config.ARTIFACT_ROOT}; wait for it, end it, or set TED_SPAD_ARTIFACT_ROOT"
            ) from error
        except OSError as error:  # a network disk without locks
            text = "%s cannot be locked (%s): start no second reproduce.py for this folder"
            log.warning(text, path, error.strerror)
        yield lock
