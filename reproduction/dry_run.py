"""Before a run: what is missing, and the plan as a shell script or for Slurm; touches nothing."""

import os
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.datasets.check import find
from aux_code.miniature.render import FORMAT_VERSION
from aux_code.model_loaders import LIBRARY_NAMES
from reproduction.plan import STAGES, PlanSettings, Progress, Step, progress_of
from reproduction.runner import clock, expected_seconds, read_timings

PAPER_PFLOP = {
    "init_anonymizer": 440, "init_utility": 56, "init_privacy": 0, "train_anonymizer": 6530,
    "train_privacy": 32, "dali_extraction": 128, "main": 14,
}  # fmt: skip
"""PFLOP of a step with the paper's networks and data sets, mean of Table 8's rows; the counts of
benchmarks/model_costs.py times steps, frames and passes."""


def check_inputs(settings: PlanSettings) -> tuple[list[str], list[str]]:
    """(What the user has to provide before anything can start, what the data sets merely lack); one
    line each, with what to do. The miniature needs nothing. Lists are read, nothing is decoded."""
    missing, lacking = [], []
    marker = config.DATA_ROOT / "miniature.json"
    drawn = read_json(marker) if marker.is_file() else {}
    if settings.preset == "miniature":
        if drawn.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            remedy = "remove it, or let TED_SPAD_DATA_ROOT name another folder"
            missing.append(f"{config.DATA_ROOT} was drawn by another version: {remedy}")
        elif (scale := drawn.get("scale", 1.0)) != 1:
            lacking.append(
                f"{config.DATA_ROOT} was drawn at scale {scale}: results are not the table's"
            )
        return missing, lacking
    if drawn:
        lacking.append(f"{config.DATA_ROOT} holds the miniature's drawn scenes, not real data")
    for name in ("ucf101", "vispr", *settings.datasets):
        constant = f"{name.upper()}_ROOT"
        root = getattr(config, constant)
        if not root.is_dir():
            text = f"{root} does not exist: put the data set there, edit {constant} in aux_code/"
            text += "config.py, or set TED_SPAD_DATA_ROOT; without data try --preset miniature"
            missing.append(text)
            continue
        findings = find(name)
        problems = [f"{name}: {problem}" for problem in findings.problems]
        if any(findings.counts.values()):
            lacking += problems
        else:
            missing += problems or [f"{name}: {root} holds nothing of it"]
    for option, given, what in (
        ("--init_weights", settings.utility_weights, "f_T starts from Kinetics-400"),
        ("--init_weights_fb", settings.budget_weights, "f_B starts from SimCLR on ImageNet"),
        ("--init_weights_fa", settings.anonymizer_weights, ""),
    ):
        if given and given not in (*LIBRARY_NAMES, "none") and not Path(given).is_file():
            missing.append(f"{option} {given}: no such file")
        elif what and not given:
            missing.append(f"{option}: {what}; give a file (docs/settings.md), or none: at random")
    return missing, lacking


def progress_of_all(steps: Sequence[Step], forced: Collection[str] = ()) -> dict[str, Progress]:
    """Name -> progress; what is forced, or waits for what is not done, is to do."""
    found: dict[str, Progress] = {}
    for step in steps:
        is_ready = all(found[name] == "done" for name in step.needs) and step.name not in forced
        found[step.name] = progress_of(step) if is_ready else "to do"
    return found


class Reckoning(NamedTuple):
    """How the time that is left is told."""

    n_jobs: int = 1  # steps at once
    tflops: float = 0.0  # for the paper's steps that were not measured; 0: their time is unknown

    def in_words(self, steps: Sequence[Step], n_jobs: int = 1) -> str:
        """`about h:mm:ss`, of steps that run `n_jobs` at once."""
        timings, seconds = read_timings(), []
        for step in steps:
            own = expected_seconds(step, timings)
            if own is None and self.tflops and step.scale == "paper":
                own = 1000 * PAPER_PFLOP[step.stage] / self.tflops
            seconds.append(own)
        return "unknown time" if None in seconds else f"about {clock(sum(seconds) / n_jobs)}"


