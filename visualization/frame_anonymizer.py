"""An anonymizer on a video's frames: whole, in overlapping tiles whose seams do not show, or as
stage 3 sees them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.datasets.transforms import evaluation_transform, transform_boxes
from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer
from aux_code.model_loaders import apply_anonymizer, noise_keys
from aux_code.models.anonymizers import NarrowOutput
from aux_code.models.person_boxes import PersonBoxes

OVERLAP = 64


class FrameAnonymizer:
    """uint8 frames of a video -> anonymized uint8 frames.

    Args:
        network: of `prepared`.
        device: where it runs.
        video: its file or folder, whose name with `seed` draws the noise, as in stage 3.
        people: theirs, for anonymizers that need them; UserError if their file lacks the video.
        view_size: height and width of what comes out, at stage 3's crop; 0: frames as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        video: Path,
        people: PersonBoxes | None = None,
        seed: int = 0,
        view_size: int = 0,
    ):
        self.network, self.device, self.video, self.people = network, device, video, people
        self.seed, self.view_size = seed, view_size
        if people:
            people.require([video])

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, first: int) -> np.ndarray:
        """uint8 (N,H,W,3) RGB, frames `first` and on -> the same shape, or height and width of
        the view."""
        numbers, boxes = range(first, first + len(frames)), None
        if self.people:
            found = self.people.of_frames(self.video, numbers, frames)
            if self.view_size:
                found = [transform_boxes(own, frames.shape[1:3], self.view_size) for own in found]
            boxes = [torch.as_tensor(own, dtype=torch.float32) for own in found]
        if self.view_size:
            pixels = evaluation_transform(frames, self.view_size).to(self.device)  # (N, 3, S, S)
        else:
            pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2) / 255
        noise = noise_keys(self.seed, self.video, numbers)
        output = apply_anonymizer(self.network, pixels, boxes, noise)
        return (output * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)


def prepared(
    network: nn.Module, device: torch.device, tile: int = 0, precision: str = "fp32"
) -> nn.Module:
    """f_A of `load_anonymizer` by `prepare_anonymizer`; frames larger than `tile` (0: none) by
    `Tiled`. What narrows an output gets whole frames and adds its noise once."""
    if tile and tile <= 2 * OVERLAP:
        raise UserError(f"--tile must be 0 or more than {2 * OVERLAP} pixels, not {tile}")
    network = prepare_anonymizer(network, device, precision)
    if not tile or network.requires_boxes:
        return network
    narrow = next((m for m in network.modules() if isinstance(m, NarrowOutput)), None)
    if narrow is None:
        return Tiled(network, tile)
    narrow.network = Tiled(narrow.network, tile)
    return network


class Tiled(nn.Module):
    """Frames larger than `tile` pixels pass the network in tiles, to bound the memory.

    They cross-fade over their overlap, where both have seen the surroundings.
    """

    requires_boxes = False

    def __init__(self, network: nn.Module, tile: int):
        super().__init__()
        self.network, self.tile = network, tile

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        if max(height, width) <= self.tile:
            return self.network(frames)
        total, weight = None, torch.zeros(height, width, device=frames.device)
        for top, rows in tile_starts(height, self.tile):
            for left, columns in tile_starts(width, self.tile):
                part = (..., slice(top, top + rows), slice(left, left + columns))
                ramp = _ramp(rows, frames.device)[:, None] * _ramp(columns, frames.device)
                output = self.network(frames[part]) * ramp
                if total is None:
                    total = output.new_zeros(*output.shape[:2], height, width)
                total[part] += output
                weight[part[1:]] += ramp
        return total / weight


def tile_starts(length: int, tile: int) -> list[tuple[int, int]]:
    """(start, size) of tiles that cover an axis; neighbours overlap by OVERLAP pixels or more."""
    if length <= tile:
        return [(0, length)]
    n_tiles = -(-(length - OVERLAP) // (tile - OVERLAP))
    # multiples of 8: networks that halve the resolution three times see one grid in all tiles
    starts = [(length - tile) * i // (n_tiles - 1) // 8 * 8 for i in range(n_tiles)]
    return [(start, min(tile + 7, length - start)) for start in starts]


def _ramp(length: int, device: torch.device) -> Tensor:
    """Weights that rise over the overlap, hold 1 and fall; never 0."""
    places = torch.arange(length, device=device) + 1
    return torch.minimum(places, places.flip(0)).clamp(max=OVERLAP) / OVERLAP
