"""What a step read, as digests that do not depend on where the files lie: moved artefacts and data
stay finished."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from aux_code import config
from aux_code.artefacts import sha256
from aux_code.checkpoints import read_json

TEXT_SUFFIXES = (".txt", ".csv", ".json", ".list", ".lst", ".md5")
"""Lists and annotations: small, and a corrected line changes the results."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; of a rendering's record without the seconds that it took."""
    if path.name == "miniature.json":
        content = {key: value for key, value in read_json(path).items() if key != "seconds"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    state = path.stat()
    return _digest_of_version(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of_version(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and sizes of all files below a folder, and the content of its lists and
    annotations.

    Reading every video would take as long as the work that this saves. Hidden files do not count.
    Empty if there is no such folder.
    """
    if not folder.is_dir():
        return ""
    total = hashlib.sha256()
    for path in sorted(_files(folder)):
        size = path.stat().st_size
        content = file_digest(path) if path.suffix.lower() in TEXT_SUFFIXES else ""
        total.update(f"{path.relative_to(folder).as_posix()}\0{size}\0{content}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=64)
def data_digest(root: Path) -> str:
    """`folder_digest` of a data set, once per process: nobody changes a data set under a run."""
    return folder_digest(root)


def _files(folder: Path) -> Iterator[Path]:
    visited = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        state = os.stat(name)
        if (state.st_dev, state.st_ino) in visited:  # a link back to a folder above
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        folders[:] = [child for child in folders if not child.startswith(".")]
        yield from (
            path
            for file in files
            if not file.startswith(".") and (path := Path(name, file)).is_file()
        )


def portable(word: str) -> str:
    """A command line's word with the artefacts' and the data's folder named instead of spelled
    out."""
    for name in ("ARTIFACT_ROOT", "DATA_ROOT"):
        root = str(getattr(config, name))
        if word == root or word.startswith(root + os.sep):
            return name + word[len(root) :]
    return word
