"""Steps that somebody ran by hand: their results say with which parameters and from which files
they were made."""

import json
from pathlib import Path
from typing import Any

from aux_code.checkpoints import load_checkpoint, read_json
from aux_code.errors import UserError
from reproduction.digests import file_digest
from reproduction.tasks import Task

_FREE = ("resume", "device", "n_threads", "n_workers")
"""Parameters that change nothing about the result."""


def was_run_by_hand(task: Task) -> bool:
    """Whether nobody knows the step, but its result is what its command would write: parameters and
    inputs are equal.

    A feature folder does not hold its parameters; its own script tells what is missing in it, and
    does no more.
    """
    if (
        task.stamp_path.is_file()
        or task.started_path.is_file()
        or task.own_folder
        or not task.parameters
    ):
        return False
    if not all(path.exists() for path in (*task.inputs, *task.outputs)):
        return False
    record = _record(task.outputs[0])
    recorded, expected = record.get("parameters", {}), task.parameters | _options(task.arguments)
    if not all(
        _same(recorded.get(name), value) for name, value in expected.items() if name not in _FREE
    ):
        return False
    return _inputs(task) <= {entry.get("sha256") for entry in record.get("inputs", {}).values()}


def holds_its_features(task: Task) -> bool:
    """Whether the features in the step's folder were made with its networks: they can stay, and the
    rest is added."""
    manifest = task.outputs[0]
    if (
        not task.own_folder
        or not manifest.is_file()
        or not all(path.exists() for path in task.inputs)
    ):
        return False
    record = _record(manifest)
    used = {record.get(role, {}).get("sha256") for role in ("anonymizer", "utility")}
    return _inputs(task) == used - {"", None}


def _inputs(task: Task) -> set[str]:
    """Digests of the files that other steps made; a result does not name the rendering that it was
    made from."""
    return {file_digest(path) for path in task.inputs if path.name != "miniature.json"}


def _record(output: Path) -> dict[str, Any]:
    """What a result says of itself; empty if it says nothing."""
    try:
        content = (
            load_checkpoint(output).get("meta", {})
            if output.suffix == ".pth"
            else read_json(output)
        )
    except (UserError, AttributeError):
        return {}
    return content if isinstance(content, dict) else {}


def _options(arguments: tuple[str, ...]) -> dict[str, list[str]]:
    """Option -> its words."""
    options: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--"):
            options[word[2:]] = current = []
        else:
            current.append(word)
    return options


def _same(recorded: Any, expected: Any) -> bool:
    """Whether a recorded value is that of a preset, or that of the words of an option."""
    if not isinstance(expected, list):
        return json.loads(json.dumps(expected, default=str)) == recorded
    values = recorded if isinstance(recorded, list) else [recorded]
    return len(values) == len(expected) and all(map(_is_written, values, expected))


def _is_written(value: Any, word: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(word) == value
        except ValueError:
            return False
    return str(value) == word
