"""Command lines: a frozen dataclass of parameters per stage, presets as instances, by tyro."""

import difflib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from aux_code.errors import UserError

_OUTSIDE = {"in_fingerprint": False}


def free(default: Any) -> Any:
    """A field that changes no result, such as --device; `fingerprint` passes it over."""
    return field(default=default, metadata=_OUTSIDE)


def by_content(default: Any) -> Any:
    """A field that names an input: the file's SHA-256 counts (`artefacts.recipe`), not its path."""
    return field(default=default, metadata=_OUTSIDE)


def fingerprint(params: Any) -> dict[str, Any]:
    """Field -> plain JSON value, of the fields of a dataclass that decide the result."""
    deciding = [f.name for f in fields(params) if f.metadata.get("in_fingerprint", True)]
    values = {name: getattr(params, name) for name in deciding}
    return json.loads(json.dumps(values, default=str))


@dataclass(frozen=True, kw_only=True)
class CommonParams:
    """What every script takes."""

    preset: str = free("paper")
    """Name of the set of defaults that the other options change (ours)."""
    run_id: str = free("")
    """Name of the run, its folder and its results; empty: derived from script and preset."""
    seed: int = 0
    """Seed of every random generator of the run."""
    device: Literal["auto", "cpu", "cuda"] = free("auto")
    """Where the networks run; auto takes a GPU if there is one."""
    resume: bool = free(False)
    """Continue an interrupted run of the same run_id exactly where its last saved state stood."""
    overwrite: bool = free(False)
    """Replace a finished result of the same run_id even if its training took over ten minutes."""
    n_threads: int = free(0)
    """CPU threads of one operation; 0 leaves the library's choice."""


@dataclass(frozen=True, kw_only=True)
class PersonBoxParams:
    """Where the boxes of blur and blacken come from, in every script that takes an anonymizer."""

    boxes: Path | None = by_content(None)
    """CSV of person boxes for blur and blacken (file,frame,x0,y0,x1,y1); None: person_boxes.csv of
    the data set's folder if it is there, else a detector (paper: a COCO detector)."""
    detector_weights: Path | None = by_content(None)
    """Local weights of torchvision's fasterrcnn_resnet50_fpn: it looks for the people, whatever
    person_boxes.csv says; None: where there is no boxes file the detector takes torchvision's
    (cache or download)."""


Params = TypeVar("Params", bound=CommonParams)


def parse(
    presets: dict[str, Params], argv: list[str] | None = None, description: str = ""
) -> Params:
    """Parses a command line (None: that of the process): every field of the dataclass is an option.

    Args:
        presets: name -> instance; `--preset NAME` picks the one whose values options replace, by
            default the first.

    Raises:
        SystemExit: status 2 with a list of what exists, for unknown names, presets and wrong types;
            status 0 after --help.
        UserError: a value that no script can work with, or that the dataclass refuses.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name, argv = _take_preset(argv, next(iter(presets)))
    if name not in presets:
        sys.stderr.write(f"error: unknown preset '{name}'; the presets are: {', '.join(presets)}\n")
        raise SystemExit(2)
    _refuse_unknown_options(argv, presets[name])
    text = f"{description}\n\nPresets: {', '.join(presets)} (now: {name}).".strip()
    default = replace(presets[name], preset=name)
    options = {"default": default, "description": text, "use_underscores": True}
    params = tyro.cli(type(default), args=argv, **options)
    _refuse_impossible(params)
    return params


def check_ranges(
    params: Any,
    at_least: Mapping[str, float] | None = None,
    above: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
    below: Mapping[str, float] | None = None,
) -> None:
    """Refuses what would fail late or mean nothing: a UserError names the option and the bound.
    Bounds are field -> value; every element of a tuple is compared, NaN keeps no bound."""
    rules = (
        ("at least", at_least, lambda value, bound: value >= bound),
        ("above", above, lambda value, bound: value > bound),
        ("at most", at_most, lambda value, bound: value <= bound),
        ("below", below, lambda value, bound: value < bound),
    )
    for words, bounds, holds in rules:
        for name, bound in (bounds or {}).items():
            value = getattr(params, name)
            parts = value if isinstance(value, tuple) else (value,)
            if not all(holds(part, bound) for part in parts):
                shown = " ".join(map(str, parts))
                raise UserError(f"--{name} must be {words} {bound}, not {shown}")


def _refuse_impossible(params: Any) -> None:
    """What no script can work with: numbers that are none, run ids that leave their folder."""
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise UserError(f"--{name} must be a finite number, not {value}")
    if values.get("n_threads", 0) < 0:
        raise UserError(f"--n_threads must be at least 0, not {values['n_threads']}")
    run_id = values.get("run_id", "")
    if run_id.startswith(".") or any(character in run_id for character in "/\\\0"):
        raise UserError(f"--run_id {run_id!r} may not hold slashes or begin with a dot")


def _take_preset(argv: list[str], default: str) -> tuple[str, list[str]]:
    rest, name, i = [], default, 0
    while i < len(argv):
        if argv[i] == "--preset" and i + 1 < len(argv):
            name, i = argv[i + 1], i + 2
        elif argv[i].startswith("--preset="):
            name, i = argv[i].split("=", 1)[1], i + 1
        else:
            rest.append(argv[i])
            i += 1
    return name, rest


def _refuse_unknown_options(argv: list[str], params: CommonParams) -> None:
    """Ends with status 2 and the list of what exists if an option is no field of the dataclass."""
    names = [field.name for field in fields(params)]
    known = {"help", *names, *(f"no_{name}" for name in names)}
    for argument in argv:
        option = argument[2:].split("=", 1)[0].replace("-", "_")
        if argument.startswith("--") and option not in known:
            close = difflib.get_close_matches(option, names, n=1)
            hint = f" (did you mean --{close[0]}?)" if close else ""
            listed = ", ".join(f"--{name}" for name in names)
            sys.stderr.write(f"error: unknown option --{option}{hint}; the options are: {listed}\n")
            raise SystemExit(2)
