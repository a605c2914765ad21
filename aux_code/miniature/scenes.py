"""Eight fixed surveillance cameras: greyish, textured backgrounds, and the light on them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
CAMERA_SIZE = (576, 432)  # pixels a background is drawn at, 6 x the size of a miniature video


@dataclass(frozen=True)
class Camera:
    """One camera; positions are fractions of the frame, things (kind, x0, y0, x1, y1, colour)."""

    name: str
    horizon: float
    wall: RGB
    floor: RGB
    vanishing_x: float
    n_lines: int
    things: tuple[tuple[str, float, float, float, float, RGB], ...]


CAMERAS = (
    Camera("street", 0.56, (148, 152, 158), (108, 108, 112), 0.62, 9, (
        ("window", 0.04, 0.1, 0.17, 0.32, (88, 96, 108)),
        ("window", 0.24, 0.1, 0.37, 0.32, (92, 98, 108)),
        ("door", 0.46, 0.2, 0.57, 0.57, (98, 82, 72)),
        ("window", 0.68, 0.1, 0.82, 0.34, (84, 92, 104)),
        ("pole", 0.9, 0.02, 0.92, 0.66, (70, 70, 74)),
    )),
    Camera("corridor", 0.5, (166, 160, 148), (126, 120, 112), 0.5, 7, (
        ("side", 0.0, 0.0, 0.22, 1.0, (146, 140, 130)),
        ("side", 0.78, 0.0, 1.0, 1.0, (140, 136, 128)),
        ("door", 0.42, 0.24, 0.58, 0.51, (112, 104, 96)),
        ("sign", 0.44, 0.1, 0.56, 0.16, (118, 138, 124)),
    )),
    Camera("shop", 0.52, (158, 156, 150), (150, 146, 138), 0.4, 11, (
        ("shelf", 0.02, 0.14, 0.3, 0.6, (122, 112, 100)),
        ("shelf", 0.66, 0.12, 0.97, 0.58, (112, 116, 122)),
        ("door", 0.38, 0.16, 0.54, 0.53, (132, 146, 152)),
        ("pillar", 0.58, 0.0, 0.63, 0.62, (174, 170, 164)),
    )),
    Camera("parking", 0.48, (124, 130, 130), (94, 96, 98), 0.3, 12, (
        ("car", 0.05, 0.4, 0.27, 0.54, (96, 102, 116)),
        ("car", 0.34, 0.4, 0.56, 0.54, (126, 112, 108)),
        ("car", 0.72, 0.4, 0.94, 0.54, (112, 116, 112)),
        ("pole", 0.64, 0.0, 0.66, 0.58, (82, 84, 84)),
        ("window", 0.06, 0.06, 0.94, 0.2, (102, 108, 110)),
    )),
    Camera("station", 0.54, (138, 144, 148), (130, 130, 126), 0.75, 8, (
        ("pillar", 0.12, 0.0, 0.19, 0.66, (158, 158, 154)),
        ("pillar", 0.8, 0.0, 0.87, 0.66, (154, 156, 154)),
        ("sign", 0.34, 0.12, 0.62, 0.2, (86, 100, 126)),
        ("shelf", 0.36, 0.42, 0.62, 0.56, (116, 104, 92)),
    )),
    Camera("yard", 0.46, (150, 156, 150), (116, 122, 106), 0.5, 6, (
        ("bush", 0.02, 0.28, 0.22, 0.56, (86, 104, 78)),
        ("bush", 0.76, 0.26, 0.99, 0.56, (92, 106, 82)),
        ("window", 0.32, 0.08, 0.44, 0.28, (96, 102, 108)),
        ("door", 0.52, 0.14, 0.62, 0.47, (116, 92, 78)),
    )),
    Camera("lobby", 0.55, (174, 166, 152), (142, 132, 120), 0.55, 10, (
        ("window", 0.05, 0.08, 0.34, 0.44, (150, 164, 172)),
        ("shelf", 0.6, 0.36, 0.92, 0.62, (122, 98, 82)),
        ("sign", 0.64, 0.12, 0.86, 0.2, (152, 132, 104)),
        ("pillar", 0.44, 0.0, 0.49, 0.6, (188, 180, 168)),
    )),
    Camera("alley", 0.44, (118, 108, 104), (102, 98, 94), 0.48, 5, (
        ("side", 0.0, 0.0, 0.16, 1.0, (108, 98, 92)), ("side", 0.86, 0.0, 1.0, 1.0, (98, 92, 90)),
        ("shelf", 0.2, 0.36, 0.36, 0.56, (78, 94, 88)),
        ("window", 0.58, 0.1, 0.7, 0.28, (128, 126, 104)),
        ("pole", 0.78, 0.0, 0.795, 0.6, (84, 82, 82)),
    )),
)  # fmt: skip


@lru_cache(maxsize=4096)
def shade(colour: RGB, factor: float) -> RGB:
    """The colour times `factor`, kept in 0..255."""
    return tuple(max(0, min(255, int(c * factor))) for c in colour)


def _draw_thing(draw: ImageDraw.ImageDraw, kind: str, box: tuple[float, ...], colour: RGB) -> None:
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    if kind == "bush":
        for i in range(7):
            cx, cy = x0 + w * (0.15 + 0.12 * i), y0 + h * (0.55 + 0.2 * ((i * 5) % 3 - 1))
            box = (cx - w * 0.2, cy - h * 0.4, cx + w * 0.2, cy + h * 0.4)
            draw.ellipse(box, fill=shade(colour, 0.85 + 0.05 * (i % 4)))
        return
    if kind == "car":
        draw.rounded_rectangle((x0, y0 + h * 0.35, x1, y1), h * 0.2, fill=colour)
        roof = ((0.2, 0.4), (0.32, 0.0), (0.72, 0.0), (0.85, 0.4))
        draw.polygon([(x0 + w * u, y0 + h * v) for u, v in roof], fill=shade(colour, 0.8))
        return
    if kind == "side":  # a side wall in perspective: the inner edge runs towards the horizon
        inner, outer = (x1, x0) if x0 <= 0 else (x0, x1)
        draw.polygon((outer, 0, inner, h * 0.16, inner, h * 0.60, outer, h * 0.98), fill=colour)
        return
    draw.rectangle(box, fill=colour, outline=shade(colour, 0.7), width=4)
    if kind == "window":
        draw.line((x0 + w / 2, y0, x0 + w / 2, y1), fill=shade(colour, 1.25), width=4)
        draw.line((x0, y0 + h / 2, x1, y0 + h / 2), fill=shade(colour, 1.25), width=4)
    elif kind == "shelf":
        for i in range(1, 4):
            draw.line((x0, y0 + h * i / 4, x1, y0 + h * i / 4), fill=shade(colour, 0.7), width=5)
        for i in range(1, 9):
            tone = shade(colour, 1.15 - 0.06 * (i % 4))
            draw.line((x0 + w * i / 9, y0, x0 + w * i / 9, y1), fill=tone, width=7)
    elif kind == "door":
        knob = (x1 - w * 0.2, y0 + h * 0.5, x1 - w * 0.1, y0 + h * 0.5 + w * 0.1)
        draw.ellipse(knob, fill=shade(colour, 1.4))


@lru_cache(maxsize=16)
def background(camera: int, seed: int) -> Image.Image:
    """The empty scene of camera 0..7, RGB at CAMERA_SIZE, textured by `seed`; shared: only read."""
    spec, (w, h) = CAMERAS[camera], CAMERA_SIZE
    image = Image.new("RGB", CAMERA_SIZE, spec.wall)
    draw = ImageDraw.Draw(image)
    top = int(spec.horizon * h)
    for y in range(h):
        wall, tone = y < top, 0.86 + 0.24 * (y - top) / (h - top)
        colour = shade(spec.wall, 0.92 + 0.16 * y / top) if wall else shade(spec.floor, tone)
        draw.line((0, y, w, y), fill=colour)
    vanishing = (spec.vanishing_x * w, top - 0.12 * h)
    for i in range(-spec.n_lines, 2 * spec.n_lines):  # floor joints run to the vanishing point
        x = w * (i + 0.5) / spec.n_lines
        fraction = (top - vanishing[1]) / (h - vanishing[1])
        joint = (vanishing[0] + (x - vanishing[0]) * fraction, top, x, h)
        draw.line(joint, fill=shade(spec.floor, 0.84), width=2)
    for i in range(1, 5):
        y = top + (h - top) * (i / 5) ** 1.8
        draw.line((0, y, w, y), fill=shade(spec.floor, 0.86), width=2)
    for kind, x0, y0, x1, y1, colour in spec.things:
        _draw_thing(draw, kind, (x0 * w, y0 * h, x1 * w, y1 * h), colour)
    return _textured(image, np.random.default_rng([seed, 7919, camera]))


def _textured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Adds dirt and grain at three sizes; the same for all channels, so it stays grey."""
    w, h = image.size
    grain = np.zeros((h, w), np.float32)
    for cell, strength in ((48, 7.0), (12, 5.0), (4, 5.0)):
        coarse = Image.fromarray(rng.normal(0, strength, (h // cell, w // cell)).astype(np.float32))
        grain += np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))
    pixels = np.asarray(image, np.float32) + grain[..., None]
    grainy = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return grainy.filter(ImageFilter.GaussianBlur(0.8))


@dataclass(frozen=True)
class Light:
    """Illumination: one gain for each of R, G, B, a gamma, and an offset in grey levels."""

    gains: tuple[float, float, float]
    gamma: float
    offset: float

    def apply(self, pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """uint8 (H, W, 3) under this light; `factor` is the momentary brightness."""
        grey = (np.arange(256) / 255.0) ** self.gamma * 255.0
        lit = np.empty_like(pixels)
        for channel, gain in enumerate(self.gains):
            table = np.clip(grey * (gain * factor) + self.offset, 0, 255).astype(np.uint8)
            lit[..., channel] = table[pixels[..., channel]]
        return lit


def draw_light(rng: np.random.Generator, strength: float = 1.0) -> Light:
    """A random light; `strength` 1 is the spread within one set of videos, stills have more."""
    brightness = float(np.exp(rng.normal(0.0, 0.10 * strength)))
    warm, green = rng.normal(0.0, 0.05 * strength), rng.normal(0.0, 0.015 * strength)
    gains = (brightness * (1 + warm), brightness * (1 + green), brightness * (1 - warm))
    gamma = float(np.exp(rng.normal(0.0, 0.08 * strength)))
    return Light(gains, gamma, float(rng.uniform(-4, 8) * strength))


@lru_cache(maxsize=4)
def noise_bank(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H + 64, W + 64, 3) int16 noise of deviation 16, of which each frame takes a window."""
    w, h = size
    return np.random.default_rng([seed, 104729]).normal(0, 16, (h + 64, w + 64, 3)).astype(np.int16)


def add_noise(
    pixels: np.ndarray, bank: np.ndarray, rng: np.random.Generator, sigma: float
) -> np.ndarray:
    """uint8 (H, W, 3) with sensor noise of `sigma` grey levels, rounded to sixteenths."""
    h, w, _ = pixels.shape
    y, x = rng.integers(0, 64, 2)
    noise = bank[y : y + h, x : x + w] * np.int16(round(sigma * 16)) >> 8
    return np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
