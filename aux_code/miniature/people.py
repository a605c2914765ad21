"""Draws one articulated person: skeleton from a pose, then body, clothes, hair and face."""

from dataclasses import dataclass
from math import cos, sin

from PIL import ImageDraw

from aux_code.miniature.looks import Look
from aux_code.miniature.motions import Pose
from aux_code.miniature.scenes import shade

Point = tuple[float, float]
Box = tuple[float, float, float, float]


# Parts of a head around its middle: u to the right (or to the front), v up, in heights of the body.
_NAPE = ((-0.05, -0.06), (0.05, -0.06), (0.035, -0.10), (-0.035, -0.10))
_FRINGE = (
    (-0.08, 0.03), (-0.06, 0.085), (0, 0.105), (0.06, 0.085), (0.08, 0.03), (0.05, 0.055),
    (-0.05, 0.055),
)  # fmt: skip
_SIDE_HAIR = (
    (0.05, 0.055), (0.02, 0.105), (-0.05, 0.09), (-0.09, 0.02), (-0.07, -0.05), (-0.02, -0.02),
    (-0.01, 0.05),
)  # fmt: skip
_SIDE_CAP = ((-0.09, 0.03), (-0.06, 0.11), (0.06, 0.11), (0.15, 0.04))
_MOUTH = ((-0.032, -0.046), (0.032, -0.046), (0.024, -0.062), (-0.024, -0.062))
_NOSE = ((-0.006, 0.0), (0.006, 0.0), (0.014, -0.026), (-0.014, -0.026))
_COVERS = {
    "mask": ((-0.078, -0.008), (0.078, -0.008), (0.055, -0.085), (-0.055, -0.085)),
    "cap": ((-0.09, 0.0), (-0.08, 0.10), (0.0, 0.12), (0.08, 0.10), (0.09, 0.0)),
    "hand": ((-0.09, -0.02), (0.03, 0.035), (0.05, -0.01), (0.01, -0.07), (-0.07, -0.08)),
}


@dataclass(frozen=True)
class Placement:
    """Where a person stands: feet at (x, y), `height` tall, all in canvas pixels; faces `facing`
    (+1 right, -1 left); `view` is front, side or back."""

    x: float
    y: float
    height: float
    facing: int
    view: str


@dataclass(frozen=True)
class Skeleton:
    """Joints in canvas pixels; (shoulder, elbow, hand), (hip, knee, foot); index 0 far or left."""

    neck: Point
    head: Point
    up: Point
    hip: Point
    shoulders: tuple[Point, Point]
    hips: tuple[Point, Point]
    arms: tuple[tuple[Point, Point, Point], ...]
    legs: tuple[tuple[Point, Point, Point], ...]


def _turn(points: list[Point], centre: Point, angle: float) -> list[Point]:
    if angle == 0.0:
        return points
    c, s = cos(angle), sin(angle)
    offsets = [(x - centre[0], y - centre[1]) for x, y in points]
    return [(centre[0] + c * u - s * v, centre[1] + s * u + c * v) for u, v in offsets]


def _chain(
    start: Point, angles: tuple[float, float], lengths: tuple[float, float], across: float
) -> list[Point]:
    """Joints of a limb; `across` scales and signs its extent in x (foreshortening)."""
    x, y = start
    points = [start]
    for angle, length in zip(angles, lengths):
        x, y = x + across * sin(angle) * length, y + cos(angle) * length
        points.append((x, y))
    return points


def skeleton(pose: Pose, place: Placement, build: float) -> Skeleton:
    """Joints of a body whose lower foot is on the ground."""
    h, side = place.height, place.view == "side"
    depth = place.facing * (1.0 if side else 0.3)
    half_shoulder, half_hip = (0.03, 0.02) if side else (0.115 * build, 0.055 * build)
    x = place.x + pose.shift * h * depth
    reach = max(cos(a) * 0.24 + cos(b) * 0.23 for a, b in pose.legs) * h
    hip = (x, place.y - pose.lift * h - reach)
    neck = (x + depth * sin(pose.lean) * 0.32 * h, hip[1] - cos(pose.lean) * 0.32 * h)
    head = (neck[0] + depth * sin(pose.lean) * 0.11 * h, neck[1] - cos(pose.lean * 0.7) * 0.115 * h)
    points = [neck, head, hip]
    for i, sign in enumerate((-1, 1)):
        shoulder = (neck[0] + sign * half_shoulder * h, neck[1] + 0.035 * h)
        joint = (hip[0] + sign * half_hip * h, hip[1])
        across = sign if pose.planar and not side else depth
        points += _chain(shoulder, pose.arms[i], (0.17 * h, 0.155 * h), across)
        points += _chain(joint, pose.legs[i], (0.24 * h, 0.23 * h), depth)
    points = _turn(points, (x, place.y - 0.06 * h), pose.roll * place.facing)
    neck, head, hip = points[:3]
    arms = (tuple(points[3:6]), tuple(points[9:12]))
    legs = (tuple(points[6:9]), tuple(points[12:15]))
    length = max(1e-6, ((head[0] - neck[0]) ** 2 + (head[1] - neck[1]) ** 2) ** 0.5)
    up = ((head[0] - neck[0]) / length, (head[1] - neck[1]) / length)
    shoulders, hips = (arms[0][0], arms[1][0]), (legs[0][0], legs[1][0])
    return Skeleton(neck, head, up, hip, shoulders, hips, arms, legs)


