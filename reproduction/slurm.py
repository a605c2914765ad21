"""Parts of a plan that run apart, on one machine each, and the script that submits them to
Slurm."""

import shlex
from collections.abc import Iterable
from dataclasses import replace

from aux_code.errors import UserError
from reproduction.tasks import Task

SHARED = "shared"


def plan_parts(tasks: list[Task]) -> dict[str, list[Task]]:
    """Part -> its steps in the plan's order: `shared:SEED`, then METHOD:SEED for every method.

    Shared are the steps that more than one method waits for, and all that these wait for. No two
    parts have a step in common, and a method's part waits for nothing but its seed's shared one.
    """
    methods_of: dict[str, set[str]] = {task.name: {task.method} for task in tasks}
    known = {task.name: task for task in tasks}
    for task in reversed(tasks):  # users come after what they need
        for name in task.needs:
            methods_of[name] |= methods_of[task.name]
    shared = {
        name
        for name, methods in methods_of.items()
        if len(methods - {SHARED}) > 1 or SHARED in methods
    }
    for task in reversed(tasks):
        if task.name in shared:
            shared.update(task.needs)
    parts = {f"{SHARED}:{seed}": [] for seed in dict.fromkeys(task.seed for task in tasks)}
    for task in known.values():
        owner = SHARED if task.name in shared else task.method
        parts.setdefault(f"{owner}:{task.seed}", []).append(task)
    return {name: steps for name, steps in parts.items() if steps}


def part_of(tasks: list[Task], part: str) -> list[Task]:
    """The steps of one part.

    Raises:
        UserError: no such part, or a step of another part that it waits for is not done.
    """
    parts = plan_parts(tasks)
    if part not in parts:
        raise UserError(f"--part {part}: no such part; the parts are: {', '.join(parts)}")
    own = {task.name for task in parts[part]}
    needed = {name for task in parts[part] for name in task.needs} - own
    undone = [task.name for task in tasks if task.name in needed and not task.is_done()]
    if undone:
        seed = parts[part][0].seed
        raise UserError(
            f"--part {part} waits for {', '.join(undone)}; run --part {SHARED}:{seed} first"
        )
    return parts[part]


def without_foreign_needs(tasks: list[Task]) -> list[Task]:
    """The steps of a part with only those needs that lie in the part; `part_of` saw that the others
    are done."""
    own = {task.name for task in tasks}
    return [
        replace(task, needs=tuple(name for name in task.needs if name in own)) for task in tasks
    ]


def sbatch_script(
    parts: Iterable[str], command: list[str], environment: dict[str, str], logs: str
) -> str:
    """A bash script that submits three jobs: the shared parts, the methods' parts after them, the
    report at the end.

    Args:
        parts: of `plan_parts`.
        command: reproduce.py's own command line, to which --part is added.
        environment: variables that every job needs.
        logs: folder for Slurm's output.
    """
    parts = list(parts)
    shared = [part for part in parts if part.startswith(f"{SHARED}:")]
    rows = [part for part in parts if part not in shared]
    line = shlex.join(command)
    submit = (
        f"sbatch --parsable --gres=gpu:1 --cpus-per-task=8 --output={shlex.quote(logs)}/%A_%a.out"
    )
    lines = [
        "#!/bin/bash",
        "# Partition, account and time limit: set SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT.",
        "# A part that was interrupted goes on when this script is run again; what is done is not repeated.",
        "set -euo pipefail",
        f"mkdir -p {shlex.quote(logs)}",
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
    ]
    after = ""
    for name, members, condition in ((SHARED, shared, "afterok"), ("rows", rows, "afterany")):
        if not members:
            continue
        lines += [
            "",
            f"{name}=$({submit}{after} --job-name=ted_spad_{name} --array=0-{len(members) - 1} <<'END'",
        ]
        lines += ["#!/bin/bash", f"parts=({' '.join(map(shlex.quote, members))})"]
        lines += [f'{line} --part "${{parts[$SLURM_ARRAY_TASK_ID]}}"', "END", ")"]
        after = f' --dependency={condition}:"${name}"'
    lines += ["", f"{submit}{after} --job-name=ted_spad_report <<'END'", "#!/bin/bash", line, "END"]
    return "\n".join(lines) + "\n"
