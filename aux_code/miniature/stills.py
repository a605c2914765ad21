"""Composes a VISPR-like still that shows exactly the planned attributes."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aux_code.miniature.drawing import SS, clipped_box, draw_shadow
from aux_code.miniature.looks import PARTIAL_FACES, Look, cloth_colour, draw_look
from aux_code.miniature.motions import MOTIONS, Pose
from aux_code.miniature.people import Box, Placement, paint_person
from aux_code.miniature.plan import StillPlan
from aux_code.miniature.scenes import CAMERA_SIZE, add_noise, background, draw_light, noise_bank

STILL_MOTIONS = ("stand", "stand", "stand", "walk", "walk", "wave", "run", "crouch", "strike")


class Still(NamedTuple):
    """RGB uint8 (H, W, 3) and the boxes of the people, x1 and y1 exclusive."""

    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int]]


class Figure(NamedTuple):
    """One person of a still: fractions of width and height, height of the smaller side."""

    x: float
    y: float
    height: float
    motion: str
    hold: int  # +1 holds the hand of the one on the right, -1 on the left, 0 of none


def arrange(rng: np.random.Generator, attributes: tuple[bool, ...]) -> list[Figure]:
    """Places a pair hand in hand (a64), a group of 3 or 4 (a65), both, or some strangers."""
    complete, partial, pair, group = attributes[2], attributes[3], attributes[5], attributes[6]
    if pair or group:
        n = 3 + int(rng.integers(2)) if group else 2
        height = float(rng.uniform(0.40, 0.58) if group else rng.uniform(0.42, 0.66))
        first = int(rng.integers(n - 1)) if pair else -1
        spans = [(0.30, 0.36) if pair and i == first + 1 else (0.22, 0.32) for i in range(1, n)]
        xs = np.cumsum([0.0] + [float(rng.uniform(*span)) * height for span in spans])
        xs = xs - xs.mean() + rng.uniform(0.44, 0.56)
        y = float(rng.uniform(0.74, 0.86))
        holds = [1 if i == first else -1 if pair and i == first + 1 else 0 for i in range(n)]
        ys = [y if hold else y + float(rng.uniform(-0.02, 0.03)) for hold in holds]
        heights = [height * float(rng.uniform(0.93, 1.05)) for _ in xs]
        return [Figure(float(xs[i]), ys[i], heights[i], "stand", holds[i]) for i in range(n)]
    n = 2 if complete and partial else int(rng.choice((1, 2, 3), p=(0.52, 0.30, 0.18)))
    n = 0 if not any(attributes) and rng.random() < 0.15 else n
    if n == 1:
        place = [float(rng.uniform(*span)) for span in ((0.33, 0.67), (0.78, 0.88), (0.48, 0.74))]
        return [Figure(*place, _motion(rng), 0)]
    slots = {0: (), 2: (0.32, 0.68), 3: (0.25, 0.5, 0.75)}[n]
    spread = 0.07 if n == 2 else 0.04
    spans = ((-spread, spread), (0.68, 0.88), (0.40, 0.62))
    drawn = [([float(rng.uniform(*span)) for span in spans], _motion(rng)) for _ in slots]
    return [Figure(x + dx, y, h, motion, 0) for x, ((dx, y, h), motion) in zip(slots, drawn)]


def _motion(rng: np.random.Generator) -> str:
    return STILL_MOTIONS[int(rng.integers(len(STILL_MOTIONS)))]


def choose_faces(rng: np.random.Generator, n: int, complete: bool, partial: bool) -> list[str]:
    """Faces of n people: what is planned, the others any planned kind or seen from behind."""
    planned = [kind for kind, wanted in (("complete", complete), ("partial", partial)) if wanted]
    n_kinds = len(planned) + 1
    free = [[*planned, "back"][int(rng.integers(n_kinds))] for _ in range(n - len(planned))]
    kinds = planned + free
    names = {"complete": ("front",), "partial": PARTIAL_FACES, "back": ("back",)}
    options = [names[kinds[i]] for i in rng.permutation(len(kinds))]
    return [faces[int(rng.integers(len(faces)))] for faces in options][:n]


def _looks(rng: np.random.Generator, plan: StillPlan, n: int) -> list[Look]:
    """All share the skin class; one is surely feminine, half nude or sporty if planned, others may
    be."""
    coloured, feminine, complete, partial, nude, *_, sporty = plan.attributes
    faces = choose_faces(rng, n, complete, partial)
    first, second, third = (int(v) for v in rng.integers(0, max(1, n), 3))
    looks = []
    for i in range(n):
        is_feminine = feminine and (i == first or rng.random() < 0.8)
        is_nude = nude and (i == second or rng.random() < 0.5)
        is_sporty = sporty and (i == third or rng.random() < 0.3)
        looks.append(draw_look(rng, coloured, is_feminine, is_nude, faces[i], is_sporty))
    return looks


def _pose(figure: Figure, rng: np.random.Generator) -> Pose:
    pose = MOTIONS[figure.motion](float(rng.uniform(0, 40)), float(rng.uniform(0, 6.28)))
    if not figure.hold:
        return pose
    reach = (0.62 + 0.1 * float(rng.uniform(-1, 1)), 0.75)
    rest = (0.1, 0.12)
    return Pose((rest, reach) if figure.hold > 0 else (reach, rest), pose.legs, planar=True)


def _canvas(plan: StillPlan, seed: int, rng: np.random.Generator) -> Image.Image:
    """A random piece of the camera's scene."""
    w, h = plan.size
    zoom = float(rng.uniform(0.62, 1.0)) * min(CAMERA_SIZE[0] / w, CAMERA_SIZE[1] / h)
    x, y = rng.uniform(0, CAMERA_SIZE[0] - w * zoom), rng.uniform(0, CAMERA_SIZE[1] - h * zoom)
    image = background(plan.camera, seed).resize(
        (w * SS, h * SS), Image.Resampling.BILINEAR, box=(x, y, x + w * zoom, y + h * zoom)
    )
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _paint_people(canvas: Image.Image, plan: StillPlan, rng: np.random.Generator) -> list[Box]:
    figures = arrange(rng, plan.attributes)
    looks = _looks(rng, plan, len(figures))
    floor, draw, boxes = canvas.copy(), ImageDraw.Draw(canvas), []
    w, h = canvas.size
    for figure, look in sorted(zip(figures, looks), key=lambda pair: pair[0].y):
        height = figure.height * min(w, h)
        view = {"back": "back", "profile": "side"}.get(look.face, "front")
        facing = figure.hold or int(rng.integers(2)) * 2 - 1
        place = Placement(figure.x * w, figure.y * h, height, facing, view)
        draw_shadow(floor, draw, place.x, place.y, (height * 0.16, height * 0.035))
        boxes.append(paint_person(draw, look, place, _pose(figure, rng)))
    if rng.random() < 0.3:  # something stands in front of the legs
        x, y = float(rng.uniform(0.2, 0.7)) * w, float(rng.uniform(0.80, 0.88)) * h
        draw.rectangle((x, y, x + float(rng.uniform(0.1, 0.35)) * w, h), fill=cloth_colour(rng))
    return boxes


def render_still(plan: StillPlan, seed: int) -> Still:
    """The image, lit more variously than a video, often a little out of focus."""
    rng = np.random.default_rng([seed, 29, plan.index])
    canvas = _canvas(plan, seed, rng)
    boxes = [clipped_box(box, SS, plan.size) for box in _paint_people(canvas, plan, rng)]
    small = Image.fromarray(draw_light(rng, 2.1).apply(np.asarray(canvas.reduce(SS))))
    if rng.random() < 0.5:
        small = small.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.1))))
    sigma = float(rng.uniform(2, 7))
    pixels = add_noise(np.asarray(small), noise_bank(seed, (128, 128)), rng, sigma)
    return Still(pixels, [box for box in boxes if box is not None])
