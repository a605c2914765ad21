"""An anonymizer on frames of any size: whole, or in overlapping tiles whose seams do not show."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer
from aux_code.model_loaders import apply_anonymizer
from aux_code.models.person_boxes import PersonBoxes

OVERLAP = 64


class FrameAnonymizer:
    """uint8 frames -> anonymized uint8 frames, by f_A as `load_anonymizer` gives it.

    `tile`: height and width of the tiles for larger frames, in pixels; 0: always whole. `people`:
    of a video, for anonymizers that need them; UserError if its boxes file does not name the video.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        tile: int = 0,
        people: tuple[PersonBoxes, Path] | None = None,
        precision: str = "fp32",
    ):
        if tile and tile <= 2 * OVERLAP:
            raise UserError(f"--tile must be 0 or more than {2 * OVERLAP} pixels, not {tile}")
        self.network = prepare_anonymizer(network, device, precision)
        self.device, self.tile, self.people = device, tile, people
        if people:
            people[0].require([people[1]])

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, first: int) -> np.ndarray:
        """uint8 (N,H,W,3) RGB, frames `first` and on of the video -> the same shape."""
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)  # (N, 3, H, W)
        pixels, boxes = pixels.float() / 255, None
        if self.people:
            found, video = self.people
            boxes = found.of_frames(video, range(first, first + len(frames)), frames)
            boxes = [torch.from_numpy(own) for own in boxes]
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
