"""How long the rest will take: rates of the same stage, measured in this run and in earlier ones,
else from FLOP."""

import statistics
from collections import defaultdict
from functools import cache

import numpy as np

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.errors import UserError
from reproduction.costs import gflop
from reproduction.tasks import Task

FIRST_GUESS_SECONDS = {
    "miniature": 45.0, "init_anonymizer": 20.0, "init_privacy": 30.0, "train_anonymizer": 200.0, "train_privacy": 45.0,
    "dali_extraction": 10.0, "main": 6.0,
}  # fmt: skip
"""A usual step of the miniature preset on one core of an AMD EPYC with AVX-512 BF16, until
something is measured."""
OTHER_GUESS_SECONDS = 25.0


class Estimates:
    """Expected seconds per task.

    Args:
        tasks: of the plan.
        gflops: GFLOP per second for steps of the paper's size of which nothing is measured; 0:
            these are unknown.
    """

    def __init__(self, tasks: list[Task], gflops: float = 0.0):
        self.gflops = gflops
        self.of_task: dict[str, float] = {}
        self.of_stage: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        """(stage, scale) -> (GFLOP, seconds) of each step that ran."""
        known = {task.name: task for task in tasks}
        work = defaultdict(list)
        for task in tasks:
            work[task.stage].append(gflop(task) or 0.0)
        self.usual_gflop = {stage: statistics.median(values) for stage, values in work.items()}
        for path in sorted((config.LOGS_ROOT / "reproduce").glob("*.done.json")):
            try:
                stamp = read_json(path)
                seconds = stamp["finished"] - stamp["started"]
            except (UserError, KeyError, TypeError):
                continue
            if stamp["task"] in known:
                self.learn(known[stamp["task"]], seconds)
            else:
                self.of_stage[stamp["stage"], _scale(stamp["task"])].append(seconds)

    def learn(self, task: Task, seconds: float) -> None:
        """Takes in a measured duration."""
        key, work = (task.stage, _scale(task.name)), gflop(task)
        self.of_task[task.name] = seconds
        self.of_stage[key].append(seconds)
        if work:
            self.points[key].append((work, seconds))

    def seconds(self, task: Task) -> float | None:
        """Expected duration: this task's last one, else from the rate or the median of its stage,
        else a guess."""
        if task.name in self.of_task:
            return self.of_task[task.name]
        key, work = (task.stage, _scale(task.name)), gflop(task)
        if work and (line := _line_through(self.points.get(key, []))):
            return line[0] + line[1] * work
        if work and self.points.get(key) and key[1] == "paper":
            return work * statistics.median(seconds / done for done, seconds in self.points[key])
        if self.of_stage.get(key):
            return statistics.median(self.of_stage[key])
        if _scale(task.name) == "miniature":
            usual = self.usual_gflop.get(task.stage)
            return FIRST_GUESS_SECONDS.get(task.stage, OTHER_GUESS_SECONDS) * (
                work / usual if work and usual else 1
            )
        return work / self.gflops if work and self.gflops else None

    def is_measured(self, task: Task) -> bool:
        """Whether this step or another one of its stage and size has run here."""
        return bool(self.of_stage.get((task.stage, _scale(task.name))))

    def longest_chain(self, tasks: list[Task]) -> dict[str, float]:
        """Task -> expected seconds of the longest chain of tasks that begins with it: what is
        started first."""
        users = defaultdict(list)
        for task in tasks:
            for name in task.needs:
                users[name].append(task.name)
        own = {task.name: self.seconds(task) or 1.0 for task in tasks}

        @cache
        def chain(name: str) -> float:
            return own[name] + max(map(chain, users[name]), default=0.0)

        return {name: chain(name) for name in own}

    def seconds_left(
        self, waiting: list[Task], running: list[tuple[Task, float]], jobs: int
    ) -> float | None:
        """Expected seconds to the end of the last task; None while a stage's duration is unknown.

        Args:
            waiting: not started.
            running: (task, seconds it has run).
            jobs: how many run at once.
        """
        waits = [self.seconds(task) for task in waiting]
        runs = [(self.seconds(task), elapsed) for task, elapsed in running]
        if any(s is None for s in waits) or any(s is None for s, _ in runs):
            return None
        rests = [max(s - elapsed, 0.1 * elapsed) for s, elapsed in runs]
        longest = max([*rests, *waits], default=0.0)
        return max((sum(waits) + sum(rests)) / jobs, longest)


def _line_through(points: list[tuple[float, float]]) -> tuple[float, float] | None:
    """(seconds that every step of a stage takes, seconds per GFLOP), by least squares.

    None where steps of one size were measured alone, or where the larger ones took less.
    """
    work, seconds = np.array(points).reshape(-1, 2).T
    if len(set(work.tolist())) < 2:
        return None
    slope, base = np.polyfit(work, seconds, 1)
    return (float(base), float(slope)) if slope >= 0 and base >= 0 else None


def _scale(task_name: str) -> str:
    """Durations of the miniature say nothing about the paper's scale."""
    return "miniature" if "miniature_s" in task_name else "paper"
