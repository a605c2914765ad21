"""What a person looks like: the attributes, and all that varies beside them."""

from dataclasses import dataclass

import numpy as np

from aux_code.miniature.scenes import shade

RGB = tuple[int, int, int]
FRONT_FACES = ("front", "cap", "mask", "hand")
PARTIAL_FACES = ("profile", "cap", "mask", "hand")

# Natural tones from light to dark; a class takes one half of the range, lighting makes the halves
# overlap in the frame.
_SKIN = np.array([
    (236, 204, 180), (226, 184, 154), (208, 162, 128), (178, 128, 94), (136, 92, 66), (98, 64, 46),
    (66, 44, 34),
], float)  # fmt: skip
_HAIR = ((30, 26, 24), (52, 38, 30), (88, 60, 40), (128, 96, 60), (176, 144, 92), (120, 116, 112))


_SWIMWEAR = (
    (40, 70, 150), (30, 120, 90), (150, 40, 60), (30, 30, 36), (60, 140, 170), (120, 60, 140),
    (210, 210, 60),
)  # fmt: skip
_BALLS = ((222, 120, 44), (236, 232, 224), (214, 210, 62), (170, 40, 48), (36, 34, 38))


@dataclass(frozen=True)
class Look:
    """One person's appearance; `face` is front, profile, cap, mask, hand or back."""

    skin: RGB
    hair: RGB
    top: RGB
    bottom: RGB
    shoes: RGB
    accessory: RGB
    feminine: bool
    semi_nude: bool
    long_hair: bool
    bottom_kind: str
    sleeves: str
    face: str
    build: float
    bag: bool
    ball: RGB | None


def skin_tone(rng: np.random.Generator, coloured: bool) -> RGB:
    """A tone from the light half (0 to 0.46) or the dark half (0.54 to 1) of the natural range."""
    place = (rng.uniform(0.54, 1.0) if coloured else rng.uniform(0.0, 0.46)) * (len(_SKIN) - 1)
    low = min(int(place), len(_SKIN) - 2)
    tone = _SKIN[low] + (_SKIN[low + 1] - _SKIN[low]) * (place - low) + rng.normal(0, 4, 3)
    return tuple(int(v) for v in np.clip(tone, 0, 255))


def cloth_colour(rng: np.random.Generator) -> RGB:
    """Mostly muted; one in six is in the range of skin, so that bare skin is not just a colour."""
    if rng.random() < 0.16:
        return skin_tone(rng, bool(rng.random() < 0.5))
    grey = rng.uniform(30, 215)
    return tuple(int(v) for v in np.clip(grey + rng.normal(0, 32, 3), 8, 245))


def _swimwear_colour(rng: np.random.Generator) -> RGB:
    """A strong colour, unlike skin."""
    colour = np.array(_SWIMWEAR[int(rng.integers(7))]) + rng.normal(0, 14, 3)
    return tuple(int(v) for v in np.clip(colour, 0, 255))


def _feminine_cues(rng: np.random.Generator) -> tuple[bool, str]:
    """Long hair or a skirt or dress, at least one of them."""
    long_hair = bool(rng.random() < 0.72)
    skirts = 0.45 if long_hair else 1.0
    if rng.random() < skirts:
        return long_hair, ("skirt", "dress")[int(rng.integers(2))]
    return long_hair, ("trousers", "trousers", "shorts")[int(rng.integers(3))]


def _clothes(
    rng: np.random.Generator, skin: RGB, feminine: bool, semi_nude: bool
) -> tuple[RGB, RGB, bool]:
    """Colours of top and bottom, and whether the legs are bare because of swimwear.

    Half of the half nude men wear trousers or shorts below a bare trunk; one dressed person in
    eight wears a top of a tone lighter or darker than their own skin.
    """
    if semi_nude:
        swimwear = feminine or bool(rng.random() < 0.5)
        return skin, _swimwear_colour(rng) if swimwear else cloth_colour(rng), swimwear
    step = rng.uniform(22, 48) * (1 if sum(skin) < 390 else -1)
    near_skin = tuple(int(v) for v in np.clip(np.array(skin) + step + rng.normal(0, 12, 3), 0, 255))
    return near_skin if rng.random() < 0.12 else cloth_colour(rng), cloth_colour(rng), False


def draw_look(
    rng: np.random.Generator, coloured: bool, feminine: bool, semi_nude: bool, face: str,
    sporty: bool,
) -> Look:  # fmt: skip
    """A random person with these attributes; hair is long or short with exceptions.

    All colours of a person share a random exposure, as if more or less in the shade.
    """
    if feminine:
        long_hair, bottom_kind = _feminine_cues(rng)
    else:
        long_hair = bool(rng.random() < 0.08)
        bottom_kind = ("trousers", "trousers", "shorts")[int(rng.integers(3))]
    exposure = float(np.exp(rng.normal(0, 0.12)))
    skin = shade(skin_tone(rng, coloured), exposure)
    top, bottom, swimwear = _clothes(rng, skin, feminine, semi_nude)
    ball = shade(_BALLS[int(rng.integers(len(_BALLS)))], exposure)
    return Look(
        skin=skin,
        hair=shade(_HAIR[int(rng.integers(len(_HAIR)))], exposure),
        top=top,
        bottom=bottom,
        shoes=tuple(int(v) for v in rng.integers(20, 90, 3)),
        accessory=cloth_colour(rng),
        feminine=feminine,
        semi_nude=semi_nude,
        long_hair=long_hair,
        bottom_kind="swimwear" if swimwear else bottom_kind,
        sleeves=("long", "short", "short", "none")[int(rng.integers(4))],
        face=face,
        build=float(rng.uniform(0.86, 1.2) * (0.93 if feminine else 1.05)),
        bag=bool(rng.random() < 0.15),
        ball=ball if sporty else None,
    )
