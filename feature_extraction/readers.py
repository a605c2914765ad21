"""Readers: a video -> its clips, cropped and resized. All give the same clips; interpolation differs a little.

`dali` runs crop, resize and layout in a graph of NVIDIA DALI, on a GPU where there is one; `pyav` needs no DALI.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aux_code.errors import UserError
from aux_code.models.person_boxes import PersonBoxes
from feature_extraction.clip_views import ClipGeometry
from feature_extraction.frame_stream import FrameStream, SourceClip, VideoEnd, clips_of
from feature_extraction.video_inputs import VideoInput


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


class PyavReader:
    """Decodes with PyAV and transforms with PyTorch, on the CPU."""

    name = "pyav"

    def __init__(self, geometry: ClipGeometry, min_decoded_share: float = 0.9, box_source: PersonBoxes | None = None):
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
    video: VideoInput, clip: SourceClip, geometry: ClipGeometry, source: PersonBoxes | None
) -> list[list[Tensor]] | None:
    """The boxes of a decoded clip in pixels of its views."""
    if source is None:
        return None
    boxes = source.of_frames(video.path, clip.frame_indices, clip.frames)
    return geometry.boxes(boxes, clip.frames.shape[1:3])


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
    name: str, geometry: ClipGeometry, min_decoded_share: float, box_source: PersonBoxes | None, device: torch.device
) -> Reader:
    """A reader for one thread; `name` is dali or pyav."""
    if name == "pyav":
        return PyavReader(geometry, min_decoded_share, box_source)
    # imported here: DALI is optional and takes seconds
    from feature_extraction.dali_reader import DaliReader

    return DaliReader(geometry, min_decoded_share, box_source, device)
