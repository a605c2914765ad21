"""What the person at the terminal sees: stage, method, elapsed and remaining time."""

import shutil
import sys
import time
from typing import TextIO

from reproduction.tasks import Task

LOG_LINES_SHOWN = 15
SECONDS_BETWEEN_LINES = 60.0
"""Where there is no terminal, so that a log of the run stays short."""


class StatusDisplay:
    """Writes one line per event and, on a terminal, a last line that is always up to date."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.total = self.finished_count = self.kept_count = 0
        self.begun = self.last_line = time.monotonic()

    def begin(self, total: int, jobs: int) -> None:
        """Before the first task."""
        self.total, self.begun = total, time.monotonic()
        self._line(f"{total} steps, {jobs} at once")

    def kept(self, task: Task) -> None:
        """The task was done before."""
        self.kept_count += 1

    def started(self, task: Task) -> None:
        """The task's process runs."""
        self._line(f"{self._position()} start  {describe(task)}")

    def finished(self, task: Task, seconds: float, status: int) -> None:
        """The task is done."""
        self.finished_count += 1
        warning = f"; some inputs failed, see {task.log_path}" if status else ""
        self._line(f"{self._position()} done   {describe(task)} in {clock(seconds)}{warning}")

    def failed(self, task: Task, reason: str) -> None:
        """The task has no result; the others that do not need it go on."""
        lines = task.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        shown = "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])
        self._line(
            f"{self._position()} FAILED {describe(task)}: {reason}\n{shown}\n    (whole log: {task.log_path})"
        )

    def refresh(self, running: list[tuple[Task, float]], seconds_left: float | None) -> None:
        """Called often; `running` is (task, time of its start)."""
        now = time.monotonic()
        interval = 1.0 if self.is_terminal else SECONDS_BETWEEN_LINES
        if not running or now - self.last_line < interval:
            return
        self.last_line = now
        left = "unknown" if seconds_left is None else f"about {clock(seconds_left)}"
        names = " + ".join(
            f"{describe(task)} {clock(time.time() - started)}" for task, started in running
        )
        text = f"{self._position()} {clock(now - self.begun)} elapsed, {left} left | {names}"
        if self.is_terminal:
            self.stream.write(f"\r\033[K{text[: _terminal_width() - 1]}")
            self.stream.flush()
        else:
            self._line(text)

    def end(self) -> None:
        """After the last task."""
        kept = f", {self.kept_count} were done before" if self.kept_count else ""
        seconds = clock(time.monotonic() - self.begun)
        self._line(f"{self.finished_count} of {self.total} steps done in {seconds}{kept}")

    def _position(self) -> str:
        width = len(str(self.total))
        return f"[{self.finished_count + self.kept_count:{width}d}/{self.total}]"

    def _line(self, text: str) -> None:
        if self.is_terminal:
            self.stream.write("\r\033[K")
        self.stream.write(text + "\n")
        self.stream.flush()
        self.last_line = time.monotonic()


STAGE_NAMES = {
    "miniature": "render the data",
    "init_anonymizer": "1 initialise f_A",
    "init_utility": "1 train f_T",
    "init_privacy": "1 initialise f_B",
    "train_anonymizer": "1 train the anonymizer",
    "train_privacy": "2 privacy attacker",
    "dali_extraction": "3 extract features",
    "main": "4 anomaly detection",
}


def describe(task: Task) -> str:
    """Stage and method, e.g. `3 extract features, ucf_crime: blur (seed 0)`."""
    options = dict(zip(task.arguments, task.arguments[1:], strict=False))
    dataset = f", {options['--dataset']}" if "--dataset" in options else ""
    attacker = ", averaging" if "--average_frames" in options else ""
    return f"{STAGE_NAMES.get(task.stage, task.stage)}{dataset}{attacker}: {task.method} (seed {task.seed})"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns
