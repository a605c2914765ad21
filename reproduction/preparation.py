"""Before and after the run: what is missing, the plan as text, and how long the work took."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.datasets.check import find
from aux_code.errors import UserError
from reproduction.by_hand import was_run_by_hand
from reproduction.estimates import Estimates
from reproduction.outside_weights import weight_notes
from reproduction.plan import PlanSettings
from reproduction.status import STAGE_NAMES, clock
from reproduction.tasks import Task

SUSTAINED_SHARE = 0.3
"""Share of a large matrix product's speed that the stages are expected to reach (ours, an
assumption)."""

_CONSTANTS = {
    "ucf101": "UCF101_ROOT", "vispr": "VISPR_ROOT", "ucf_crime": "UCF_CRIME_ROOT", "xd_violence": "XD_VIOLENCE_ROOT",
    "shanghaitech": "SHANGHAITECH_ROOT",
}  # fmt: skip


def missing_inputs(preset: str, settings: PlanSettings) -> list[str]:
    """What the user has to provide and has not: one line each, with what to do. The miniature needs
    nothing.

    The weights of torchvision's networks (Table 10) are downloaded when they are needed, if they
    are not there.
    """
    if preset == "miniature":
        return []
    missing = []
    for name in ("ucf101", "vispr", *settings.datasets):
        constant = _CONSTANTS[name]
        root = getattr(config, constant)
        if not root.is_dir():
            missing.append(
                f"{root} does not exist: put the data set there, edit {constant} in aux_code/config.py, or set "
                "TED_SPAD_DATA_ROOT; without any data try --preset miniature"
            )
    if settings.utility_weights and not Path(settings.utility_weights).is_file():
        missing.append(f"--init_weights {settings.utility_weights}: no such file")
    return missing


def incomplete_data(preset: str, settings: PlanSettings) -> tuple[list[str], list[str]]:
    """What is wrong with the data sets whose folders are there: (what makes them useless, what they
    merely lack).

    Lists and annotations are read and files looked for, as `python -m aux_code.datasets.check`
    does; nothing decoded.
    """
    if preset == "miniature":
        return [], []
    useless, lacking = [], []
    if (config.DATA_ROOT / "miniature.json").is_file():
        lacking.append(
            f"{config.DATA_ROOT} holds the drawn scenes of the miniature, not the real data sets"
        )
    for name in ("ucf101", "vispr", *settings.datasets):
        if not getattr(config, _CONSTANTS[name]).is_dir():
            continue
        findings = find(name)
        problems = [f"{name}: {problem}" for problem in findings.problems]
        if sum(findings.counts.values()):
            lacking += problems
        else:
            useless += problems or [f"{name}: {findings.root} holds nothing of it"]
    return useless, lacking


def describe_plan(
    tasks: list[Task],
    n_jobs: int,
    missing: list[str],
    gflops: float = 0.0,
    lacking: Sequence[str] = (),
) -> str:
    """The plan as a shell script that can be pasted, with what is done, what is missing and the
    expected time.

    Args:
        tasks: each after those it needs.
        n_jobs: steps at once.
        missing: lines of `missing_inputs`.
        gflops: GFLOP per second that are assumed where nothing is measured; 0: such a plan's time
            is unknown.
        lacking: what the data sets lack that does not keep a run from starting.
    """
    done = _done(tasks)
    rest = [task for task in tasks if task.name not in done]
    estimates = Estimates(tasks, gflops)
    seconds = estimates.seconds_left(rest, [], n_jobs)
    duration = (
        "unknown (nothing of this size was measured yet)"
        if seconds is None
        else f"about {hours(seconds)}"
    )
    lines = [
        f"# {len(tasks)} steps, {len(done)} of them done; the rest takes {duration} with {n_jobs} at once"
    ]
    lines += _stage_lines(rest, estimates)
    for word, texts in (
        ("MISSING", missing),
        ("INCOMPLETE", lacking),
        ("NOTE", weight_notes(rest)),
    ):
        lines += [f"# {word}: " + text.replace("\n", "\n#   ") for text in texts]
    lines.append(f"cd {shlex.quote(str(config.REPOSITORY_ROOT))}")
    for task in tasks:
        lines += [f"\n# {task.name}" + (" (done)" if task.name in done else ""), task.shell_line()]
    return "\n".join(lines) + "\n"


def _stage_lines(rest: list[Task], estimates: Estimates) -> list[str]:
    """Comment lines: steps and expected time of each stage, and where the time comes from."""
    stages: dict[str, list[Task]] = {}
    for task in rest:
        stages.setdefault(task.stage, []).append(task)
    lines, assumed = [], False
    for stage, members in stages.items():
        seconds = [estimates.seconds(task) for task in members]
        if None in seconds:
            continue
        measured = all(map(estimates.is_measured, members))
        assumed = assumed or not measured
        source = "at the rate measured here" if measured else "not measured here"
        lines.append(
            f"#   {STAGE_NAMES.get(stage, stage)}: {len(members)} steps, {hours(sum(seconds))}, {source}"
        )
    if assumed and estimates.gflops:
        rate = f"{estimates.gflops / 1000:.3g} TFLOP/s (--tflops, else 30 % of a matrix product timed here)"
        lines.append(
            f"#   not measured: FLOP of the paper's networks and data at {rate}; decoding may take longer"
        )
    elif assumed:
        lines.append(
            "#   not measured: what such steps took on one core of an AMD EPYC with AVX-512 BF16"
        )
    return lines


def sustained_gflops(device: torch.device) -> float:
    """GFLOP per second expected of the stages on a device, from one short matrix product in bf16
    (GPU) or fp32."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(10):  # the first one warms up; .item() waits for the device
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return SUSTAINED_SHARE * 2 * size**3 / min(seconds[1:]) / 1e9


def hours(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss, from two days on as hours."""
    return clock(seconds) if seconds < 48 * 3600 else f"{seconds / 3600:,.0f} hours"


def timings_of(tasks: list[Task]) -> dict[str, dict[str, Any]]:
    """Step -> seconds, cpu_seconds, started, finished and commit, of the steps that have run."""
    timings = {}
    for task in tasks:
        try:
            stamp = read_json(task.stamp_path)
            seconds = float(stamp["finished"]) - float(stamp["started"])
        except (UserError, KeyError, TypeError):  # what was run by hand has no times
            continue
        timings[task.name] = {**stamp, "seconds": seconds}
    return timings


def _done(tasks: list[Task]) -> set[str]:
    """Names of the tasks that are done, those they need included."""
    done: set[str] = set()
    for task in tasks:
        if done.issuperset(task.needs) and (task.is_done() or was_run_by_hand(task)):
            done.add(task.name)
    return done
