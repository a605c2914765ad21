"""manifest.json of a folder of features, safe against kills and against several processes in one
folder.

A process writes what it finishes to its own journal, one line per video, and holds a lock on that
journal while it lives. Every few seconds it merges its journal into the manifest under the folder's
lock. Journals whose lock is free belong to processes that were killed: whoever comes next merges
and removes them, so that nothing complete is lost.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aux_code.checkpoints import read_json, write_json
from aux_code.errors import UserError

MERGE_SECONDS = 10.0


class FeatureFolder:
    """The feature files of one data set and their manifest. Use it as a context manager.

    Args:
        folder: made if it does not exist.
        header: everything of the manifest but `videos` and `failed`.

    Raises:
        UserError: the folder holds features that were made in another way, or cannot be written.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder = Path(folder)
        self.header = header
        self.path = self.folder / "manifest.json"
        self._journal = None
        self._merged_at = time.monotonic()

    def __enter__(self) -> "FeatureFolder":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f".journal_{socket.gethostname()}_{os.getpid()}_{time.time_ns()}"
            with (
                self._locked()
            ):  # a journal without its lock would look like a dead process's to whoever merges
                self._journal = open(self.folder / name, "x", encoding="utf-8")  # noqa: SIM115 - lives as long as self
                fcntl.flock(self._journal, fcntl.LOCK_EX)
            self.merge()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}); choose another --output"
            ) from error
        except UserError:
            self._drop_journal()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.merge()
        self._drop_journal()

    def finished(self) -> set[str]:
        """Names of the videos whose features are complete on disk, as of the last merge."""
        videos = self._read()["videos"]
        return {name for name, entry in videos.items() if self._is_whole(entry)}

    def failures(self) -> dict[str, str]:
        """name -> reason of the videos that failed in their last try, as of the last merge."""
        return self._read()["failed"]

    def add_video(self, name: str, entry: dict[str, Any]) -> None:
        """Records a video whose feature file is on disk."""
        self._append({"name": name, "entry": entry})

    def add_failure(self, name: str, reason: str) -> None:
        """Records a video that could not be extracted."""
        self._append({"name": name, "reason": reason})

    def merge(self) -> None:
        """Brings what this process and dead ones finished into the manifest."""
        with self._locked():
            manifest = self._read()
            done = [Path(self._journal.name), *self._dead_journals()]
            for journal in done:
                _apply(manifest, journal.read_text(encoding="utf-8"))
            manifest["videos"] = dict(sorted(manifest["videos"].items()))
            write_json(self.path, manifest)
            self._journal.seek(0)
            self._journal.truncate()
            for journal in done[1:]:
                journal.unlink(missing_ok=True)
        self._merged_at = time.monotonic()

    def remove_partial_files(self) -> None:
        """Removes what interrupted writes left behind, unless another living process may be writing
        it."""
        partial = list(
            self.folder.glob(".*.tmp")
        )  # before the question: who writes has a journal by then
        if not [path for path in self._other_journals() if not _owner_is_gone(path)]:
            for path in partial:
                path.unlink(missing_ok=True)

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._journal.write(json.dumps(record) + "\n")
            self._journal.flush()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}); free space and give the same command again"
            ) from error
        if time.monotonic() - self._merged_at > MERGE_SECONDS:
            self.merge()

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {**self.header, "videos": {}, "failed": {}}
        manifest = read_json(self.path)
        if not isinstance(manifest, dict) or not all(
            isinstance(manifest.get(k), dict) for k in ("videos", "failed")
        ):
            raise UserError(
                f"{self.path} is not a manifest of this script; give another --output or remove it"
            )
        different = [
            key
            for key, value in self.header.items()
            if _identity(manifest.get(key)) != _identity(value)
        ]
        if different:
            lines = "; ".join(
                f"{key}: {manifest.get(key)!r} there, {self.header[key]!r} now" for key in different
            )
            raise UserError(
                f"{self.folder} holds features made in another way ({lines}); give another --output or remove it"
            )
        return manifest

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        try:
            array = np.load(self.folder / entry["file"], mmap_mode="r", allow_pickle=False)
            return array.dtype == np.float32 and len(array) == entry["n_clips"]
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            return False

    def _other_journals(self) -> list[Path]:
        own = Path(self._journal.name)
        return [path for path in self.folder.glob(".journal_*") if path != own]

    def _dead_journals(self) -> list[Path]:
        return [path for path in self._other_journals() if _owner_is_gone(path)]

    def _drop_journal(self) -> None:
        if self._journal is not None:
            Path(self._journal.name).unlink(missing_ok=True)
            self._journal.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _identity(value: Any) -> Any:
    """What must agree: of a network its content, wherever the file lies; of an obfuscation its
    name."""
    if not isinstance(value, dict):
        return value
    return (
        value["sha256"]
        if value.get("sha256")
        else {key: part for key, part in value.items() if key != "path"}
    )


def _owner_is_gone(journal: Path) -> bool:
    """Whether nobody holds the journal's lock."""
    try:
        with open(journal, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _apply(manifest: dict[str, Any], journal: str) -> None:
    """The records of a journal, in order; the last line of a killed process may be cut off."""
    for line in journal.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        name = record["name"]
        if "entry" in record:
            manifest["videos"][name] = record["entry"]
            manifest["failed"].pop(name, None)
        else:
            manifest["failed"][name] = record["reason"]
