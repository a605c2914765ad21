"""What every data set needs: root and files, text lists line by line, a report on absent files."""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from aux_code.errors import UserError

log = logging.getLogger(__name__)

MAX_MISSING_SHARE = 0.01
_N_NAMED = 5


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


def files_of(folder: Path, suffixes: Collection[str], deep: bool = False) -> list[Path]:
    """Sorted files of these endings in a folder (or, `deep`, below it); none if it is absent.

    Hidden ones are none of the data set's: macOS leaves a `._name.jpg` beside each copy.
    """
    found = folder.rglob("*") if deep else folder.iterdir() if folder.is_dir() else ()
    visible = (path for path in found if not path.name.startswith("."))
    return sorted(path for path in visible if path.suffix.lower() in suffixes)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped text) of the non-empty lines of UTF-8 or Latin-1 text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {problem}; unpack the data set's lists there") from error
    # Not splitlines(): that also splits at characters which file names may hold.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield number, line.strip()


def broken_line(path: Path, number: int, text: str, expected: str) -> UserError:
    """The error for an annotation line that cannot be understood."""
    return UserError(f"{path}, line {number}: expected {expected}, found {text!r}")


def some_of(what: str, things: Sequence[object]) -> list[str]:
    """One line on many things: their number and the first of them; none if there are none."""
    if not things:
        return []
    more = ", ..." * (len(things) > _N_NAMED)
    return [f"{len(things)} {what}: {', '.join(map(str, things[:_N_NAMED]))}{more}"]


def report_missing(missing: Sequence[Path], n_listed: int, what: str) -> None:
    """Warns of listed files that are absent; a UserError where they are more than 1 %."""
    for line in some_of(f"of {n_listed} {what} are missing", missing):
        if len(missing) > MAX_MISSING_SHARE * n_listed:
            command = "python -m aux_code.datasets.check"
            raise UserError(f"{line}; unpack them there; `{command}` gives the whole list")
        log.warning("%s; left out", line)
