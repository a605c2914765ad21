"""Frames of any size for networks that halve the resolution several times."""

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Extends frames (N, C, H, W) at the right and the bottom by their border pixels to multiples
    of `multiple`."""
    height, width = frames.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(frames, (0, right, 0, bottom), mode="replicate") if bottom or right else frames