def shell_script(
    steps: Sequence[Step], time_left: Reckoning,
    problems: tuple[Sequence[str], Sequence[str]] = ((), ()), overwrite: bool = False,
    forced: Collection[str] = (),
) -> str:  # fmt: skip
    """The plan as a script that can be pasted; comments tell what is done, missing, and how long.

    `problems` are those of `check_inputs`; `overwrite` is passed on to the steps; `forced`: names
    of steps to run again.
    """
    progress, n_jobs = progress_of_all(steps, forced), time_left.n_jobs
    rest = [step for step in steps if progress[step.name] != "done"]
    head = f"# {len(steps)} steps, {len(steps) - len(rest)} of them done"
    lines = [f"{head}; the rest takes {time_left.in_words(rest, n_jobs)} with {n_jobs} at once"]
    for stage in dict.fromkeys(step.stage for step in rest):
        own = [step for step in rest if step.stage == stage]
        lines.append(f"#   {STAGES[stage].title}: {len(own)} steps, {time_left.in_words(own)}")
    if "unknown" in lines[0]:
        lines.append("#   not measured yet: see docs/scaling.md, or give --tflops N")
    if any(pair == ("--init_weights", "none") for s in rest for pair in pairwise(s.arguments)):
        lines.append("# NOTE: f_T or f_B starts at random, the paper's from pre-trained weights")
    for word, texts in zip(("MISSING", "INCOMPLETE"), problems):
        lines += [f"# {word}: " + text.replace("\n", "\n#   ") for text in texts]
    lines.append(f"cd {shlex.quote(str(config.REPOSITORY_ROOT))}")
    for step in steps:
        own = progress[step.name]
        command = step.shell_line(*step.flags(own, overwrite or step.name in forced))
        lines += [f"\n# {step.name} ({own})", "# " * (own == "done") + command]
    return "\n".join(lines) + "\n"


def sbatch_script(
    steps: Sequence[Step],
    options: Sequence[str],
    overwrite: bool = False,
    forced: Collection[str] = (),
) -> str:
    """A bash script that submits one job for each step that is not done or is forced, after those
    it needs, and at the end reproduce.py with its `options`, which writes the report."""
    logs = shlex.quote(str(config.LOGS_ROOT / "slurm"))
    lines = [
        "#!/bin/bash",
        "# Partition, account and time limit: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.",
        "# What is done is left out, what was interrupted goes on: print and run it again.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(config.REPOSITORY_ROOT))}",
        f"mkdir -p {logs}",
    ]
    submit = f"sbatch --parsable --gres=gpu:1 --cpus-per-task=8 --output={logs}/%x_%j.out"
    progress = progress_of_all(steps, forced)
    jobs = {step.name: f"job_{i}" for i, step in enumerate(steps) if progress[step.name] != "done"}

    def after(kind: str, names: Iterable[str]) -> str:
        others = "".join(f":${jobs[name]}" for name in names if name in jobs)
        return f" --dependency={kind}{others}" if others else ""

    for step in (step for step in steps if step.name in jobs):
        words = f"{submit}{after('afterok', step.needs)} --job-name={step.name}"
        replaces = overwrite or step.name in forced
        command = step.shell_line(*step.flags(progress[step.name], replaces))
        lines += ["", f"{jobs[step.name]}=$({words} <<'END'", "#!/bin/bash"]
        lines += [f"{command} || [ $? -eq 3 ]", "END", ")"]  # 3: some inputs failed
    words = f"{submit}{after('afterany', jobs)} --job-name=ted_spad_report"
    lines += ["", f"{words} --chdir={shlex.quote(os.getcwd())} <<'END'", "#!/bin/bash"]
    program = [sys.executable, str(config.REPOSITORY_ROOT / "reproduce.py")]
    options = [word for word in options if word not in ("--slurm", "--dry_run")]
    if "--force" in options:  # once: not again by the job that writes the report
        start = options.index("--force")
        values = takewhile(lambda word: not word.startswith("--"), options[start + 1 :])
        del options[start : start + 1 + len(list(values))]
    return "\n".join([*lines, shlex.join([*program, *options]), "END"]) + "\n"
