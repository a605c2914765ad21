"""How a body moves: one pose for each motion and time. Angles are radians from hanging down,
positive towards where it faces.
"""

from dataclasses import dataclass, field
from math import cos, pi, sin

Limb = tuple[float, float]  # absolute angles of the upper and the lower part


@dataclass(frozen=True)
class Pose:
    """Angles of the body; `lift` (of the height) is the jump, `roll` turns the whole body about its
    feet, `shift` moves it (of the height, towards where it faces). `planar` arms lie in the image
    plane in every view; other limbs are foreshortened from the front."""

    arms: tuple[Limb, Limb] = ((-0.06, 0.02), (0.06, 0.10))
    legs: tuple[Limb, Limb] = ((-0.04, -0.04), (0.04, 0.04))
    lean: float = 0.0
    lift: float = 0.0
    roll: float = 0.0
    shift: float = 0.0
    planar: bool = False
    club: bool = field(default=False)


def walk(t: float, phase: float) -> Pose:
    """A stride takes 24 frames."""
    a = 2 * pi * t / 24 + phase
    legs = tuple(
        (0.48 * s * sin(a), 0.48 * s * sin(a) - 0.55 * max(0.0, -s * cos(a - 0.4))) for s in (1, -1)
    )
    arms = tuple((-0.4 * s * sin(a), -0.4 * s * sin(a) + 0.2) for s in (1, -1))
    return Pose(arms, legs, lean=0.04)


def run(t: float, phase: float) -> Pose:
    """A stride takes 12 frames, arms bent, both feet off the ground between."""
    a = 2 * pi * t / 12 + phase
    legs = tuple(
        (0.2 + 0.85 * s * sin(a), -0.25 + 0.85 * s * sin(a) - 1.1 * max(0.0, -s * cos(a - 0.4)))
        for s in (1, -1)
    )
    arms = tuple((-0.9 * s * sin(a), -0.9 * s * sin(a) + 1.4) for s in (1, -1))
    return Pose(arms, legs, lean=0.25, lift=0.035 * abs(sin(a)))


def stand(t: float, phase: float) -> Pose:
    """Sways a little."""
    sway = 0.04 * sin(2 * pi * t / 50 + phase)
    return Pose(((-0.06 + sway, 0.04), (0.08 + sway, 0.14)), lean=sway * 0.6)


def wave(t: float, phase: float) -> Pose:
    """One arm up, the hand moving from side to side in 10 frames."""
    swing = 0.55 * sin(2 * pi * t / 10 + phase)
    return Pose(((-0.1, 0.05), (2.35 + 0.15 * swing, 2.9 + swing)), planar=True, lean=0.02)


def fight(t: float, phase: float) -> Pose:
    """Punches in turn (8 frames each pair), jerks forward and back, kicks now and then."""
    a = 2 * pi * t / 8 + phase
    arms = tuple(
        (0.9 + 0.7 * max(0.0, s * sin(a)), 2.3 - 0.7 * max(0.0, s * sin(a))) for s in (1, -1)
    )
    kick = max(0.0, sin(2 * pi * t / 17 + 2 * phase)) ** 3
    legs = ((-0.35, -0.5), (0.35 + 0.9 * kick, 0.2 + 1.1 * kick))
    return Pose(arms, legs, lean=0.15 + 0.22 * sin(a), shift=0.10 * sin(2 * pi * t / 11 + phase))


def fall(t: float, phase: float) -> Pose:
    """Goes over backwards within 10 frames, ever faster, feet sliding; then lies with a twitch."""
    way = min(1.0, t / 10) ** 1.7
    flail = 0.5 * sin(t * 0.9 + phase) * (1 - 0.7 * way)
    arms = ((-0.8 * way + flail, -1.2 * way), (2.0 * way - flail, 2.4 * way))
    legs = ((-0.15 * way, -0.35 * way), (0.45 * way, -0.1 * way))
    return Pose(arms, legs, roll=-1.48 * way, shift=0.38 * way)


def rise(t: float, phase: float) -> Pose:
    """Gets up from where `fall` ended, within 16 frames."""
    return fall(10 * max(0.0, 1 - t / 16), phase)


def crouch(t: float, phase: float) -> Pose:
    """Bends down to the ground and up again within 26 frames."""
    way = sin(pi * min(1.0, t / 26)) ** 1.2
    reach = 0.5 * way + 0.05 * sin(phase)
    legs = tuple((1.25 * way + 0.05 * s, -0.75 * way + 0.05 * s) for s in (1, -1))
    return Pose(((reach, reach * 0.6), (reach + 0.2, reach * 0.6)), legs, lean=0.95 * way)


def strike(t: float, phase: float) -> Pose:
    """Swings a club overhead and down again every 10 frames, with the whole body."""
    a = 2 * pi * t / 10 + phase
    arm = 1.75 + 1.4 * sin(a)
    legs = ((-0.35 - 0.15 * sin(a), -0.4), (0.45 + 0.15 * sin(a), 0.1))
    arms, lean = ((arm - 0.2, arm + 0.1), (arm, arm + 0.3)), 0.18 - 0.42 * sin(a)
    return Pose(arms, legs, lean, shift=0.1 * sin(a), club=True)


def kick(t: float, phase: float) -> Pose:
    """Kicks at something low every 13 frames."""
    swing = sin(2 * pi * t / 13 + phase)
    legs = ((-0.1, -0.2), (0.35 + 0.85 * swing, 0.1 + 1.0 * swing))
    return Pose(((-0.5 * swing, 0.4), (-0.7, 0.3)), legs, lean=-0.12 * swing)


def grab(t: float, phase: float) -> Pose:
    """Both arms out, pulling hard (7 frames)."""
    pull = sin(2 * pi * t / 7 + phase)
    arms = ((1.35, 1.5 + 0.2 * pull), (1.25, 1.6 - 0.2 * pull))
    return Pose(arms, ((-0.4, -0.5), (0.4, 0.0)), lean=0.3 * pull, shift=0.08 * pull)


MOTIONS = {
    f.__name__: f for f in (walk, run, stand, wave, fight, fall, rise, crouch, strike, kick, grab)
}
