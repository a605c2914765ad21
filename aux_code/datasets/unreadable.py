"""Media that do not decode: the error, and the report that keeps them from vanishing silently."""

import logging
from pathlib import Path

from aux_code.distributed import is_main
from aux_code.errors import UserError

log = logging.getLogger(__name__)


class UnreadableMedia(UserError):
    """A video or image that cannot be decoded. `path` names it, `reason` says what the decoder said."""

    def __init__(self, path: Path | str, reason: str):
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}; replace the file, or take it off the data set's lists")

    def __reduce__(self):
        """Decoding processes hand it over whole; by default an exception is rebuilt from its message alone."""
        return type(self), (self.path, self.reason)


class UnreadableLog:
    """Counts the files of a data set that did not decode and names them in `unreadable.txt` of the run's folder.

    Args:
        folder: the run's folder; made when the first file is recorded.
        n_total: number of files in the data set.
        max_share: share of `n_total`, in [0, 1], above which `record` stops the run (ours: 1 %).
    """

    def __init__(self, folder: Path | str, n_total: int, max_share: float = 0.01):
        self.path = Path(folder) / "unreadable.txt"
        self.n_total = n_total
        self.max_share = max_share
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def names(self) -> list[str]:
        """The recorded files, in the order in which they were met."""
        return list(self._reasons)

    def record(self, path: Path | str, reason: str = "does not decode") -> None:
        """Counts one file; the same file counts once. Under torchrun all ranks count, and rank 0 writes.

        Raises:
            UserError: more than `max_share` of the data set is unreadable.
        """
        if str(path) in self._reasons:
            return
        self._reasons[str(path)] = " ".join(reason.split())
        log.warning("unreadable, left out: %s (%s)", path, reason)
        if is_main():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{name}\t{why}\n" for name, why in self._reasons.items()]
            self.path.write_text("".join(lines), encoding="utf-8")
        if len(self) > self.max_share * self.n_total:
            raise UserError(
                f"{len(self)} of {self.n_total} files are unreadable, more than the admitted {self.max_share:.1%}; "
                f"they are named in {self.path}: replace them or admit a larger share (max_unreadable_share)"
            )
