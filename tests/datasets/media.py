"""Tiny media files for the tests: every frame carries its number as 12 black or white blocks."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

N_BITS = 12
_ROWS, _COLUMNS = 3, 4


def painted_frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (H,W,3): the bits of `number` as a 3 x 4 grid of blocks, black or white."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(N_BITS):
        if number >> bit & 1:
            row, column = divmod(bit, _COLUMNS)
            rows = slice(row * height // _ROWS, (row + 1) * height // _ROWS)
            frame[rows, column * width // _COLUMNS : (column + 1) * width // _COLUMNS] = 255
    return frame


def painted_number(frame: np.ndarray) -> int:
    """The number that `painted_frame` put there, through compression."""
    height, width, _ = frame.shape
    number = 0
    for bit in range(N_BITS):
        row, column = divmod(bit, _COLUMNS)
        y, x = int((row + 0.5) * height / _ROWS), int((column + 0.5) * width / _COLUMNS)
        number |= int(frame[y, x].mean() > 127) << bit
    return number


def write_video(
    path: Path,
    n_frames: int,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> Path:
    """Writes painted frames; `times` are presentation times in 1/1000 s, else 25 fps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_odd = size[0] % 2 or size[1] % 2
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv444p" if is_odd else "yuv420p"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.codec_context.thread_count = 1
        if codec == "mpeg4":
            stream.bit_rate = 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(painted_frame(number, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate_mp4(path: Path, matrix: tuple[int, ...]) -> Path:
    """Writes a display matrix (a, b, c, d, in whole units) into an MP4 file in place."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    words = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    content[at : at + 36] = b"".join(word.to_bytes(4, "big", signed=True) for word in words)
    path.write_bytes(bytes(content))
    return path