class PersonPainter:
    """Paints one person; remembers the extent of what it painted."""

    def __init__(self, draw: ImageDraw.ImageDraw, look: Look, place: Placement, pose: Pose):
        self.draw, self.look, self.place, self.pose = draw, look, place, pose
        self.bones = skeleton(pose, place, look.build)
        self.h = place.height

    def paint(self) -> Box:
        """Draws and returns (x0, y0, x1, y1) in canvas pixels."""
        side = self.place.view == "side"
        self._arm(0)
        if self.look.long_hair and self.place.view != "back":
            self._long_hair()
        for i in (0, 1):
            self._leg(i)
        self._trunk()
        if not side:
            self._arm(1)
        self._head()
        if side:
            self._arm(1)
        return self.extent()

    def extent(self) -> Box:
        """The box around joints, limbs' width and head; what is carried may reach out of it."""
        bones, h = self.bones, self.h
        points = [bones.neck, bones.hip, *(p for limb in bones.arms + bones.legs for p in limb)]
        margin, head = 0.035 * h, 0.10 * h
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        return (
            min(min(xs) - margin, bones.head[0] - head),
            min(min(ys) - margin, bones.head[1] - head),
            max(max(xs) + margin, bones.head[0] + head),
            max(max(ys) + margin, bones.head[1] + head),
        )

    def _bar(self, a: Point, b: Point, width: float, colour) -> None:
        width *= self.h
        r = width / 2
        self.draw.line((a, b), fill=colour, width=max(1, round(width)))
        self.draw.ellipse((b[0] - r, b[1] - r, b[0] + r, b[1] + r), fill=colour)

    def _arm(self, i: int) -> None:
        look, (shoulder, elbow, hand) = self.look, self.bones.arms[i]
        tone = 0.86 if i == 0 and self.place.view == "side" else 1.0
        bare = look.semi_nude
        cloth = look.bottom if look.bottom_kind == "dress" else look.top
        upper = look.skin if bare or look.sleeves == "none" else cloth
        lower = cloth if look.sleeves == "long" and not bare else look.skin
        self._bar(shoulder, elbow, 0.066 * look.build, shade(upper, tone))
        self._bar(elbow, hand, 0.054 * look.build, shade(lower, tone))
        self._bar(hand, hand, 0.056, shade(look.skin, tone))
        if self.pose.club and i == 1:
            dx, dy = hand[0] - elbow[0], hand[1] - elbow[1]
            self._bar(hand, (hand[0] + dx * 1.3, hand[1] + dy * 1.3), 0.03, (60, 52, 46))
        if look.ball and i == 1:
            (x, y), r = hand, 0.085 * self.h
            outline, width = shade(look.ball, 0.5), max(1, round(0.15 * r))
            self.draw.ellipse((x - r, y - r, x + r, y + r), look.ball, outline, width)

    def _leg(self, i: int) -> None:
        look, (hip, knee, foot) = self.look, self.bones.legs[i]
        tone = 0.86 if i == 0 and self.place.view == "side" else 1.0
        bare = look.bottom_kind == "swimwear"
        thigh = look.bottom if look.bottom_kind in ("trousers", "shorts") else look.skin
        shin = look.bottom if look.bottom_kind == "trousers" else look.skin
        self._bar(hip, knee, 0.088 * look.build, shade(thigh, tone))
        self._bar(knee, foot, 0.066 * look.build, shade(shin, tone))
        colour = look.skin if bare else look.shoes
        if self.place.view == "side":
            self._bar(foot, (foot[0] + self.place.facing * 0.05 * self.h, foot[1]), 0.05, colour)
        else:
            x, y, rx, ry = *foot, 0.038 * self.h, 0.028 * self.h
            self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def _width(self, front: float) -> float:
        return front * self.look.build * self.h * (0.62 if self.place.view == "side" else 1.0)

    def _along(self, fraction: float, half_width: float) -> tuple[Point, Point]:
        """Left and right point of the trunk; fraction 0 at the neck, 1 at the hip, more below."""
        (nx, ny), (hx, hy) = self.bones.neck, self.bones.hip
        length = max(1e-6, ((hx - nx) ** 2 + (hy - ny) ** 2) ** 0.5)
        across = (-(hy - ny) / length * half_width, (hx - nx) / length * half_width)
        x, y = nx + (hx - nx) * fraction, ny + (hy - ny) * fraction
        return (x + across[0], y + across[1]), (x - across[0], y - across[1])

    def _band(self, top: float, bottom: float, half_widths: Point, colour) -> None:
        a, b = self._along(top, half_widths[0]), self._along(bottom, half_widths[1])
        self.draw.polygon((a[0], a[1], b[1], b[0]), fill=colour)

    def _trunk(self) -> None:
        look = self.look
        shoulder, waist = self._width(0.135), self._width(0.088 if look.feminine else 0.105)
        hip = self._width(0.108 if look.feminine else 0.098)
        cloth = look.bottom if look.bottom_kind == "dress" else look.top
        colour = look.skin if look.semi_nude else cloth
        self._bar(self.bones.neck, self.bones.head, 0.055, look.skin)
        self._band(0.03, 0.62, (shoulder, waist), colour)
        self._band(0.60, 1.06, (waist, hip), colour)
        if look.bottom_kind == "swimwear":
            self._band(0.86, 1.18, (hip, hip), look.bottom)
            if look.feminine:
                self._band(0.22, 0.42, (shoulder * 0.92, shoulder * 0.88), look.bottom)
        elif look.bottom_kind in ("skirt", "dress"):
            self._band(0.88, 1.75, (hip, hip * 1.75), look.bottom)
        else:
            self._band(0.88, 1.12, (hip, hip), look.bottom)
        if look.bag:
            x, y = self.bones.hips[1]
            r = 0.06 * self.h
            self.draw.rectangle((x + r * 0.5, y - r, x + r * 2.0, y + r), fill=look.accessory)

    def _local(self, u: float, v: float) -> Point:
        """A point of the head: u to the right, v up, in heights."""
        (x, y), (ux, uy) = self.bones.head, self.bones.up
        return x + self.h * (-uy * u + ux * v), y + self.h * (ux * u + uy * v)

    def _blob(self, u: float, v: float, radius: Point, colour) -> None:
        x, y = self._local(u, v)
        rx, ry = radius[0] * self.h, radius[1] * self.h
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def _patch(self, corners: tuple[Point, ...], colour) -> None:
        self.draw.polygon([self._local(u, v) for u, v in corners], fill=colour)

    def _long_hair(self) -> None:
        back = -0.035 * self.place.facing if self.place.view == "side" else 0.0
        self._blob(back, 0.01, (0.098, 0.10), self.look.hair)
        corners = ((-0.098, 0.0), (0.098, 0.0), (0.088, -0.19), (-0.088, -0.19))
        self._patch(tuple((back + u, v) for u, v in corners), self.look.hair)

    def _head(self) -> None:
        look, view, facing = self.look, self.place.view, self.place.facing
        if view == "back":
            self._blob(0, 0, (0.08, 0.094), look.hair)
            if look.long_hair:
                self._long_hair()
            else:
                self._patch(_NAPE, look.skin)
            return
        self._blob(0, 0, (0.076, 0.094), look.skin)
        if view == "side":
            self._profile(facing)
            return
        self._patch(_FRINGE, look.hair)
        self._face(look.face)

    def _profile(self, facing: int) -> None:
        look, f = self.look, facing
        self._patch(tuple((f * u, v) for u, v in _SIDE_HAIR), look.hair)
        self._patch(((f * 0.065, 0.02), (f * 0.105, -0.012), (f * 0.065, -0.02)), look.skin)
        self._blob(f * 0.045, 0.015, (0.014, 0.014), (28, 22, 22))
        if look.face == "cap":
            self._patch(tuple((f * u, v) for u, v in _SIDE_CAP), look.accessory)

    def _face(self, face: str) -> None:
        look = self.look
        dark = (28, 22, 22)
        if face != "cap":
            for u in (-0.034, 0.034):
                self._blob(u, 0.014, (0.0115, 0.0115), dark)
        if face != "mask":
            self._patch(_MOUTH, shade((150, 62, 60), 0.55 + sum(look.skin) / 1100))
            self._patch(_NOSE, shade(look.skin, 0.8))
        if face in _COVERS:
            colour = shade(look.skin, 0.88) if face == "hand" else look.accessory
            self._patch(_COVERS[face], colour)


def paint_person(draw: ImageDraw.ImageDraw, look: Look, place: Placement, pose: Pose) -> Box:
    """Draws the person and returns the box around it in canvas pixels."""
    return PersonPainter(draw, look, place, pose).paint()
