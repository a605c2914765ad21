"""VISPR label pickles -> annotations: `python -m aux_code.datasets.convert_labels OLD.pkl [FOLDER]`

The pickle holds a dict: image id -> 7 values, 0 or 1, in the order of VISPR1. FOLDER gets one
<id>.json per image, as the official annotations have it. Without it the pickle's name tells the
place, beside the pickle: train_labels.pkl -> annotations/train2017, which in <VISPR_ROOT> is where
the loader looks, and other.pkl -> other.

A pickle can run any program when it is loaded. The unpickler here knows the parts of a NumPy array
and nothing else, so it refuses the rest before running it.
"""

import argparse
import logging
import pickle
import re
from pathlib import Path

import numpy as np

from aux_code.checkpoints import write_json
from aux_code.datasets.vispr import VISPR1
from aux_code.errors import UserError
from aux_code.progress import progress
from aux_code.runs import run_script

log = logging.getLogger(__name__)

# fmt: off
_UNPICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
    ImportError, MemoryError, OverflowError, RuntimeError, AssertionError,
)
# fmt: on


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which older pickles write bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


def _number_type(name: str, *options: bool) -> np.dtype:
    """Stands for `numpy.dtype`; types that hold objects would let a pickle invent them."""
    dtype = np.dtype(name, *options)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"it contains an array of {dtype}, not of numbers")
    return dtype


def _admitted() -> dict[tuple[str, str], object]:
    """(module, name) in a pickle -> what is used for it, under the names of NumPy 1 and 2."""
    names: dict[tuple[str, str], object] = {("numpy", "ndarray"): np.ndarray}
    names |= {("numpy", "dtype"): _number_type, ("_codecs", "encode"): _latin1}
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = np.ndarray(0).__reduce__()[0]
        names[f"{core}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
        names[f"{core}.numeric", "_frombuffer"] = np.ndarray(1).__reduce_ex__(5)[0]
    return names


class ArrayUnpickler(pickle.Unpickler):
    """Reads built-in containers, numbers, texts and NumPy arrays; else UnpicklingError."""

    admitted = _admitted()

    def find_class(self, module: str, name: str) -> object:
        """The admitted object of that name; never an import."""
        if (module, name) not in self.admitted:
            found = f"{module}.{name}, which is neither a number nor a NumPy array"
            raise pickle.UnpicklingError(f"it contains {found}")
        return self.admitted[module, name]


def read_labels(path: Path | str) -> dict[str, np.ndarray]:
    """Image id -> float32 (7,), 0 or 1, in the order of VISPR1.

    Raises:
        UserError: no such file, no pickle, or one that holds anything but such labels.
    """
    try:
        with open(path, "rb") as file:
            # latin1: how NumPy arrays pickled under Python 2 are to be read.
            content = ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except _UNPICKLE_ERRORS as error:
        raise UserError(f"{path}: refused: {error}") from error
    if not isinstance(content, dict) or not content:
        expected, found = f"a dict of image id -> {len(VISPR1)} labels", type(content).__name__
        raise UserError(f"{path}: expected {expected}, found {found}")
    labels = {_image_id(path, key): _labels(path, key, value) for key, value in content.items()}
    if len(labels) < len(content):
        counts = f"{len(content)} ids, but only {len(labels)} images"
        raise UserError(f"{path}: {counts}; some are listed twice")
    return labels


def _image_id(path: Path | str, key: object) -> str:
    stem = Path(key).stem if isinstance(key, str) else ""
    if not stem:
        raise UserError(f"{path}: image ids are texts such as '2017_37407376', found {key!r}")
    return stem


def _labels(path: Path | str, key: str, value: object) -> np.ndarray:
    try:
        labels = np.asarray(value, dtype=np.float32).reshape(-1)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: labels of {key} are not numbers ({error})") from error
    if labels.shape != (len(VISPR1),) or not np.isin(labels, (0, 1)).all():
        found = labels.tolist()[:10]
        raise UserError(f"{path}: {key}: expected {len(VISPR1)} labels, 0 or 1, found {found}")
    return labels


def default_folder(path: Path) -> Path:
    """Beside the pickle: <split>*.pkl to annotations/<split>2017, OTHER.pkl to OTHER."""
    match = re.match(r"(train|val|test)(?![a-z])", path.name.lower())
    if not match:
        problem = "the name does not begin with train, val or test; move the result to its split"
        log.warning("%s: %s", path, problem)
        return path.with_name(path.stem if path.suffix else f"{path.name}_annotations")
    return path.parent / "annotations" / f"{match[1]}2017"


def write_annotations(labels: dict[str, np.ndarray], folder: Path) -> None:
    """One <id>.json per image; a UserError if the folder already holds annotations."""
    if folder.is_dir() and any(folder.glob("*.json")):
        raise UserError(f"{folder} already holds annotations; give a new folder")
    for image_id, values in progress(labels.items(), "write annotations"):
        names = [name for name, value in zip(VISPR1, values, strict=True) if value]
        write_json(folder / f"{image_id}.json", {"image_path": f"{image_id}.jpg", "labels": names})


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 0 done, 2 wrong input."""
    program = "python -m aux_code.datasets.convert_labels"
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("pickle", type=Path, metavar="OLD.pkl")
    place = "by default annotations/<split>2017 beside <split>_labels.pkl"
    parser.add_argument("folder", type=Path, metavar="FOLDER", nargs="?", help=place)
    options = parser.parse_args(argv)
    labels = read_labels(options.pickle)
    folder = options.folder or default_folder(options.pickle)
    write_annotations(labels, folder)
    log.info("%s: %d annotations of the %d attributes of VISPR1", folder, len(labels), len(VISPR1))
    return 0


if __name__ == "__main__":
    run_script(main)
