"""Readers: a video -> its clips, cropped and resized. All give the same clips; interpolation differs a little.

`dali` runs crop, resize and layout in a graph of NVIDIA DALI, on a GPU where there is one; `pyav` needs no DALI.
"""

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aux_code.errors import UserError
from aux_code.models.obfuscation import read_boxes
from aux_code.models.person_boxes import detect_person_boxes, load_person_detector
from feature_extraction.clip_views import ClipGeometry
from feature_extraction.frame_stream import FrameStream, SourceClip, VideoEnd, clips_of
from feature_extraction.video_inputs import VideoInput

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A clip as the networks take it.

    Attributes:
        index: its place in the video, from 0.
        views: float32 (n_crops, T, 3, size, size) in [0,1].
        boxes: per crop and frame the (K,4) person boxes in pixels of the view; None where nobody needs them.
    """

    index: int
    views: Tensor
    boxes: list[list[Tensor]] | None = None


class Reader(Protocol):
    """Interface of the readers; one object serves one thread."""

    name: str

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        """Yields the clips in order, then one VideoEnd. Raises UnreadableMedia for what does not decode."""


class BoxSource:
    """Person boxes by video and frame, from a CSV or, without one, by a detector on the decoded frames.

    Args:
        csv_path: the CSV, or None for the detector.
        videos: what is to be extracted.
        device: where the detector runs.

    Raises:
        UserError: the CSV knows none of the videos, or there is no detector here.
    """

    def __init__(self, csv_path: Path | None, videos: Iterable[VideoInput], device: torch.device):
        self._boxes = read_boxes(csv_path) if csv_path else None
        self._detect = None if csv_path else _make_detector(device)
        if self._boxes is None:
            return
        unknown = [video.boxes_key for video in videos if video.boxes_key not in self._boxes]
        if unknown and len(unknown) == len(list(videos)):
            raise UserError(f"{csv_path} has no row for any of these videos; its `file` must read like {unknown[0]}")
        for key in unknown:
            log.warning("%s has no row for %s: taken as a video without people", csv_path, key)

    @property
    def needs_frames(self) -> bool:
        """Whether boxes come from the frames themselves."""
        return self._boxes is None

    def of_frames(self, video: VideoInput, frame_indices: np.ndarray, frames: np.ndarray | None) -> list[np.ndarray]:
        """(K,4) boxes per frame, x0 y0 x1 y1 in pixels of the decoded frame. `frames`: uint8 (T,H,W,3) if needed."""
        if self._boxes is None:
            return self._detect(frames)
        of_video = self._boxes.get(video.boxes_key, {})
        return [of_video.get(int(i), np.zeros((0, 4), np.float32)) for i in frame_indices]


class PyavReader:
    """Decodes with PyAV and transforms with PyTorch, on the CPU."""

    name = "pyav"

    def __init__(self, geometry: ClipGeometry, min_decoded_share: float = 0.9, box_source: BoxSource | None = None):
        self.geometry = geometry
        self.min_decoded_share = min_decoded_share
        self.box_source = box_source

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        stream = FrameStream(video.path, self.min_decoded_share)
        for clip in clips_of(iter(stream), self.geometry):
            boxes = view_boxes(video, clip, self.geometry, self.box_source)
            yield Clip(clip.index, self.geometry.views(clip.frames), boxes)
        yield stream.end()


def view_boxes(
    video: VideoInput, clip: SourceClip, geometry: ClipGeometry, source: BoxSource | None
) -> list[list[Tensor]] | None:
    """The boxes of a decoded clip in pixels of its views."""
    if source is None:
        return None
    boxes = source.of_frames(video, clip.frame_indices, clip.frames)
    return geometry.boxes(boxes, clip.frames.shape[1:3])


def _make_detector(device: torch.device) -> Callable[[np.ndarray], list[np.ndarray]]:
    """uint8 (T,H,W,3) -> boxes of the people in each frame, by a COCO detector (paper, section 4)."""
    detector = load_person_detector(device=device)
    lock = threading.Lock()

    def detect(frames: np.ndarray) -> list[np.ndarray]:
        tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).to(device).float() / 255
        with lock:
            return [boxes.numpy() for boxes in detect_person_boxes(tensor, detector)]

    return detect


def resolve_reader(name: str) -> str:
    """auto -> dali where it is installed, else pyav.

    Raises:
        UserError: dali was asked for by name and is not installed.
    """
    installed = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if name == "dali" and not installed:
        raise UserError(
            "--reader dali: NVIDIA DALI is not installed; install it (pip install nvidia-dali-cuda130, Linux only) or "
            "use --reader pyav, which gives the same clips"
        )
    return ("dali" if installed else "pyav") if name == "auto" else name


def make_reader(
    name: str, geometry: ClipGeometry, min_decoded_share: float, box_source: BoxSource | None, device: torch.device
) -> Reader:
    """A reader for one thread; `name` is dali or pyav."""
    if name == "pyav":
        return PyavReader(geometry, min_decoded_share, box_source)
    # imported here: DALI is optional and takes seconds
    from feature_extraction.dali_reader import DaliReader

    return DaliReader(geometry, min_decoded_share, box_source, device)
