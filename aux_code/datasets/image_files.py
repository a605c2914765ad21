"""Images from disk as uint8 (H,W,3) RGB, also grey, CMYK, palette, 16-bit and EXIF-rotated ones."""

import re
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from aux_code.datasets.lists import is_hidden
from aux_code.datasets.unreadable import UnreadableMedia

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_IMAGE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_EXIF_ERRORS = (*_IMAGE_ERRORS, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what turns the picture upright."""


def read_image(path: Path | str) -> np.ndarray:
    """Decodes one image, upright, as uint8 (H,W,3) RGB.

    Transparency is dropped, CMYK and palette colours are converted, 16-bit grey is scaled to 8 bit.

    Raises:
        UnreadableMedia: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except _IMAGE_ERRORS as error:
        raise UnreadableMedia(path, f"not a readable image ({_first_line(error)})") from error


def _orientation(image: Image.Image) -> object:
    """EXIF's orientation or None; cameras write broken EXIF beside images that are whole."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _EXIF_ERRORS:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) // 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns about transparency given as bytes unless the alpha channel is spelled out
        # first.
        image = image.convert("RGBA")
    return image.convert("RGB")


def frame_files(folder: Path | str) -> list[Path]:
    """The image files of a folder of frames in frame order: by number where names hold one, so 1000
    follows 999.

    Raises:
        UnreadableMedia: the folder holds no image.
    """
    files = [
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path)
    ]
    if not files:
        raise UnreadableMedia(folder, "the folder holds no image files")
    return sorted(files, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key in which digits compare as numbers."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
