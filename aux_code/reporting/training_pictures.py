"""What f_A made of the same pictures after each epoch of its training (paper, Figs. 4 and 11), from
TensorBoard."""

import io
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

TAG = "raw above anonymized"
"""Under which train_anonymizer.py writes a grid of two rows after each epoch."""
PADDING = 2
"""Pixels between the pictures of a grid of torchvision.utils.make_grid."""
MAX_EPOCHS_SHOWN = 6


class EpochPictures(NamedTuple):
    """One grid taken apart; both uint8 (n, H, W, 3)."""

    epoch: int
    raw: np.ndarray
    anonymized: np.ndarray


def training_pictures(log_folder: Path) -> list[EpochPictures]:
    """The grids of a run, by epoch; of an epoch that an interrupted run repeated, the last one.
    Empty without any."""
    if not any(log_folder.glob("events.out.tfevents.*")):
        return []
    # imported here because TensorBoard takes a second or two, which a report without training
    # pictures need not pay
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells where each file ends
    events = EventAccumulator(str(log_folder), size_guidance={"images": 0})
    events.Reload()
    if TAG not in events.Tags()["images"]:
        return []
    grids = {event.step: event.encoded_image_string for event in events.Images(TAG)}
    return [_take_apart(epoch, grid) for epoch, grid in sorted(grids.items())]


def spread_over(pictures: list[EpochPictures], n: int = MAX_EPOCHS_SHOWN) -> list[EpochPictures]:
    """At most n of them, the first and the last included, at even distances."""
    if len(pictures) <= n:
        return pictures
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, n).round().astype(int)]


def _take_apart(epoch: int, png: bytes) -> EpochPictures:
    grid = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = (grid.shape[0] - PADDING) // 2  # two rows of square pictures, each with its padding
    n = (grid.shape[1] - PADDING) // side
    cells = grid[PADDING:, PADDING:].reshape(2, side, n, side, 3).swapaxes(1, 2)
    raw, anonymized = cells[:, :, : side - PADDING, : side - PADDING]
    return EpochPictures(epoch, raw, anonymized)
