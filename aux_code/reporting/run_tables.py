"""What was run, where and how long it took."""

import math
import os
import platform
from collections import Counter
from collections.abc import Sequence

import torch

from aux_code.checkpoints import git_commit, read_json
from aux_code.reporting.results import Results
from aux_code.reporting.tables import MISSING, PROTOCOLS, Table
from reproduction.preparation import stage_times, worked_seconds
from reproduction.status import STAGE_NAMES, clock
from reproduction.tasks import Task


def settings_table(results: Results, tasks: Sequence[Task]) -> Table:
    """What was run, and where."""
    rows = [
        ("Preset", results.preset),
        ("Seeds", ", ".join(map(str, results.seeds))),
        ("Protocol", f"{results.protocol}: {PROTOCOLS[results.protocol]}"),
        ("Machine", f"{platform.machine()}, {os.cpu_count()} CPU cores, {_gpu()}"),
        ("Software", f"Python {platform.python_version()}, PyTorch {torch.__version__}"),
        ("Code", _commits(tasks)),
        ("Commands", f"{len(tasks)}; printed by reproduce.py --dry_run with the same options"),
    ]
    return Table("Settings", ("", ""), tuple(rows), is_text=True)


def _commits(tasks: Sequence[Task]) -> str:
    """The commit of each step, since finished work is kept when the code goes on."""
    stamps = [read_json(task.stamp_path) for task in tasks if task.stamp_path.is_file()]
    counts = Counter(str(stamp.get("commit") or "no version control")[:12] for stamp in stamps)
    shown = [f"{commit} ({count} steps)" for commit, count in counts.most_common()]
    return ", ".join(shown) or git_commit()[:12] or "not under version control"


def timing_table(tasks: Sequence[Task]) -> Table:
    """Time per stage, added up over its processes, and of all."""
    times = stage_times(list(tasks))
    rows = [
        (
            STAGE_NAMES.get(stage, stage),
            str(n_steps),
            clock(wall),
            f"{wall / n_steps:.0f} s",
            _clock(cpu),
        )
        for stage, (n_steps, wall, cpu) in times.items()
    ]
    n_steps, wall, cpu = map(sum, zip(*times.values(), strict=True)) if times else (0, 0.0, 0.0)
    rows.append(("All", str(n_steps), clock(wall), "", _clock(cpu)))
    rows.append(("Wall clock", "", clock(worked_seconds(list(tasks))), "", ""))
    note = "Together: wall time of the steps, some of which ran side by side. Processor time: over all cores."
    return Table(
        "Time", ("Stage", "Steps", "Together", "Each", "Processor time"), tuple(rows), (note,)
    )


def _clock(seconds: float) -> str:
    return MISSING if math.isnan(seconds) else clock(seconds)


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
