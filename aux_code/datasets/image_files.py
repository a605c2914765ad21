"""Images from disk as uint8 (H,W,3) RGB: grey, CMYK, palette, 16-bit and EXIF-rotated ones included."""

import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aux_code.datasets.unreadable import UnreadableMedia

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: Path | str) -> np.ndarray:
    """Decodes one image, upright, as uint8 (H,W,3) RGB.

    Transparency is dropped, CMYK and palette colours are converted, 16-bit grey is scaled to 8 bit.

    Raises:
        UnreadableMedia: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except _IMAGE_ERRORS as error:
        raise UnreadableMedia(path, f"not a readable image ({_first_line(error)})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) // 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns about transparency given as bytes unless the alpha channel is spelled out first.
        image = image.convert("RGBA")
    return image.convert("RGB")


def frame_files(folder: Path | str) -> list[Path]:
    """The image files of a folder of frames in frame order: by number where names hold one, so 1000 follows 999.

    Raises:
        UnreadableMedia: the folder holds no image.
    """
    files = [path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UnreadableMedia(folder, "the folder holds no image files")
    return sorted(files, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key in which digits compare as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
