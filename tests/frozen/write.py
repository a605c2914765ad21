"""What may not change by mistake: the options of command lines and the keys of artefacts.

    python tests/frozen/write.py                  writes options.json anew
    python tests/frozen/write.py ARTIFACT_ROOT    and artefacts.json, from the folder that a
                                                  failed test names

A change of these files needs a line in CHANGELOG.md, in the same commit.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

if str(Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aux_code.checkpoints import load_checkpoint

HERE = Path(__file__).resolve().parent
REMEDY = "if this is meant: python tests/frozen/write.py {} and a line in CHANGELOG.md"
STAGE_1 = ("init_anonymizer", "init_utility", "init_privacy", "train_anonymizer")
STAGE_1 += ("evaluate_utility",)
OTHERS = (
    "privacy_training/train_privacy", "feature_extraction/dali_extraction",
    "anomaly_detection_mgfn/main", "visualization/anonymize_video", "visualization/plot_scores",
    "reproduce",
)  # fmt: skip
PRESETS = {f"anonymization_training/{name}.py": name.upper() for name in STAGE_1}
PRESETS |= {f"{name}.py": "PRESETS" for name in OTHERS}
"""Script -> the name under which it holds what it hands to aux_code.parameters.parse."""
OF_DATA = ("miniature/__main__", "datasets/check", "datasets/convert_labels")
WITHOUT_PRESETS = tuple(f"aux_code/{name}.py" for name in OF_DATA)
NAMED_BY_DATA = {"per_attribute", "held_out", "per_category", "videos", "failed", "methods"}
"""Keys whose own keys are names of the data: `*` in artefacts.json."""


def module_of(script: str):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    known = value is None or isinstance(value, bool | int | float | str)
    return value if known else str(value) if isinstance(value, Path) else "required"


def options() -> dict[str, dict[str, dict[str, Any]]]:
    """Script -> preset -> option -> default; presets after the first: what differs."""
    found = {}
    for script, name in PRESETS.items():
        presets = {key: plain(value) for key, value in vars(module_of(script))[name].items()}
        (default, first), *others = presets.items()
        found[script] = {default: first}
        for key, own in others:
            changed = {k: v for k, v in own.items() if v != first[k] and k != "preset"}
            found[script][key] = changed
    return found | {script: {"": options_of_parser(script)} for script in WITHOUT_PRESETS}


def options_of_parser(script: str) -> dict[str, Any]:
    """Option or positional -> default of a command line without presets."""
    seen: list[argparse.ArgumentParser] = []
    parser = mock.patch.object(argparse.ArgumentParser, "parse_args", lambda s, _: seen.append(s))
    with parser, contextlib.suppress(AttributeError):  # the script goes on without options
        module_of(script).main([])
    actions = [action for action in seen[0]._actions if action.dest != "help"]
    return {(a.option_strings or [a.dest])[-1]: plain(a.default) for a in actions}


def artefacts(root: Path) -> dict[str, Any]:
    """Files of saved_models/, features/, results/ (but figures), and the keys in each kind."""
    files: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    command_lines = {frozenset(v[next(iter(v))]): script for script, v in options().items()}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if name.startswith(("saved_models/", "features/", "results/")) and "/." not in name:
            folder, _, file = name.rpartition("/")
            if not folder.endswith("figures"):
                files.setdefault(folder, set()).add("*.npy" if path.suffix == ".npy" else file)
            kind = re.sub(r"_(raw|blur|ted_spad_plus(_averaged)?|attacker_start)\b", "_*", name)
            if path.suffix in (".json", ".pth"):
                merge(kinds.setdefault(kind, {}), keys(content_of(path), command_lines))
    return {"files": {folder: sorted(names) for folder, names in files.items()}, "keys": kinds}


def content_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return {k: {} if "state" in k else v for k, v in load_checkpoint(path).items()}


def keys(value: Any, command_lines: dict[frozenset[str], str], parent: str = "") -> dict[str, Any]:
    """Of a dictionary and those in it, or in a list; a whole command line is one key."""
    found: dict[str, Any] = {}
    if isinstance(value, dict):
        script = command_lines.get(frozenset(value) - {"stage"})
        if script:
            return {f"(options of {script})": {}} | ({"stage": {}} if "stage" in value else {})
        for key, item in value.items():
            name = "*" if parent in NAMED_BY_DATA else key
            merge(found.setdefault(name, {}), keys(item, command_lines, key))
    elif isinstance(value, list | tuple):
        for item in value:
            merge(found, keys(item, command_lines))
    return found


def merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, below in other.items():
        merge(into.setdefault(key, {}), below)


def differences(recorded: Any, now: Any, place: str = "") -> list[str]:
    if not (isinstance(recorded, dict) and isinstance(now, dict)):
        return [] if recorded == now else [f"{place}: {recorded!r}, now {now!r}"]
    lines = [f"{place} {key}: gone" for key in recorded if key not in now]
    lines += [f"{place} {key}: new" for key in now if key not in recorded]
    for key in recorded:
        if key in now:
            lines += differences(recorded[key], now[key], f"{place} {key}".strip())
    return lines


def read(name: str) -> dict[str, Any]:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def write(name: str, content: dict[str, Any]) -> None:
    """One line for each entry of the first two levels, so that a change shows in a diff."""
    lines = []
    for key, below in content.items():
        items = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in below.items())
        lines.append(f"{json.dumps(key)}: {{\n{items}\n}}" if items else f"{json.dumps(key)}: {{}}")
    (HERE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write("options.json", options())
    if len(sys.argv) > 1:
        write("artefacts.json", artefacts(Path(sys.argv[1])))
