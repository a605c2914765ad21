"""Draws the frames of a story: twice the size of the video, box-filtered down, lit, with sensor
noise."""

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
    """RGB uint8 (72, 96, 3) and the boxes (x0, y0, x1, y1) of the people in it, x1 and y1
    exclusive."""

    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int]]


def clipped_box(box: Box, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The box in picture pixels, cut to the picture; None if nothing of it is inside."""
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
    draw.ellipse(
        (x - half[0], y - half[1], x + half[0], y + half[1]), fill=shade(floor.getpixel(px), 0.78)
    )


def _draw_actor(floor: Image.Image, draw: ImageDraw.ImageDraw, actor: Actor, t: int) -> Box:
    segment = _segment_at(actor.track, t)
    way = min(1.0, max(0.0, (t - segment.start) / max(1e-6, segment.end - segment.start)))
    x = segment.x0 + (segment.x1 - segment.x0) * way
    pose = MOTIONS[segment.motion](t - segment.start, actor.phase)
    draw_shadow(
        floor, draw, x * SS, actor.y * SS, (actor.height * 0.16 * SS, actor.height * 0.04 * SS)
    )
    place = Placement(x * SS, actor.y * SS, actor.height * SS, segment.facing, segment.view)
    return paint_person(draw, actor.look, place, pose)


def _vehicle_x(vehicle: Vehicle, t: int) -> float | None:
    frames, xs = zip(*vehicle.path)
    return None if not frames[0] <= t <= frames[-1] else float(np.interp(t, frames, xs))


def _draw_vehicle(floor: Image.Image, draw: ImageDraw.ImageDraw, vehicle: Vehicle, t: int) -> None:
    x = _vehicle_x(vehicle, t)
    if x is None or not -30 < x < FRAME_SIZE[0] + 30:
        return
    length, y, x = vehicle.length * SS, vehicle.y * SS, x * SS
    h, x0, x1 = length * 0.40, x - length / 2, x + length / 2
    draw_shadow(floor, draw, x, y, (length * 0.52, length * 0.07))
    draw.polygon(
        (
            x0,
            y - h * 0.15,
            x0 + length * 0.02,
            y - h * 0.55,
            x0 + length * 0.2,
            y - h * 0.58,
            x0 + length * 0.32,
            y - h,
            x0 + length * 0.7,
            y - h,
            x0 + length * 0.84,
            y - h * 0.58,
            x1,
            y - h * 0.5,
            x1,
            y - h * 0.15,
        ),
        fill=vehicle.colour,
    )
    glass = shade(vehicle.colour, 0.45)
    draw.polygon(
        (
            x0 + length * 0.25,
            y - h * 0.6,
            x0 + length * 0.34,
            y - h * 0.92,
            x0 + length * 0.68,
            y - h * 0.92,
            x0 + length * 0.78,
            y - h * 0.6,
        ),
        fill=glass,
    )
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
        fire = max(0.0, 1 - age / (10 + 6 * blast.tint))
        smoke = 92 + 40 * grey
        colour = tuple(
            int(smoke + fire * (c - smoke)) for c in (250, 190 + 30 * dx, 120 + 60 * blast.tint)
        )
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, int(215 * (1 - faded) ** 0.8)))


def _draw_lamp(draw: ImageDraw.ImageDraw, lamp: Lamp, t: int) -> None:
    on = np.random.default_rng([lamp.key, t // lamp.period]).random() < 0.6
    if on:
        for factor, alpha in ((2.2, 60), (1.5, 90), (1.0, 230)):
            r = lamp.radius * factor * SS
            draw.ellipse(
                (lamp.x * SS - r, lamp.y * SS - r, lamp.x * SS + r, lamp.y * SS + r),
                fill=(250, 238, 205, alpha),
            )


def _draw_frame(story: Story, scene: Image.Image, canvas: Image.Image, t: int) -> list[Box]:
    """Draws what moves at time t on `canvas`, a copy of the empty `scene`; returns the people's
    boxes in canvas pixels.
    """
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
    """Brightness of the whole picture: a blast lights it up for a few frames."""
    return 1.0 + sum(0.25 * np.exp(-(t - b.start) / 3.0) for b in story.blasts if t >= b.start)


def draw_frames(
    story: Story, n_frames: int, camera: int, seed: int, rng: np.random.Generator
) -> Iterator[Frame]:
    """The frames of a video, one after the other; `seed` is the benchmark's, `rng` the video's
    own."""
    w, h = FRAME_SIZE
    cut_x, cut_y = rng.uniform(0, 24, 2)  # the camera hangs a little differently each time
    scene = background(camera, seed).resize(
        (w * SS, h * SS), Image.Resampling.BOX, box=(cut_x, cut_y, 552 + cut_x, 408 + cut_y)
    )
    light, bank, drift = draw_light(rng), noise_bank(seed, FRAME_SIZE), rng.uniform(0, 6.28)
    sigma = float(rng.uniform(3, 5))
    for t in range(n_frames):
        canvas = scene.copy()
        boxes = [clipped_box(box, SS, FRAME_SIZE) for box in _draw_frame(story, scene, canvas, t)]
        brightness = (1 + 0.02 * np.sin(t / 40 + drift)) * _flash(story, t)
        pixels = light.apply(np.asarray(canvas.reduce(SS)), brightness)
        yield Frame(add_noise(pixels, bank, rng, sigma), [box for box in boxes if box is not None])
