"""What every data set needs: root and files, text lists line by line, a report on absent files."""

import logging
from collections.abc import Iterator, Sequence
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
            f"no data set at {root}. Set {constant} in aux_code/config.py, or the environment variable "
            "TED_SPAD_DATA_ROOT to the folder that holds all data sets. `python -m aux_code.miniature ROOT` renders "
            "a small stand-in."
        )
    return root


def first_existing(candidates: Sequence[Path], what: str) -> Path:
    """The first of several places where archives put a thing.

    Raises:
        UserError: none exists; it names them all.
    """
    for path in candidates:
        if path.exists():
            return path
    raise UserError(f"{what} not found; looked for " + ", ".join(map(str, candidates)))


def is_hidden(path: Path) -> bool:
    """Whether a file is none of the data set's: macOS leaves a `._name.jpg` beside each copy."""
    return path.name.startswith(".")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped text) of the non-empty lines of UTF-8 or Latin-1 text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); unpack the data set's lists there"
        ) from error
    # Not splitlines(): that also splits at characters which file names may hold.
    for number, line in enumerate(
        text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1
    ):
        if line.strip():
            yield number, line.strip()


def broken_line(path: Path, number: int, text: str, expected: str) -> UserError:
    """The error for an annotation line that cannot be understood."""
    return UserError(f"{path}, line {number}: expected {expected}, found {text!r}")


def report_missing(missing: Sequence[Path], n_listed: int, what: str) -> None:
    """Warns of listed files that are absent, and stops where they are more than 1 %.

    Raises:
        UserError: too many are absent; it names the first ones.
    """
    if not missing:
        return
    named = ", ".join(map(str, missing[:_N_NAMED])) + (", ..." if len(missing) > _N_NAMED else "")
    message = f"{len(missing)} of {n_listed} {what} are missing: {named}"
    if len(missing) > MAX_MISSING_SHARE * n_listed:
        raise UserError(
            f"{message}; unpack them there, or run `python -m aux_code.datasets.check` for the whole list"
        )
    log.warning("%s; left out", message)
