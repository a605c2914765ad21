"""Frame indices on disk, below `config.FRAME_INDEX_ROOT`: one small file per video, replaced when
the video changes.

A file holds the arrays of the index and the key for which they hold: the video's path, modification
time and size, and the decoder's version. It is written to a temporary name and renamed, so that
processes may read and write at once; what cannot be read (or holds for another key) counts as
absent. The folder may be deleted at any time.
"""

import hashlib
import logging
import threading
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from aux_code import config
from aux_code.checkpoints import write_atomically
from aux_code.errors import UserError

log = logging.getLogger(__name__)

_LAYOUT = f"2, PyAV {av.__version__}"
"""Changes with the meaning of the arrays; another decoder may find other frames in a damaged
file."""

_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged archive of arrays raises (RuntimeError: a flag that says it is
encrypted)."""

_write_lock = threading.Lock()
_unwritable: set[Path] = set()


class FileKey(NamedTuple):
    """A file as it was when its index was made: absolute path, modification time in ns, size in
    bytes."""

    path: str
    mtime_ns: int
    n_bytes: int


def index_file(key: FileKey) -> Path:
    """Where the index of a video is kept; it depends on the video's path alone, so that a newer one
    replaces it."""
    name = hashlib.sha256(key.path.encode("utf-8", "surrogateescape")).hexdigest()
    return config.FRAME_INDEX_ROOT / name[:2] / f"{name[:32]}.npz"


def load_index(key: FileKey) -> dict[str, np.ndarray] | None:
    """The arrays stored for exactly this key; None if there are none or their file is damaged."""
    path = index_file(key)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        stored_for, digest = arrays.pop("key").tobytes(), arrays.pop("digest").tobytes()
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        log.warning("%s: damaged frame index of %s, made again (%s)", path, key.path, error)
        return None
    if stored_for != _described(key):
        return None
    if digest != _digest(key, arrays):
        log.warning("%s: damaged frame index of %s, made again", path, key.path)
        return None
    return arrays


def store_index(key: FileKey, arrays: dict[str, np.ndarray]) -> None:
    """Keeps the arrays for later processes; a folder that cannot be written is worth one warning,
    not an error."""
    if config.FRAME_INDEX_ROOT in _unwritable:
        return
    stamps = {"key": _described(key), "digest": _digest(key, arrays)}
    entries = arrays | {name: np.frombuffer(stamp, np.uint8) for name, stamp in stamps.items()}
    try:
        # The temporary name tells processes apart, not the threads of one.
        with _write_lock:
            write_atomically(index_file(key), lambda file: np.savez_compressed(file, **entries))
    except UserError as error:
        _unwritable.add(config.FRAME_INDEX_ROOT)
        log.warning("frame indices are not kept for later runs: %s", error)


def _described(key: FileKey) -> bytes:
    return "\0".join([_LAYOUT, *map(str, key)]).encode("utf-8", "surrogateescape")


def _digest(key: FileKey, arrays: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of key and arrays: the checksums of the archive do not cover the names and places of
    its members."""
    digest = hashlib.sha256(_described(key))
    for name, array in sorted(arrays.items()):
        digest.update(
            f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        )
    return digest.digest()
