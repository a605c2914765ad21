"""person_boxes.csv: the boxes of people in a data set's videos or images, read and written."""

import csv
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from aux_code.checkpoints import write_atomically
from aux_code.errors import UserError

HEADER = ["file", "frame", "x0", "y0", "x1", "y1"]


class FrameBoxes(Mapping[int, np.ndarray]):
    """Frame -> boxes float32 (K, 4) of a video, from rows in any order: frames (n,), boxes (n, 4).

    24 bytes a row; a dict of arrays takes 600.
    """

    def __init__(self, frames: np.ndarray, boxes: np.ndarray):
        order = np.argsort(frames, kind="stable")
        self._frames, self._boxes = frames[order], boxes[order]

    def __getitem__(self, frame: int) -> np.ndarray:
        first, end = np.searchsorted(self._frames, [frame, frame + 1])
        if first == end:
            raise KeyError(frame)
        return self._boxes[first:end]

    def __iter__(self) -> Iterator[int]:
        return iter(np.unique(self._frames).tolist())

    def __len__(self) -> int:
        return len(np.unique(self._frames))


def read_boxes(csv_path: Path | str) -> dict[str, Mapping[int, np.ndarray]]:
    """Person boxes: file -> frame -> float32 (K, 4) x0, y0, x1, y1 in pixels of the decoded frame.

    The header is `file,frame,x0,y0,x1,y1`: `file` relative to the data set's root with forward
    slashes, frames from 0 (0 for images), x1 and y1 exclusive, one row per person and frame. A
    million rows take about two seconds and 100 MB.

    Raises:
        UserError: no such file, another header, or a bad line (named with its number).
    """
    try:
        names, numbers = _runs_of_names(csv_path), _numbers(csv_path)
        if numbers is None or sum(n for _, n in names) != len(numbers):
            _name_bad_line(csv_path)
            raise UserError(f"{csv_path}: a file's name has a line break; rename it")
    except OSError as error:
        problem = f"the boxes of the people cannot be read ({error.strerror})"
        raise UserError(f"{csv_path}: {problem}; blur and blacken need this file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{csv_path} is not a CSV text file in UTF-8 ({error})") from error
    ends = np.cumsum([n for _, n in names])
    parts: dict[str, list[np.ndarray]] = {}
    for (name, n), end in zip(names, ends, strict=True):
        parts.setdefault(name, []).append(numbers[end - n : end])
    joined = {name: np.concatenate(own) for name, own in parts.items()}
    return {name: FrameBoxes(own["frame"], own["box"]) for name, own in joined.items()}


def _runs_of_names(csv_path: Path | str) -> list[tuple[str, int]]:
    """(file, number of rows) of each run of rows of one file."""
    runs: list[tuple[str, int]] = []
    with open(csv_path, encoding="utf-8-sig") as stream:
        if next(csv.reader(stream), None) != HEADER:
            raise UserError(f"{csv_path}, line 1: the header must be {','.join(HEADER)}")
        name, start, count = "", None, 0
        for line in stream:
            if start is not None and line.startswith(start):
                count += 1
            elif line != "\n":
                runs.append((name, count))
                name, count = next(csv.reader([line]))[0], 1
                start = line.rsplit(",", len(HEADER) - 1)[0] + ","
    return [*runs[1:], (name, count)] if count else []


def _numbers(csv_path: Path | str) -> np.ndarray | None:
    """The other columns, (n,) of fields `frame` and `box` (4,); None: a line is bad."""
    row = [("file", "U1"), ("frame", np.int64), ("box", np.float32, 4)]
    form = {"delimiter": ",", "quotechar": '"', "comments": None, "encoding": "utf-8-sig"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data")
        try:
            found = np.loadtxt(csv_path, row, skiprows=1, ndmin=1, **form)
        except UnicodeDecodeError:
            raise
        except ValueError:
            return None
    box = found["box"]
    good = (found["frame"] >= 0) & np.isfinite(box).all(1) & (box[:, 2:] > box[:, :2]).all(1)
    return found[["frame", "box"]] if good.all() else None


def _name_bad_line(csv_path: Path | str) -> None:
    """Raises a UserError with the first bad line's number."""
    with open(csv_path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        next(reader)
        for row in reader:
            if row:
                _check_row(row, f"{csv_path}, line {reader.line_num}")


def write_boxes(csv_path: Path | str, boxes: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Writes, atomically, what `read_boxes` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for file, frames in boxes.items():
        for frame, rows in frames.items():
            writer.writerows([file, frame, *map(float, box)] for box in rows)
    write_atomically(csv_path, lambda stream: stream.write(text.getvalue().encode()))


def _check_row(row: list[str], where: str) -> None:
    try:
        frame, box = int(row[1]), [float(value) for value in row[2:]]
    except (ValueError, IndexError):
        frame, box = -1, []
    if frame < 0 or len(box) != 4 or not np.isfinite(box).all():
        expected = f"{','.join(HEADER)} with numbers"
        raise UserError(f"{where}: expected {expected}, got: {','.join(row)}")
    if box[2] <= box[0] or box[3] <= box[1]:
        rule = "x1 must exceed x0, y1 must exceed y0"
        raise UserError(f"{where}: the box is empty ({rule}): {','.join(row)}")
