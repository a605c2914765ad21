"""From a clip's frames to what the networks see: resized crops, the person boxes moved along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aux_code.datasets.transforms import Policy, augment
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import view_text
from aux_code.errors import UserError


class Window(NamedTuple):
    """A crop: its upper left corner and its share of height and width, relative to the frame."""

    top: float
    left: float
    share: float
    mirrored: bool


class Cut(NamedTuple):
    """A window in pixels: those it touches, where in them it begins and ends; each (y, x)."""

    anchor: tuple[int, int]
    shape: tuple[int, int]
    roi_start: tuple[float, float]
    roi_end: tuple[float, float]


@dataclass(frozen=True)
class Clip:
    """A clip as the networks take it; `index`: its place in the video, from 0."""

    index: int
    views: Tensor
    """float32 (n_crops, T, 3, size, size) in [0,1]."""
    boxes: list[list[Tensor]] | None = None
    """Per crop and frame the (K,4) person boxes in pixels of the view; None if not needed."""
    frame_indices: Sequence[int] = ()
    """(T,) the frames' numbers in the video, which seed their noise."""


@dataclass(frozen=True)
class ClipGeometry:
    """Which frames make a clip and which part of them is seen, as `FeatureExtractionParams` say."""

    frames_per_clip: int = 16
    stride: int = 2
    frames_per_feature: int = 32
    crop: float = 0.8
    n_crops: int = 1
    size: int = 224
    anonymizer: str = "raw"
    """Others do not take frames that are released already."""

    def __post_init__(self) -> None:
        for name in ("frames_per_clip", "stride", "frames_per_feature", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.crop <= 1:
            raise UserError(f"--crop must lie in (0, 1], not {self.crop}")

    def for_copy(self, view: str, path: Path) -> "ClipGeometry":
        """Of a video whose metadata say `view`: copies of --as_features are cut to it already.

        Raises UnreadableMedia: such a copy, but not for this anonymizer, crop or size.
        """
        if not view:
            return self
        takes_copies = self.anonymizer == "raw" and self.n_crops == 1
        if takes_copies and view == view_text(self.crop, self.size):
            return replace(self, crop=1.0)
        what = f"is a released copy for --anonymizer raw --n_crops 1 at {view}"
        raise UnreadableMedia(path, f"{what}; extract it so, or the original")

    def n_clips(self, n_frames: int) -> int:
        """Number of features of a video of `n_frames` frames."""
        return -(-n_frames // self.frames_per_feature)

    def frame_indices(self, index: int, n_frames: int) -> np.ndarray:
        """(T,) the frames of clip `index` of a video; the last one completes a clip."""
        places = index * self.frames_per_feature + self.stride * np.arange(self.frames_per_clip)
        return np.minimum(places, n_frames - 1)

    @cached_property
    def windows(self) -> list[Window]:
        """The centre; or four corners and the centre, then the same five mirrored."""
        far = 1 - self.crop
        if self.n_crops == 1:
            return [Window(far / 2, far / 2, self.crop, False)]
        places = [(0.0, 0.0), (0.0, far), (far, 0.0), (far, far), (far / 2, far / 2)]
        return [Window(y, x, self.crop, mirrored) for mirrored in (False, True) for y, x in places]

    def views(self, frames: np.ndarray) -> Tensor:
        """uint8 (T,H,W,3) -> float32 (n_crops,T,3,size,size) in [0,1]."""
        return torch.stack([self._view(frames, window) for window in self.windows])

    def _view(self, frames: np.ndarray, window: Window) -> Tensor:
        cut = self._cut(window._replace(mirrored=False), *frames.shape[1:3])
        (top, left), (rows, columns) = cut.anchor, cut.shape
        if not np.allclose((*cut.roi_start, *cut.roi_end), (0, 0, rows, columns), 0, 1e-6):
            policy = Policy(crop_factor=(window.share, window.share), centred=True)
            return augment(frames, policy, self.size, []).transpose(0, 1)  # (T, 3, size, size)
        view = resized(frames[:, top : top + rows, left : left + columns], self.size)
        return view.flip(-1) if window.mirrored else view

    def cuts(self, height: int, width: int) -> list[Cut]:
        """The windows on frames of height x width, for a resampler with a region of interest."""
        return [self._cut(window, height, width) for window in self.windows]

    def _cut(self, window: Window, height: int, width: int) -> Cut:
        axes = zip((window.top, window.left), (height, width), strict=True)
        rows, columns = [_pixels(start, window.share, n, self.n_crops == 1) for start, n in axes]
        if window.mirrored:
            columns = (*columns[:2], columns[3], columns[2])
        return Cut(*zip(rows, columns, strict=True))

    def boxes(self, boxes: list[np.ndarray], source_hw: tuple[int, int]) -> list[list[Tensor]]:
        """Per frame (K,4) x0 y0 x1 y1 in pixels -> per view and frame, clipped to the view."""
        height, width = source_hw
        shares = [np.asarray(b, np.float64).reshape(-1, 4) / ([width, height] * 2) for b in boxes]
        return [[self._moved(frame, window) for frame in shares] for window in self.windows]

    def _moved(self, shares: np.ndarray, window: Window) -> Tensor:
        origin = np.array([window.left, window.top] * 2)
        moved = np.clip((shares - origin) / window.share * self.size, 0, self.size)
        if window.mirrored:
            moved[:, [0, 2]] = self.size - moved[:, [2, 0]]
        seen = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
        return torch.from_numpy(moved[seen]).float()


def resized(frames: np.ndarray, size: int) -> Tensor:
    """uint8 (T,H,W,3) -> float32 (T,3,size,size) in [0,1]: `augment` without a crop, faster."""
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, 3, H, W)
    planes = planes.to(torch.float32, memory_format=torch.contiguous_format)
    planes = functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    return planes.div_(255).clamp_(0, 1)


def _pixels(start: float, share: float, n: int, sub_pixel: bool) -> tuple[int, int, float, float]:
    """A stretch of an axis of n pixels: first pixel, number of pixels, start and end in them."""
    if not sub_pixel:
        length = max(1, round(share * n))
        return round(start * n), length, 0.0, float(length)
    first, end = start * n, (start + share) * n
    anchor = math.floor(first - 0.5) + 1
    length = max(1, math.ceil(end - 0.5) - anchor)
    return anchor, length, first - anchor, end - anchor
