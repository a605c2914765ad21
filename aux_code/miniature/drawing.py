"""Draws the frames of a story: at twice the size, box-filtered down, lit, with sensor noise."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from aux_code.miniature.events import FRAME_SIZE, Actor, Blast, Lamp, Segment, Story, Vehicle
from aux_code.miniature.motions import MOTIONS
from aux_code.miniature.people import Box, Placement, paint_person
from aux_code.miniature.scenes import add_noise, background, draw_light, noise_bank, shade

SS = 2  # supersampling


class Frame(NamedTuple):
    """RGB uint8 (72, 96, 3) and the people's boxes (x0, y0, x1, y1), x1 and y1 exclusive."""

    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int]]


def clipped_box(box: Box, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The box in pixels of the frame, cut to it; None if nothing of it is inside."""
    x0, y0 = max(0, int(np.floor(box[0] / scale))), max(0, int(np.floor(box[1] / scale)))
    x1, y1 = min(size[0], int(np.ceil(box[2] / scale))), min(size[1], int(np.ceil(box[3] / scale)))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _segment_at(track: list[Segment], t: int) -> Segment:
    for segment in track:
        if t < segment.end:
            return segment
    return track[-1]


def draw_shadow(
    floor: Image.Image, draw: ImageDraw.ImageDraw, x: float, y: float, half: tuple[float, float]
) -> None:
    """A dark ellipse on the floor, in the colour of the empty scene `floor` there."""
    px = min(max(int(x), 0), floor.width - 1), min(max(int(y), 0), floor.height - 1)
    box = (x - half[0], y - half[1], x + half[0], y + half[1])
    draw.ellipse(box, fill=shade(floor.getpixel(px), 0.78))


def _draw_actor(floor: Image.Image, draw: ImageDraw.ImageDraw, actor: Actor, t: int) -> Box:
    segment = _segment_at(actor.track, t)
    way = min(1.0, max(0.0, (t - segment.start) / max(1e-6, segment.end - segment.start)))
    x = segment.x0 + (segment.x1 - segment.x0) * way
    pose = MOTIONS[segment.motion](t - segment.start, actor.phase)
    half = (actor.height * 0.16 * SS, actor.height * 0.04 * SS)
    draw_shadow(floor, draw, x * SS, actor.y * SS, half)
    place = Placement(x * SS, actor.y * SS, actor.height * SS, segment.facing, segment.view)
    return paint_person(draw, actor.look, place, pose)


def _vehicle_x(vehicle: Vehicle, t: int) -> float | None:
    frames, xs = zip(*vehicle.path)
    return None if not frames[0] <= t <= frames[-1] else float(np.interp(t, frames, xs))


_BODY = (
    (0.0, 0.15), (0.02, 0.55), (0.2, 0.58), (0.32, 1.0), (0.7, 1.0), (0.84, 0.58),
    (1.0, 0.5), (1.0, 0.15),
)  # fmt: skip
_GLASS = ((0.25, 0.6), (0.34, 0.92), (0.68, 0.92), (0.78, 0.6))
"""Outlines of a car: x in lengths, y in heights above the road."""


def _draw_vehicle(floor: Image.Image, draw: ImageDraw.ImageDraw, vehicle: Vehicle, t: int) -> None:
    x = _vehicle_x(vehicle, t)
    if x is None or not -30 < x < FRAME_SIZE[0] + 30:
        return
    length, y, x = vehicle.length * SS, vehicle.y * SS, x * SS
    h, x0 = length * 0.40, x - length / 2
    draw_shadow(floor, draw, x, y, (length * 0.52, length * 0.07))
    for outline, tone in ((_BODY, 1.0), (_GLASS, 0.45)):
        corners = [(x0 + length * u, y - h * v) for u, v in outline]
        draw.polygon(corners, fill=shade(vehicle.colour, tone))
    r = length * 0.085
    for cx in (x0 + length * 0.2, x0 + length * 0.8):
        draw.ellipse((cx - r, y - r * 1.6, cx + r, y + r * 0.4), fill=(34, 34, 36))


def _draw_blast(draw: ImageDraw.ImageDraw, blast: Blast, t: int) -> None:
    """A ball of fire that grows in 6 frames, then rising grey smoke that thins out."""
    age = t - blast.start
    if not 0 <= age < blast.end - blast.start:
        return
    rng = np.random.default_rng([int(blast.x * 1000), 5])
    grown, faded = min(1.0, (age + 1) / 6) ** 0.6, age / (blast.end - blast.start)
    for dx, dy, size, grey in rng.uniform(-1, 1, (12, 4)):
        r = blast.radius * (0.42 + 0.16 * size) * grown * (1 + 0.6 * faded) * SS
        x = (blast.x + dx * blast.radius * 0.75 * grown + 1.2 * np.sin(age * 0.7 + 5 * size)) * SS
        y = (blast.y + dy * blast.radius * 0.6 * grown - 9 * faded - 3) * SS
        fire, smoke = max(0.0, 1 - age / (10 + 6 * blast.tint)), 92 + 40 * grey
        flame = (250, 190 + 30 * dx, 120 + 60 * blast.tint)
        colour = tuple(int(smoke + fire * (c - smoke)) for c in flame)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, int(215 * (1 - faded) ** 0.8)))


def _draw_lamp(draw: ImageDraw.ImageDraw, lamp: Lamp, t: int) -> None:
    if np.random.default_rng([lamp.key, t // lamp.period]).random() < 0.6:
        x, y = lamp.x * SS, lamp.y * SS
        for factor, alpha in ((2.2, 60), (1.5, 90), (1.0, 230)):
            r = lamp.radius * factor * SS
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 238, 205, alpha))


def _draw_frame(story: Story, scene: Image.Image, canvas: Image.Image, t: int) -> list[Box]:
    """Draws what moves at time t on a copy of the empty scene; boxes are in its pixels."""
    draw, boxes = ImageDraw.Draw(canvas), []
    soft = ImageDraw.Draw(canvas, "RGBA") if story.blasts or story.lamps else None
    for lamp in story.lamps:
        _draw_lamp(soft, lamp, t)
    for thing in sorted(story.actors + story.vehicles, key=lambda thing: thing.y):
        if isinstance(thing, Actor):
            boxes.append(_draw_actor(scene, draw, thing, t))
        else:
            _draw_vehicle(scene, draw, thing, t)
    for blast in story.blasts:
        _draw_blast(soft, blast, t)
    return boxes


def _flash(story: Story, t: int) -> float:
    """Brightness of the whole frame: a blast lights it up for a few frames."""
    return 1.0 + sum(0.25 * np.exp(-(t - b.start) / 3.0) for b in story.blasts if t >= b.start)


def draw_frames(
    story: Story, n_frames: int, camera: int, seed: int, rng: np.random.Generator
) -> Iterator[Frame]:
    """The frames of a video in order; `seed` is the benchmark's, `rng` the video's own."""
    w, h = FRAME_SIZE
    cut_x, cut_y = rng.uniform(0, 24, 2)  # the camera hangs a little differently each time
    seen = (cut_x, cut_y, 552 + cut_x, 408 + cut_y)
    scene = background(camera, seed).resize((w * SS, h * SS), Image.Resampling.BOX, box=seen)
    light, bank, drift = draw_light(rng), noise_bank(seed, FRAME_SIZE), rng.uniform(0, 6.28)
    sigma = float(rng.uniform(3, 5))
    for t in range(n_frames):
        canvas = scene.copy()
        boxes = [clipped_box(box, SS, FRAME_SIZE) for box in _draw_frame(story, scene, canvas, t)]
        brightness = (1 + 0.02 * np.sin(t / 40 + drift)) * _flash(story, t)
        pixels = light.apply(np.asarray(canvas.reduce(SS)), brightness)
        yield Frame(add_noise(pixels, bank, rng, sigma), [box for box in boxes if box is not None])
