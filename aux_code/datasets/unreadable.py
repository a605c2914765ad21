"""Media that do not decode: the error, and the report that keeps them from vanishing silently."""

import logging
from collections.abc import Mapping
from pathlib import Path

from aux_code.checkpoints import write_atomically
from aux_code.datasets.lists import some_of
from aux_code.distributed import is_main
from aux_code.errors import UserError

_ANY_NAME = "surrogateescape"
"""File names need not be UTF-8; their bytes are kept as they are."""

log = logging.getLogger(__name__)


class UnreadableMedia(UserError):
    """A video or image `path` that cannot be decoded; `reason` is what the decoder said."""

    def __init__(self, path: Path | str, reason: str):
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}; replace the file, or take it off the data set's lists")

    def __reduce__(self):
        """Decoding processes hand it over whole; by default it is rebuilt from its message."""
        return type(self), (self.path, self.reason)


def write_unreadable(folder: Path | str, reasons: Mapping[str, str]) -> Path:
    """Writes FOLDER/unreadable.txt, lines of name, tab, reason; removes it without any."""
    path = Path(folder) / "unreadable.txt"
    if reasons:
        _write_lines(path, reasons)
    else:
        path.unlink(missing_ok=True)
    return path


def _write_lines(path: Path, reasons: Mapping[str, str]) -> None:
    text = "".join(f"{name}\t{' '.join(reason.split())}\n" for name, reason in reasons.items())
    write_atomically(path, lambda file: file.write(text.encode("utf-8", _ANY_NAME)))


def _read_lines(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors=_ANY_NAME).split("\n")
    except FileNotFoundError:
        return {}
    return {name: reason for name, _, reason in (line.partition("\t") for line in lines) if name}


class UnreadableLog:
    """Counts a data set's files that did not decode, named in `unreadable.txt` of the run's folder.

    Several data sets of a run, and a resumed run, share that file: lines of others are kept.

    Args:
        folder: the run's folder; made when the first file is recorded.
        n_total: number of files in the data set.
        max_share: share of `n_total`, in [0, 1], above which the run stops (ours: 1 %).
    """

    def __init__(self, folder: Path | str, n_total: int, max_share: float = 0.01):
        self.path = Path(folder) / "unreadable.txt"
        self.n_total, self.max_share = n_total, max_share
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def names(self) -> list[str]:
        """The recorded files, in the order in which they were met."""
        return list(self._reasons)

    def record(self, path: Path | str, reason: str = "does not decode") -> None:
        """Counts a file, once; rank 0 writes."""
        if str(path) in self._reasons:
            return
        self._reasons[str(path)] = reason
        log.warning("unreadable, left out: %s (%s)", path, reason)
        if is_main():
            _write_lines(self.path, {**_read_lines(self.path), **self._reasons})

    @property
    def are_too_many(self) -> bool:
        """Whether more are recorded than `max_share` admits."""
        return len(self) > self.max_share * self.n_total

    def stop_if_too_many(self) -> None:
        """A UserError that names the first ten and the file with all."""
        if self.are_too_many:
            what = f"of {self.n_total} files are unreadable, more than {self.max_share:.1%}"
            remedy = "replace them or admit a larger share (max_unreadable_share)"
            (line,) = some_of(what, self.names)
            raise UserError(f"{line}; all are named in {self.path}: {remedy}")
