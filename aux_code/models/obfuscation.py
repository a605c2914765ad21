"""Fixed anonymizers, the paper's baselines (section 4, table 8): frames (N, 3, H, W) in [0, 1]."""

import csv
import io
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.checkpoints import write_atomically
from aux_code.errors import UserError
from aux_code.models.anonymizers import NarrowOutput

_HEADER = ["file", "frame", "x0", "y0", "x1", "y1"]


class Obfuscation(nn.Module):
    """Interface: forward(frames, boxes=None); `requires_boxes`: whether it needs people's boxes."""

    requires_boxes = False


class Raw(Obfuscation):
    """The identity: no anonymization."""

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        return frames


class Grey(Obfuscation):
    """Luma (ITU-R BT.601): frames (N, 3, H, W) -> (N, 1, H, W)."""

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        weights = torch.tensor([0.299, 0.587, 0.114]).to(frames)
        return (frames * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


class Downsample(Obfuscation):
    """Averages down by `factor` (antialiased bilinear) and back up to the old size (bilinear)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        size = frames.shape[-2:]
        low = [max(1, round(side / self.factor)) for side in size]
        small = F.interpolate(frames, size=low, mode="bilinear", antialias=True)
        return F.interpolate(small, size=size, mode="bilinear")


class BoxObfuscation(Obfuscation, ABC):
    """Replaces the inside of person boxes.

    `forward` takes one (K, 4) float tensor for each of the N frames, rows x0, y0, x1, y1 in pixels
    of the frames as given (x1, y1 exclusive, K may be 0). Pixels that a box touches in part belong
    to it; what lies outside the frame is ignored.
    """

    requires_boxes = True

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        if boxes is None:
            remedy = "into the data set's root, or give --boxes or --detector_weights"
            file = f"put person_boxes.csv ({','.join(_HEADER)}) {remedy}"
            raise UserError(f"blur and blacken need the boxes of the people: {file}")
        if len(boxes) != len(frames):
            raise ValueError(f"{len(frames)} frames but boxes for {len(boxes)}")
        return torch.where(box_mask(boxes, frames), self.replacement(frames), frames)

    @abstractmethod
    def replacement(self, frames: Tensor) -> Tensor:
        """What the boxes show instead: (N, 3, H, W)."""


class Blacken(BoxObfuscation):
    """Person boxes set to 0."""

    def replacement(self, frames: Tensor) -> Tensor:
        return torch.zeros_like(frames)


class Blur(BoxObfuscation):
    """Person boxes blurred with a Gaussian.

    Args:
        kernel_size: odd, pixels; 13 in the paper.
        sigma: pixels; 10 in the paper.
    """

    def __init__(self, kernel_size: int = 13, sigma: float = 10.0):
        super().__init__()
        offsets = torch.arange(kernel_size) - kernel_size // 2
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def replacement(self, frames: Tensor) -> Tensor:
        radius = len(self.kernel) // 2
        kernel = self.kernel.to(frames)
        # replicate, because reflection fails on frames smaller than the kernel
        padded = F.pad(frames, (radius,) * 4, mode="replicate").flatten(0, 1).unsqueeze(1)
        rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
        return F.conv2d(rows, kernel.view(1, 1, -1, 1)).view_as(frames)


def box_mask(boxes: Sequence[Tensor], frames: Tensor) -> Tensor:
    """Boxes as for BoxObfuscation -> (N, 1, H, W) bool, True where a box touches the pixel."""
    n_frames, _, height, width = frames.shape
    mask = torch.zeros(n_frames, 1, height, width, dtype=torch.bool)
    for i, frame_boxes in enumerate(boxes):
        rows = torch.as_tensor(frame_boxes, dtype=torch.float64, device="cpu").reshape(-1, 4)
        corners = torch.cat([rows[:, :2].floor(), rows[:, 2:].ceil()], dim=1).clamp(min=0).long()
        for left, top, right, bottom in corners.tolist():
            mask[i, 0, top:bottom, left:right] = True
    return mask.to(frames.device)


OBFUSCATIONS = {
    "raw": Raw, "downsample2x": lambda: Downsample(2), "downsample4x": lambda: Downsample(4),
    "blur": Blur, "blacken": Blacken,
}  # fmt: skip
"""Name on the command line -> constructor without arguments."""
NAMES = f"{', '.join(OBFUSCATIONS)} or mosaicK[_grey][_noiseS]"
_MOSAIC = re.compile(r"mosaic([1-9]\d*)(_grey)?(?:_noise(\d*\.\d+))?")


def is_named(anonymizer: str) -> bool:
    """Whether an `--anonymizer` is a name, not a file."""
    return anonymizer in OBFUSCATIONS or bool(_MOSAIC.fullmatch(anonymizer))


def build_obfuscation(name: str) -> nn.Module:
    """The anonymizer of a name, which learns nothing.

    `mosaicK`: K x K pixels become their mean; `_grey`: of their luma; `_noiseS`: with noise of
    standard deviation S (pixels in [0, 1]), as a narrow f_A releases it.
    """
    if name in OBFUSCATIONS:
        return OBFUSCATIONS[name]().eval()
    pixels, grey, noise = _MOSAIC.fullmatch(name).groups()
    network = NarrowOutput(
        Grey() if grey else Raw(), 1 if grey else 3, 1 / int(pixels), float(noise or 0)
    )
    network.requires_boxes = False
    return network.eval()


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
        if next(csv.reader(stream), None) != _HEADER:
            raise UserError(f"{csv_path}, line 1: the header must be {','.join(_HEADER)}")
        name, start, count = "", None, 0
        for line in stream:
            if start is not None and line.startswith(start):
                count += 1
            elif line != "\n":
                runs.append((name, count))
                name, count = next(csv.reader([line]))[0], 1
                start = line.rsplit(",", len(_HEADER) - 1)[0] + ","
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
    writer.writerow(_HEADER)
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
        expected = f"{','.join(_HEADER)} with numbers"
        raise UserError(f"{where}: expected {expected}, got: {','.join(row)}")
    if box[2] <= box[0] or box[3] <= box[1]:
        rule = "x1 must exceed x0, y1 must exceed y0"
        raise UserError(f"{where}: the box is empty ({rule}): {','.join(row)}")
