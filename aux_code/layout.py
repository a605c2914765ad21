"""The one place where clips (B, C, T, H, W) meet frames (B*T, C, H, W); and their sizes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

FRAMES_PER_PASS = {"cpu": 4, "cuda": 32}
"""Frames of a pass where nobody says: a CPU gains nothing from more, so many keep a GPU busy."""


def apply_per_frame(
    net: Callable[[Tensor], Tensor],
    clips: Tensor,
    chunk: int | None = None,
    recompute: bool = False,
) -> Tensor:
    """Applies an image-to-image network to every frame of every clip.

    Args:
        net: frames (N, C, H, W) -> (N, C', H', W').
        clips: (B, C, T, H, W).
        chunk: frames per pass, which bound the memory of a pass without gradient; 0 takes all B*T
            at once. None: FRAMES_PER_PASS of the device, but all at once while a batch norm takes
            its statistics from the batch.
        recompute: with gradients, keep only each chunk's input and compute its activations again in
            the backward pass, so that memory does not grow with the length of the clip. Not for
            batch norms that take their statistics from the batch: they would be of a chunk.

    Returns:
        (B, C', T, H', W'), frame t of clip b at [b, :, t].
    """
    n_clips, _, n_frames = clips.shape[:3]
    frames = clips.transpose(1, 2).flatten(0, 1)
    if chunk is None:
        whole = isinstance(net, nn.Module) and _takes_batch_statistics(net)
        chunk = 0 if whole else FRAMES_PER_PASS.get(clips.device.type, 0)
    pieces = frames.split(chunk) if chunk > 0 else (frames,)
    if recompute and torch.is_grad_enabled():
        outputs = [checkpoint(net, piece, use_reentrant=False) for piece in pieces]
    else:
        outputs = [net(piece) for piece in pieces]
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return output.unflatten(0, (n_clips, n_frames)).transpose(1, 2)


def _takes_batch_statistics(net: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) and module.training for module in net.modules())


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Extends frames (N, C, H, W) at the right and bottom by their border pixels to multiples."""
    height, width = frames.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    edges = (0, right, 0, bottom)
    return nn.functional.pad(frames, edges, mode="replicate") if any(edges) else frames
