"""An anonymizer on frames of any size: whole, or in overlapping tiles whose seams do not show."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer
from aux_code.model_loaders import apply_anonymizer
from aux_code.models.person_boxes import PersonBoxes

OVERLAP = 64

BoxFinder = Callable[[np.ndarray, int], list[Tensor]]
"""(uint8 frames (N,H,W,3), number of the first one) -> (K,4) person boxes per frame."""


class FrameAnonymizer:
    """uint8 frames -> anonymized uint8 frames.

    Args:
        network: f_A as `load_anonymizer` gives it.
        device: where it runs.
        tile: height and width of the tiles for larger frames, in pixels; 0: always whole.
        boxes: finds the people for anonymizers that need them, else None.
        precision: fp32 or bf16, in which f_A computes.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        tile: int = 0,
        boxes: BoxFinder | None = None,
        precision: str = "fp32",
    ):
        if tile and tile <= 2 * OVERLAP:
            raise UserError(f"--tile must be 0 or more than {2 * OVERLAP} pixels, not {tile}")
        self.network = prepare_anonymizer(network, device, precision)
        self.device, self.tile, self.boxes = device, tile, boxes

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, first: int) -> np.ndarray:
        """uint8 (N,H,W,3) RGB, frames `first` and on of the video -> the same shape."""
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)  # (N, 3, H, W)
        pixels = pixels.float() / 255
        boxes = self.boxes(frames, first) if self.boxes else None
        if boxes is not None or not self.tile or max(pixels.shape[-2:]) <= self.tile:
            output = apply_anonymizer(self.network, pixels, boxes)
        else:
            output = self._in_tiles(pixels)
        output = (output.clamp(0, 1) * 255).round().byte()
        return output.permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)

    def _in_tiles(self, pixels: Tensor) -> Tensor:
        """Tiles cross-fade over their overlap, where both have seen the surroundings."""
        height, width = pixels.shape[-2:]
        total, weight = torch.zeros_like(pixels), torch.zeros(height, width, device=self.device)
        for top, rows in tile_starts(height, self.tile):
            for left, columns in tile_starts(width, self.tile):
                part = (..., slice(top, top + rows), slice(left, left + columns))
                ramp = _ramp(rows, self.device)[:, None] * _ramp(columns, self.device)
                total[part] += self.network(pixels[part]) * ramp
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


def boxes_for(people: PersonBoxes, source: Path) -> BoxFinder:
    """A finder of the people in one video.

    Raises:
        UserError: the boxes file does not name the source.
    """
    people.require([source])

    def find(frames: np.ndarray, first: int) -> list[Tensor]:
        boxes = people.of_frames(source, range(first, first + len(frames)), frames)
        return [torch.from_numpy(of_frame) for of_frame in boxes]

    return find
