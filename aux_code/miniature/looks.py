"""What a person looks like: the attributes, and all that varies beside them."""

from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]
FRONT_FACES = ("front", "cap", "mask", "hand")
PARTIAL_FACES = ("profile", "cap", "mask", "hand")

# Natural tones from light to dark; a class takes one half of the range, lighting makes the halves overlap in the
# picture.
_SKIN = np.array(
    [(246, 214, 190), (232, 190, 160), (212, 166, 132), (178, 128, 94), (136, 92, 66), (98, 64, 46), (66, 44, 34)],
    float,
)
_HAIR = ((30, 26, 24), (52, 38, 30), (88, 60, 40), (128, 96, 60), (176, 144, 92), (120, 116, 112))


@dataclass(frozen=True)
class Look:
    """One person's appearance. Colours are RGB; `face` is front, profile, cap, mask, hand or back; `build` widens the
    body.
    """

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


def skin_tone(rng: np.random.Generator, coloured: bool) -> RGB:
    """A tone from the light half (0 to 0.46) or the dark half (0.54 to 1) of the natural range."""
    place = (rng.uniform(0.54, 1.0) if coloured else rng.uniform(0.0, 0.46)) * (len(_SKIN) - 1)
    low = min(int(place), len(_SKIN) - 2)
    tone = _SKIN[low] + (_SKIN[low + 1] - _SKIN[low]) * (place - low) + rng.normal(0, 4, 3)
    return tuple(int(v) for v in np.clip(tone, 0, 255))


def cloth_colour(rng: np.random.Generator) -> RGB:
    """Mostly muted clothes; one in six is in the range of skin (beige, brown), so that bare skin is not just a
    colour.
    """
    if rng.random() < 0.16:
        return skin_tone(rng, bool(rng.random() < 0.5))
    grey = rng.uniform(30, 215)
    return tuple(int(v) for v in np.clip(grey + rng.normal(0, 32, 3), 8, 245))


def _feminine_cues(rng: np.random.Generator) -> tuple[bool, str]:
    """Long hair or a skirt or dress, at least one of them."""
    long_hair = bool(rng.random() < 0.72)
    skirts = 0.45 if long_hair else 1.0
    if rng.random() < skirts:
        return long_hair, ("skirt", "dress")[int(rng.integers(2))]
    return long_hair, ("trousers", "trousers", "shorts")[int(rng.integers(3))]


def draw_look(rng: np.random.Generator, coloured: bool, feminine: bool, semi_nude: bool, face: str) -> Look:
    """A random person with these attributes. A few masculine ones have long hair and a few feminine ones short."""
    if feminine:
        long_hair, bottom_kind = _feminine_cues(rng)
    else:
        long_hair, bottom_kind = bool(rng.random() < 0.08), ("trousers", "trousers", "shorts")[int(rng.integers(3))]
    return Look(
        skin=skin_tone(rng, coloured),
        hair=_HAIR[int(rng.integers(len(_HAIR)))],
        top=cloth_colour(rng),
        bottom=cloth_colour(rng),
        shoes=tuple(int(v) for v in rng.integers(20, 90, 3)),
        accessory=cloth_colour(rng),
        feminine=feminine,
        semi_nude=semi_nude,
        long_hair=long_hair,
        bottom_kind=bottom_kind,
        sleeves=("long", "short", "short", "none")[int(rng.integers(4))],
        face=face,
        build=float(rng.uniform(0.86, 1.2) * (0.93 if feminine else 1.05)),
        bag=bool(rng.random() < 0.15),
    )
