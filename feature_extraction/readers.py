"""Readers: a video -> its clips, cropped and resized, in constant memory.

`pyav` works on the CPU; `dali` (dali_reader.py) crops and resizes in a graph of NVIDIA DALI, on a
GPU where there is one. Both give the same clips; interpolation differs a little.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aux_code.datasets.decode import RgbConverter, iterate_frames
from aux_code.datasets.image_files import IMAGE_SUFFIXES, frame_files, read_image
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import FOLDER_FPS, VIEW_TAG, Decoding, open_video
from aux_code.errors import UserError
from aux_code.models.person_boxes import PersonBoxes
from feature_extraction.clip_views import Clip, ClipGeometry
from feature_extraction.video_inputs import VideoInput

log = logging.getLogger(__name__)

Frame = Callable[[], np.ndarray]
"""A frame that becomes uint8 (H,W,3) RGB when it is called."""


@dataclass(frozen=True)
class VideoEnd:
    """What is known of a video once it has been read. `status`: complete, or damaged in parts."""

    n_frames: int
    fps: float
    status: str = "complete"


class Reader(Protocol):
    """Interface of the readers; one object serves one thread."""

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        """Yields the clips in order, then one VideoEnd. Raises UnreadableMedia."""


def resolve_reader(name: str) -> str:
    """auto -> dali where it is installed, else pyav; dali by name where it is not: a UserError."""
    found = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    if name == "dali" and not found:
        remedy = "pip install nvidia-dali-cuda130 (Linux only), or --reader pyav: the same clips"
        raise UserError(f"--reader dali: NVIDIA DALI is not installed; {remedy}")
    return ("dali" if found else "pyav") if name == "auto" else name


def make_reader(
    name: str,
    geometry: ClipGeometry,
    min_decoded_share: float,
    box_source: PersonBoxes | None,
    device: torch.device,
) -> Reader:
    """A reader for one thread; `name` is dali or pyav."""
    if name == "pyav":
        return PyavReader(geometry, min_decoded_share, box_source)
    from feature_extraction.dali_reader import DaliReader  # optional, and takes seconds

    return DaliReader(geometry, min_decoded_share, box_source, device)


@dataclass(frozen=True)
class PyavReader:
    """Decodes with PyAV and transforms with PyTorch, on the CPU."""

    geometry: ClipGeometry
    min_decoded_share: float = 0.9
    box_source: PersonBoxes | None = None

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        stream = FrameStream(video.path, self.min_decoded_share)
        for clip in clips_of(iter(stream), self.geometry):
            geometry = self.geometry.for_copy(stream.view, video.path)
            boxes = view_boxes(video, clip, geometry, self.box_source)
            yield Clip(clip.index, geometry.views(clip.frames), boxes, clip.frame_indices)
        yield stream.end()


@dataclass(frozen=True)
class SourceClip:
    """A clip as decoded: its place in the video, uint8 (T,H,W,3) RGB, (T,) the frames' numbers."""

    index: int
    frames: np.ndarray
    frame_indices: np.ndarray


def view_boxes(
    video: VideoInput, clip: SourceClip, geometry: ClipGeometry, source: PersonBoxes | None
) -> list[list[Tensor]] | None:
    """The boxes of a decoded clip in pixels of its views."""
    if source is None:
        return None
    boxes = source.of_frames(video.path, clip.frame_indices, clip.frames)
    return geometry.boxes(boxes, clip.frames.shape[1:3])


def clips_of(frames: Iterator[Frame], geometry: ClipGeometry) -> Iterator[SourceClip]:
    """As `clip_sampling.consecutive_clips`, of unknown length; calls only for frames of a clip.

    Clip k starts at frame k * frames_per_feature; the last frame completes a clip that is short.
    """
    taken: dict[int, list[tuple[int, np.ndarray]]] = {}  # clip -> (number, frame) of its frames
    for number, last in enumerate(frames):
        if number % geometry.frames_per_feature == 0:
            taken[number // geometry.frames_per_feature] = []
        for index in list(taken):
            if (number - index * geometry.frames_per_feature) % geometry.stride == 0:
                taken[index].append((number, last()))
            if len(taken[index]) == geometry.frames_per_clip:
                yield _source_clip(index, taken.pop(index))
    for index, of_clip in taken.items():
        of_clip += [(number, last())] * (geometry.frames_per_clip - len(of_clip))
        yield _source_clip(index, of_clip)


def _source_clip(index: int, numbered: list[tuple[int, np.ndarray]]) -> SourceClip:
    numbers, frames = zip(*numbered)
    return SourceClip(index, np.stack(frames), np.array(numbers))


class FrameStream:
    """The frames of a file, a folder of frames or an image in order, then `end`: what came."""

    def __init__(self, path: Path, min_decoded_share: float):
        self.path, self.min_decoded_share = path, min_decoded_share
        self.view = ""  # of `ClipGeometry.for_copy`, known with the first frame
        self._n_frames, self._announced, self._fps, self._share = 0, 0.0, 0.0, 1.0
        self._problems: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        """Raises UnreadableMedia if the file does not open, is empty or holds no video."""
        is_image = self.path.suffix.lower() in IMAGE_SUFFIXES
        for frame in self._images() if self.path.is_dir() or is_image else self._decoded():
            self._n_frames += 1
            yield frame

    def end(self) -> VideoEnd:
        """After the last. Raises UnreadableMedia if less than `min_decoded_share` came."""
        if self._n_frames == 0:
            raise UnreadableMedia(self.path, "no frame of its video decodes")
        share = min(1.0, self._n_frames / max(self._announced, 1.0))
        if share < self.min_decoded_share:
            reason = f"only {share:.0%} of its {self._announced:.0f} frames decode"
            raise UnreadableMedia(self.path, reason)
        if self._problems:
            text = "%s: damaged: %s (%d frames come; %.1f %% of its frames decode)"
            problems, whole = "; ".join(self._problems), 100 * self._share
            log.warning(text, self.path, problems, self._n_frames, whole)
        status = "damaged" if self._problems else "complete"
        return VideoEnd(self._n_frames, round(self._fps, 4), status)

    def _images(self) -> Iterator[Frame]:
        is_folder = self.path.is_dir()
        self._announced = len(frame_files(self.path)) if is_folder else 1
        self._fps = FOLDER_FPS
        for image in iterate_frames(self.path) if is_folder else [read_image(self.path)]:
            yield lambda image=image: image

    def _decoded(self) -> Iterator[Frame]:
        convert = RgbConverter()
        with open_video(self.path) as container:
            self.view = container.metadata.get(VIEW_TAG, "")
            decoding = Decoding(container, self.path)
            for frame in decoding:
                yield cache(partial(convert, frame))
            self._announced, self._problems = decoding.n_announced(), decoding.problems
            self._share = decoding.share()
            self._fps = float(decoding.clock.rate(decoding.clock.pts(decoding.stamps)))
