"""Files that are whole or absent: atomic writes and safe reads."""

import contextlib
import json
import os
import pickle
import secrets
import subprocess
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from aux_code import config
from aux_code.errors import UserError


def write_atomically(path: Path | str, write: Callable[[BinaryIO], None]) -> None:
    """Writes to a temporary name in the same folder, syncs it and renames it: a kill leaves the old
    or the new file. A full disk or a folder that cannot be written is a UserError."""
    path = Path(path)
    # drawn, since processes of two machines or containers may have one id and share the folder
    temporary = path.with_name(f".{path.name}.{os.getpid()}_{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # without the folder there is nothing to remove
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, content: Any) -> None:
    """Writes JSON atomically; NaN and infinity, which other readers do not take, are refused."""
    text = json.dumps(content, indent=1, default=plain, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path | str) -> Any:
    """Reads JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); remove it and run its stage again"
        ) from error


def write_npy(path: Path | str, array: np.ndarray) -> None:
    """Writes one array atomically."""
    write_atomically(path, lambda file: np.save(_PlainWriter(file), array, allow_pickle=False))


class _PlainWriter:
    """A file that NumPy writes to in Python's way: into real files it writes past Python, and where
    the disk is full it drops the last bytes of a small array without an error."""

    def __init__(self, file: BinaryIO):
        self.write = file.write


def save_checkpoint(path: Path | str, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint atomically: tensors and plain Python values, so that it loads safely."""
    buffer = BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def _numpy_values() -> list[Any]:
    """What numpy's numbers and arrays are pickled as, by this numpy and by numpy 1: data, whose
    reading runs nothing. Published checkpoints hold some, such as a best score."""
    multiarray = np._core.multiarray
    functions = [multiarray.scalar, multiarray._reconstruct]
    old_names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    new_names = [(function, name.replace(".core.", "._core.")) for function, name in old_names]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSUOV"]
    return [*old_names, *new_names, np.ndarray, np.dtype, *dtypes]


def load_checkpoint(path: Path | str) -> Any:
    """Reads a file of tensors, plain values, numpy numbers and arrays on the CPU, executing nothing
    in it.

    Raises:
        UserError: missing, empty, truncated or not a checkpoint, or it would need code to be
            unpickled.
    """
    path = Path(path)
    if not path.is_file():
        text = "does not exist; run the stage that writes it or give another path"
        raise UserError(f"checkpoint {path} {text}")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {path} is empty (0 bytes); copy or write it again")
    try:
        with torch.serialization.safe_globals(_numpy_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} is refused: reading it would run code stored in the file, or it is "
            f"damaged. Only tensors and plain values are read. ({_first_line(error)})"
        ) from error
    except Exception as error:  # bytes that are no checkpoint fail in many ways
        raise UserError(
            f"checkpoint {path} is truncated or not a checkpoint ({_first_line(error)})"
        ) from error


@lru_cache(maxsize=1)
def git_commit() -> str:
    """The commit of the checkout, empty outside one."""
    try:
        command, root = ["git", "rev-parse", "HEAD"], config.REPOSITORY_ROOT
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def plain(value: Any) -> Any:
    """What JSON takes of a path, an array or a tensor; for `default` of json.dumps."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")
