"""Tiny videos whose frames tell their number, made where a test needs them."""

from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.datasets import media

HEIGHT, WIDTH = 48, 64
GREY_STEP = 3


def painted(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frame `index`: red tells the number, green grows to the right, blue downwards."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = 20 + GREY_STEP * index % 210
    frame[..., 1] = np.linspace(0, 200, width, dtype=np.uint8)
    frame[..., 2] = np.linspace(200, 0, height, dtype=np.uint8)[:, None]
    return frame


write_video = partial(media.write_video, paint=painted, options={"b": "4M"})


def write_sound(path: Path) -> Path:
    """A file with sound and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = np.zeros((1, 4096), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
