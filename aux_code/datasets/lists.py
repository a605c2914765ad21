"""What every data set needs: its root, its text lists line by line, reports on what is amiss."""

import codecs
import fnmatch
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aux_code import config
from aux_code.checkpoints import write_atomically
from aux_code.datasets.media_files import walk
from aux_code.errors import UserError

log = logging.getLogger(__name__)

MAX_MISSING_SHARE = 0.01
N_NAMED = 10


def require_root(root: Path | str, constant: str) -> Path:
    """The data set's folder, or a UserError that says how to set it."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"no data set at {root}. Set {constant} in aux_code/config.py, or the environment "
            "variable TED_SPAD_DATA_ROOT to the folder that holds all data sets. "
            "`python -m aux_code.miniature ROOT` renders a small stand-in."
        )
    return root


def first_existing(candidates: Sequence[Path], what: str) -> Path:
    """The first of several places where archives put a thing; a UserError that names them all."""
    for path in candidates:
        if path.exists():
            return path
    raise UserError(f"{what} not found; looked for " + ", ".join(map(str, candidates)))


def find_list(root: Path, *patterns: str) -> Path:
    """A data set's list at its root, else nearest to it below, by shell patterns in any case, the
    first that fits; a UserError if it is nowhere."""
    for files in (lambda: walk(root, deep=False), lambda: walk(root)):
        nearest = sorted(files(), key=lambda path: len(path.parts))
        for pattern in patterns:
            for path in nearest:
                if fnmatch.fnmatch(path.name.lower(), pattern.lower()):
                    return path
    raise UserError(f"{' or '.join(patterns)} not found at or below {root}; put it there")


def read_text(path: Path) -> str:
    """UTF-8 or UTF-16, as their marks say, else as Windows writes text in the west.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {problem}; unpack the data set's lists there") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped text) of a list's lines that are not empty; a UserError if the
    list cannot be read or is empty."""
    text, is_empty = read_text(path), True
    # Not splitlines(): that also splits at characters which file names may hold.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            is_empty = False
            yield number, line.strip()
    if is_empty:
        raise UserError(f"{path} is empty; get the list again or write it")


def broken_line(path: Path, number: int, text: str, expected: str) -> UserError:
    """The error for an annotation line that cannot be understood."""
    return UserError(f"{path}, line {number}: expected {expected}, found {text!r}")


def some_of(what: str, things: Sequence[object], apart: str = ", ") -> list[str]:
    """One line on many things: their number and the first of them; none if there are none."""
    if not things:
        return []
    named = [*map(str, things[:N_NAMED]), *["..."] * (len(things) > N_NAMED)]
    return [f"{len(things)} {what}:{apart.lstrip(',')}{apart.join(named)}"]


def some_and_file(what: str, things: Sequence[object], apart: str = ", ") -> list[str]:
    """As `some_of`; a file of the logs, which the line names, has all where they are more."""
    lines = some_of(what, things, apart)
    if len(things) > N_NAMED:
        path = config.LOGS_ROOT / f"{re.sub(r'[^a-zA-Z]+', '_', what)[:80].strip('_')}.txt"
        text = "".join(f"{' '.join(str(thing).split())}\n" for thing in things)
        write_atomically(path, lambda file: file.write(text.encode(errors="surrogateescape")))
        lines = [f"{lines[0]} (all of them are in {path})"]
    return lines


def refuse_all(what: str, things: Sequence[object], remedy: str) -> None:
    """A UserError that names the first ten things and a file with all; none without things."""
    for line in some_and_file(what, things):
        raise UserError(f"{line}; {remedy}")


def report_missing(missing: Sequence[Path], n_listed: int, what: str) -> None:
    """Warns of listed files that are absent; a UserError where they are more than 1 %."""
    text = f"of {n_listed} {what} are missing"
    if len(missing) > MAX_MISSING_SHARE * n_listed:
        refuse_all(text, missing, "unpack them there")
    for line in some_of(text, missing):
        log.warning("%s; left out", line)
