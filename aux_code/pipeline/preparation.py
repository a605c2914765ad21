"""Before and after the run: what is missing, the plan as text, and how long the work took."""

from pathlib import Path

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.errors import UserError
from aux_code.pipeline.estimates import Estimates
from aux_code.pipeline.plan import PlanSettings
from aux_code.pipeline.status import clock
from aux_code.pipeline.tasks import Task

_ROOTS = {"ucf_crime": "UCF_CRIME_ROOT", "xd_violence": "XD_VIOLENCE_ROOT", "shanghaitech": "SHANGHAITECH_ROOT"}


def missing_inputs(preset: str, settings: PlanSettings) -> list[str]:
    """What the user has to provide and has not: one line each, with what to do. The miniature needs nothing."""
    if preset == "miniature":
        return []
    missing = []
    for constant in ("UCF101_ROOT", "VISPR_ROOT", *(_ROOTS[dataset] for dataset in settings.datasets)):
        root = getattr(config, constant)
        if not root.is_dir():
            missing.append(
                f"{root} does not exist: put the data set there, edit {constant} in aux_code/config.py, or set "
                "TED_SPAD_DATA_ROOT; without any data try --preset miniature"
            )
    if settings.utility_weights and not Path(settings.utility_weights).is_file():
        missing.append(f"--init_weights {settings.utility_weights}: no such file")
    return missing


def describe_plan(tasks: list[Task], n_jobs: int, missing: list[str]) -> str:
    """The plan as a shell script that can be pasted, with what is done, what is missing and the expected time."""
    done = _done(tasks)
    rest = [task for task in tasks if task.name not in done]
    seconds = Estimates(tasks).seconds_left(rest, [], n_jobs)
    time = "unknown (nothing of this size was measured yet)" if seconds is None else f"about {clock(seconds)}"
    lines = [f"# {len(tasks)} steps, {len(done)} of them done; the rest takes {time} with {n_jobs} at once"]
    lines += [f"# MISSING: {line}" for line in missing]
    lines.append(f"cd {config.REPOSITORY_ROOT}")
    for task in tasks:
        lines += [f"\n# {task.name}" + (" (done)" if task.name in done else ""), task.shell_line()]
    return "\n".join(lines) + "\n"


def worked_seconds(tasks: list[Task]) -> float:
    """Wall-clock seconds in which any of the tasks ran, over all calls that did a part of the work."""
    spans = sorted(span for task in tasks if (span := _span(task)))
    total, end = 0.0, float("-inf")
    for start, finish in spans:
        total += max(0.0, finish - max(start, end))
        end = max(end, finish)
    return total


def stage_seconds(tasks: list[Task]) -> dict[str, tuple[int, float]]:
    """Stage -> (number of processes, seconds of all of them added up)."""
    totals: dict[str, tuple[int, float]] = {}
    for task in tasks:
        span = _span(task)
        if span:
            count, seconds = totals.get(task.stage, (0, 0.0))
            totals[task.stage] = (count + 1, seconds + span[1] - span[0])
    return totals


def _span(task: Task) -> tuple[float, float] | None:
    try:
        stamp = read_json(task.stamp_path)
        return float(stamp["started"]), float(stamp["finished"])
    except (UserError, KeyError):
        return None


def _done(tasks: list[Task]) -> set[str]:
    """Names of the tasks that are done, those they need included."""
    done: set[str] = set()
    for task in tasks:
        if done.issuperset(task.needs) and task.is_done():
            done.add(task.name)
    return done
