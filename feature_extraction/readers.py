"""Readers: a video -> its clips, cropped and resized. All give the same clips; interpolation
differs a little.

`dali` runs crop, resize and layout in a graph of NVIDIA DALI, on a GPU where there is one; `pyav`
needs no DALI.
"""

import importlib.util
from collections.abc import Iterator
from typing import Protocol

import torch

from aux_code.errors import UserError
from aux_code.models.person_boxes import PersonBoxes
from feature_extraction.clip_views import Clip, ClipGeometry
from feature_extraction.frame_stream import VideoEnd
from feature_extraction.pyav_reader import PyavReader
from feature_extraction.video_inputs import VideoInput


class Reader(Protocol):
    """Interface of the readers; one object serves one thread."""

    name: str

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        """Yields the clips in order, then one VideoEnd. Raises UnreadableMedia for what does not
        decode."""


def resolve_reader(name: str) -> str:
    """auto -> dali where it is installed, else pyav.

    Raises:
        UserError: dali was asked for by name and is not installed.
    """
    installed = (
        importlib.util.find_spec("nvidia") is not None
        and importlib.util.find_spec("nvidia.dali") is not None
    )
    if name == "dali" and not installed:
        raise UserError(
            "--reader dali: NVIDIA DALI is not installed; install it (pip install nvidia-dali-cuda130, Linux only) or "
            "use --reader pyav, which gives the same clips"
        )
    return ("dali" if installed else "pyav") if name == "auto" else name


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
    # imported here: DALI is optional and takes seconds
    from feature_extraction.dali_reader import DaliReader

    return DaliReader(geometry, min_decoded_share, box_source, device)
