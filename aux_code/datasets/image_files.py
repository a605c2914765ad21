"""Images from disk as uint8 (H,W,3) RGB, also grey, CMYK, palette, 16-bit and EXIF-rotated ones."""

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from aux_code.datasets.media_files import IMAGE_SUFFIXES, files_of, natural_key
from aux_code.datasets.unreadable import UnreadableMedia

_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error)
_IMAGE_ERRORS += (Image.DecompressionBombError,)
_EXIF_ERRORS = (*_IMAGE_ERRORS, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> what turns the image upright."""


def read_image(path: Path | str) -> np.ndarray:
    """One image, upright, as uint8 (H,W,3) RGB; UnreadableMedia if missing, truncated or none.

    Transparency is dropped, 16-bit grey is scaled to 8 bit.
    """
    try:
        with Image.open(path) as image:
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except _IMAGE_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableMedia(path, f"not a readable image ({reason})") from error


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
        image = image.convert("RGBA")  # else Pillow warns about transparency given as bytes
    return image.convert("RGB")


def frame_files(folder: Path | str) -> list[Path]:
    """The images of a folder of frames, by number where names hold one; UnreadableMedia if none."""
    files = files_of(Path(folder), suffixes=IMAGE_SUFFIXES)
    if not files:
        raise UnreadableMedia(folder, "the folder holds no image files")
    return sorted(files, key=lambda path: natural_key(path.name))
