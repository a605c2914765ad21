"""The one answer to "is it finished?": an artefact records what it was made of, and is current if
that equals what is asked for now. Scripts with --resume and reproduce.py ask here.

Device, threads and paths do not count, the precision in force does.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aux_code.checkpoints import git_commit, load_checkpoint, plain, read_json
from aux_code.models.obfuscation import is_named
from aux_code.parameters import fingerprint

FORMAT_VERSION = 1

KINDS = ("parameters", "inputs", "data", "in_force")
"""The parts of a recipe, as checkpoints (in `meta`) and results record them."""


@dataclass(frozen=True)
class Recipe:
    """What an artefact is made of."""

    parameters: dict[str, Any]
    """Field -> plain JSON value, of the fields that decide the result."""
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Role -> {"path", "sha256"}; a name such as `raw` has an empty digest and counts itself."""
    data: dict[str, str] = field(default_factory=dict)
    """Data set -> `data_digest` of what was listed."""
    in_force: dict[str, str] = field(default_factory=dict)
    """What `auto` became, such as {"precision": "bf16"}."""


def recipe(
    params: Any,
    inputs: Mapping[str, Path | str] | None = None,
    data: Mapping[str, str] | None = None,
    in_force: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe of a run; its inputs (role -> file or name) are hashed here, once."""
    described = describe_inputs(inputs or {})
    return Recipe(fingerprint(params), described, dict(data or {}), dict(in_force or {}))


def describe_inputs(inputs: Mapping[str, Path | str]) -> dict[str, dict[str, str]]:
    """Role -> {"path", "sha256"}; `raw` and its like, and what does not exist, stay names."""
    described = {}
    for role, path in inputs.items():
        is_file = str(path) and not is_named(str(path)) and Path(path).exists()
        digest = sha256(path) if is_file else ""
        described[role] = {"path": str(path), "sha256": digest}
    return described


def sha256(path: Path | str) -> str:
    """SHA-256 of a whole file, or of the names and files directly in a folder; hexadecimal. A file
    is read again only if its bytes or its modification time changed."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != ".")
        return _sha256_of_lines(f"{file.name} {sha256(file)}" for file in files)
    state = path.stat()
    return _sha256_of_version(path.absolute(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _sha256_of_version(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_digest(root: Path, lists: Iterable[Path], files: Iterable[Path]) -> str:
    """SHA-256 over the content of a data set's lists and annotations, and over names and bytes of
    the files that they list (of a folder of frames: of its files). Other files do not count."""
    lines = [f"{os.path.relpath(path, root)} {sha256(path)}" for path in sorted(set(lists))]
    for path in sorted(set(files)):
        inside = path.iterdir() if path.is_dir() else [path]
        parts = sorted(part for part in inside if part == path or part.name[0] != ".")
        lines += [f"{os.path.relpath(part, root)} {part.stat().st_size}" for part in parts]
    return _sha256_of_lines(lines)


def _sha256_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def build_meta(
    stage: str,
    architectures: dict[str, dict],
    params: Any,
    made_of: Recipe,
    metrics: dict[str, float],
    seconds: float | None = None,
) -> dict[str, Any]:
    """The part of a checkpoint that rebuilds its networks and tells where it came from.

    Args:
        stage: name of the script that writes.
        architectures: network ("fa", "ft", "fb", "mgfn") -> {"arch": name, "arguments": keyword
            arguments}.
        params: the resolved parameter dataclass.
        made_of: inputs and data with the digests that they had when they were read.
        metrics: what is known of the quality.
        seconds: how long it was trained, over all resumes.
    """
    values = asdict(params) if is_dataclass(params) else params
    return {
        "format_version": FORMAT_VERSION, "stage": stage, "architectures": architectures,
        "parameters": json.loads(json.dumps(values, default=plain)),
        "seed": int(getattr(params, "seed", 0)), "git_commit": git_commit(),
        "inputs": made_of.inputs, "data": made_of.data, "in_force": made_of.in_force,
        "metrics": metrics, "seconds": seconds,
    }  # fmt: skip


def record_of(path: Path | str, *further: str) -> dict[str, Any]:
    """What a checkpoint (its `meta`), a saved state or a JSON says of its making, and of `further`
    keys there; {} if nothing."""
    content = read_json(path) if Path(path).suffix == ".json" else load_checkpoint(path)
    content = content if isinstance(content, dict) else {}
    for key in ("meta", "made_of"):
        content = content.get(key, content)
    return {kind: content[kind] for kind in (*KINDS, *further) if kind in content}


def differences(record: Mapping[str, Any], made_of: Recipe) -> list[str]:
    """In what a record differs from a recipe, in words; empty if the artefact is current. What the
    record of an earlier version does not state is listed, too."""
    found = []
    for name, value in made_of.parameters.items():
        if name not in record.get("parameters", {}):
            found.append(f"{name}: not recorded")
        elif (old := record["parameters"][name]) != value:
            found.append(f"{name}: {old}, now {value}")
    for kind, words in (("inputs", "another file"), ("data", "other lists or files")):
        expected, recorded = getattr(made_of, kind), record.get(kind, {})
        for name in sorted(expected.keys() | recorded.keys()):
            if name not in recorded:
                found.append(f"{name}: not recorded")
            elif name not in expected:
                found.append(f"{name}: none now")
            elif _content(recorded[name]) != _content(expected[name]):
                found.append(f"{name}: {words}")
    recorded = record.get("in_force", {})
    for name, value in made_of.in_force.items():
        if recorded.get(name) != value:
            found.append(f"{name} in force: {recorded.get(name, 'not recorded')}, now {value}")
    return found


def is_current(path: Path | str, made_of: Recipe) -> bool:
    """Whether an artefact exists and was made by this recipe."""
    return Path(path).is_file() and not differences(record_of(path), made_of)


def _content(entry: Any) -> Any:
    """What decides of an input: its digest, else its name."""
    return (entry.get("sha256") or entry.get("path")) if isinstance(entry, dict) else entry
