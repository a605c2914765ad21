"""Who does what when: a planned video as tracks of people, vehicles, blasts, lamps, in pixels."""

from dataclasses import dataclass, field

import numpy as np

from aux_code.miniature.looks import Look, draw_look
from aux_code.miniature.plan import PersonPlan, VideoPlan

FRAME_SIZE = (96, 72)
LEFT, RIGHT = 24.0, 72.0  # of life: well inside a centre crop of 0.8, even a square one


_VIEWS = ("front", "front", "back", "side")


@dataclass(frozen=True)
class Segment:
    """Frames start..end (exclusive) of a track: a motion while x goes from x0 to x1."""

    start: float
    end: float
    motion: str
    x0: float
    x1: float
    view: str = "side"
    facing: int = 1


@dataclass
class Actor:
    """A person: feet on the line y, `height` pixels tall, segments in order, without gaps."""

    look: Look
    height: float
    y: float
    phase: float
    track: list[Segment] = field(default_factory=list)


@dataclass(frozen=True)
class Vehicle:
    """A car on the line y; `path` has (frame, x of the middle), linear between, absent outside."""

    y: float
    length: float
    colour: tuple[int, int, int]
    path: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Blast:
    """An explosion from frame `start` to `end` around (x, y) with a largest radius in pixels."""

    start: int
    end: int
    x: float
    y: float
    radius: float
    tint: float


@dataclass(frozen=True)
class Lamp:
    """A distractor: a bright lamp, on or off for stretches of `period` frames, drawn by `key`."""

    x: float
    y: float
    radius: float
    period: int
    key: int


@dataclass
class Story:
    """All that moves in one video."""

    actors: list[Actor]
    vehicles: list[Vehicle] = field(default_factory=list)
    blasts: list[Blast] = field(default_factory=list)
    lamps: list[Lamp] = field(default_factory=list)


def _facing(x0: float, x1: float, rng: np.random.Generator) -> int:
    return (1 if x1 > x0 else -1) if x0 != x1 else int(rng.integers(2)) * 2 - 1


def life(rng: np.random.Generator, start: float, end: float, x: float) -> list[Segment]:
    """Ordinary life from x on: walks, stands, waves, bends down. In an empty interval nothing."""
    segments, t = [], start
    while t < end:
        kind = ("walk", "stand", "wave", "crouch")[int(rng.choice(4, p=(0.58, 0.22, 0.1, 0.1)))]
        lengths = rng.uniform(30, 90), rng.uniform(20, 50), rng.uniform(24, 44), 26
        length = dict(zip(("walk", "stand", "wave", "crouch"), lengths))[kind]
        stop, x1 = min(end, t + length), x
        if kind == "walk":
            way = rng.uniform(0.3, 0.75) * (stop - t)
            sign = 1 if x < LEFT + 8 else -1 if x > RIGHT - 8 else int(rng.integers(2)) * 2 - 1
            x1 = float(np.clip(x + sign * way, LEFT, RIGHT))
        view = "side" if kind in ("walk", "crouch") else _VIEWS[int(rng.integers(4))]
        segments.append(Segment(t, stop, kind, x, x1, view, _facing(x, x1, rng)))
        t, x = stop, x1
    return segments


def life_before(rng: np.random.Generator, end: float, x: float) -> list[Segment]:
    """Ordinary life over frames 0..end that arrives at x: a life run backwards."""
    segments = []
    for s in reversed(life(rng, 0, end, x)):
        facing = -s.facing if s.x0 != s.x1 else s.facing
        segments.append(Segment(end - s.end, end - s.start, s.motion, s.x1, s.x0, s.view, facing))
    return segments


def fill(rng: np.random.Generator, duties: list[list[Segment]], n_frames: int) -> list[Segment]:
    """A whole track: life before, a walk between, and life after the duties."""
    if not duties:
        return life(rng, 0, n_frames, rng.uniform(LEFT + 4, RIGHT - 4))
    track = life_before(rng, duties[0][0].start, duties[0][0].x0)
    for i, duty in enumerate(duties):
        track += duty
        last = duty[-1]
        if i + 1 < len(duties):
            goal, x = duties[i + 1][0], last.x1
            facing = _facing(x, goal.x0, rng)
            track.append(Segment(last.end, goal.start, "walk", x, goal.x0, "side", facing))
        else:
            track += life(rng, last.end, n_frames, last.x1)
    return track


def make_actor(rng: np.random.Generator, person: PersonPlan, y: float | None = None) -> Actor:
    """An actor of this appearance on the floor: 28 to 40 pixels tall, taller when nearer."""
    y = float(rng.uniform(51, 63)) if y is None else y
    look = draw_look(rng, **vars(person))
    height = 29 + (y - 51) / 12 * 8.5 + float(rng.uniform(-1.5, 1.5))
    return Actor(look, height, y, float(rng.uniform(0, 6.28)))


def make_vehicle(rng: np.random.Generator, y: float, path: list[tuple[float, float]]) -> Vehicle:
    """A car of a muted colour."""
    colour = tuple(int(v) for v in np.clip(rng.uniform(50, 190) + rng.normal(0, 22, 3), 20, 235))
    return Vehicle(y, float(rng.uniform(30, 38)), colour, tuple(path))


def _fighting(rng: np.random.Generator, start: int, end: int, site: float) -> list[list[Segment]]:
    gap = rng.uniform(5.5, 7.5)
    return [
        [Segment(start, end, "fight", site - gap, site - gap, "side", 1)],
        [Segment(start, end, "fight", site + gap, site + gap, "side", -1)],
    ]


def _struggle(start: float, end: float, x0: float, x1: float, facing: int) -> list[Segment]:
    """Falls from x0 to x1, gets up and goes down again until `end`: an event is never still."""
    n_cycles = max(1, round((end - start) / 30))
    cycle, segments = (end - start) / n_cycles, []
    for i in range(n_cycles):
        down, up = start + i * cycle, start + (i + 1) * cycle
        turn = max(down + 1, up - 16)
        segments.append(Segment(down, turn, "fall", x0 if i == 0 else x1, x1, "side", facing))
        segments.append(Segment(turn, up, "rise", x1, x1, "side", facing))
    return segments


def _assault(rng: np.random.Generator, start: int, end: int, site: float) -> list[list[Segment]]:
    """Punches, then kicks at a victim who falls, gets up and is down again."""
    sign = int(rng.integers(2)) * 2 - 1
    attacker = [
        Segment(start, start + 10, "fight", site, site, "side", sign),
        Segment(start + 10, end, "kick", site, site + 2 * sign, "side", sign),
    ]
    x = site + 12 * sign
    victim = [Segment(start, start + 6, "stand", x, x, "side", -sign)]
    return [attacker, victim + _struggle(start + 6, end, x, x + 6 * sign, -sign)]


def _stealing(rng: np.random.Generator, start: int, end: int, site: float) -> list[list[Segment]]:
    """Runs up, tears at somebody, runs out of the frame; the victim goes down or runs after."""
    sign = int(rng.integers(2)) * 2 - 1
    x = site - 8 * sign
    away = float(np.clip(x + 2.1 * sign * (end - start - 16), -14, 110))
    thief = [
        Segment(start, start + 8, "run", x - 18 * sign, x, "side", sign),
        Segment(start + 8, start + 16, "grab", x, x, "side", sign),
        Segment(start + 16, end, "run", x, away, "side", 1 if away > x else -1),
    ]
    chase = float(np.clip(site + 1.3 * sign * (end - start - 26), 10, 86))
    down = "fall" if rng.random() < 0.3 else "crouch"
    victim = [
        Segment(start, start + 8, "stand", site, site, "side", -sign),
        Segment(start + 8, start + 16, "grab", site, site, "side", -sign),
        Segment(start + 16, start + 26, down, site, site, "side", sign),
        Segment(start + 26, end, "run", site, chase, "side", sign),
    ]
    return [thief, [s for s in victim if s.end > s.start]]


def _running(rng: np.random.Generator, start: int, end: int, site: float) -> list[list[Segment]]:
    """Two run after each other, to and fro."""
    duties = []
    for lag in (-7.0, 7.0):
        t, x, sign, duty = start, site + lag, 1, []
        while t < end:
            goal = (70.0 if sign > 0 else 26.0) + lag * 0.5
            stop = min(float(end), t + max(4.0, abs(goal - x) / 1.9))
            duty.append(Segment(t, stop, "run", x, x + sign * 1.9 * (stop - t), "side", sign))
            t, x, sign = stop, duty[-1].x1, -sign
        duties.append(duty)
    return duties


def _vandalism(rng: np.random.Generator, start: int, end: int, site: float) -> list[list[Segment]]:
    sign = int(rng.integers(2)) * 2 - 1
    return [[Segment(start, end, "strike", site, site, "side", sign)]]


def _flight(rng: np.random.Generator, start: int, end: int, site: float) -> list[list[Segment]]:
    """The one next to a blast is thrown down; the other runs away."""
    sign = int(rng.integers(2)) * 2 - 1
    x = site + 14 * sign
    near = _struggle(start, end, x, x + 5 * sign, -sign)
    stop, far = min(end, start + 26), site - 12 * sign
    away = float(np.clip(far - 1.6 * sign * (stop - start), 6, 90))
    other = [
        Segment(start, stop, "run", far, away, "side", -sign),
        Segment(stop, end, "stand", away, away, "side", sign),
    ]
    return [near, [s for s in other if s.end > s.start]]


def _accident(
    rng: np.random.Generator, start: int, end: int, site: float
) -> tuple[list[list[Segment]], list[tuple[float, float]]]:
    """A car hits a person who is thrown along, stands till the end, then drives off slowly."""
    sign = int(rng.integers(2)) * 2 - 1
    hit, edge = start + int(rng.integers(9, 14)), 48 - 70 * sign
    stop = max(hit + 7, end)
    path = [(start, edge), (hit, site - 17 * sign), (hit + 6, site - 8 * sign)]
    path += [(stop, site - 7 * sign), (stop + 90, 48 + 80 * sign)]
    x = site + 16 * sign
    victim = [Segment(start, hit, "walk", site - 3 * sign, site + sign, "side", sign)]
    return [victim + _struggle(hit, max(hit + 20, end), site + sign, x, -sign)], path


_DUTIES = {
    "Fighting": _fighting, "Assault": _assault, "Stealing": _stealing, "Running": _running,
    "Vandalism": _vandalism, "Explosion": _flight,
}  # fmt: skip


def _distractors(rng: np.random.Generator, story: Story, n_frames: int) -> None:
    """A slow vehicle in every third video, a flickering lamp in every third."""
    if rng.random() < 0.35:
        start, sign = float(rng.uniform(-60, n_frames * 0.7)), int(rng.integers(2)) * 2 - 1
        end = start + float(rng.uniform(85, 150))
        path = [(start, 48 - 70 * sign), (end, 48 + 70 * sign)]
        story.vehicles.append(make_vehicle(rng, float(rng.uniform(48, 53)), path))
    if rng.random() < 0.35:
        story.lamps.append(make_lamp(rng))


def make_lamp(rng: np.random.Generator) -> Lamp:
    """A lamp high in the frame."""
    x, y, radius = (float(rng.uniform(*span)) for span in ((20, 76), (11, 22), (2, 5)))
    return Lamp(x, y, radius, int(rng.integers(2, 9)), int(rng.integers(1 << 30)))


def make_blast(rng: np.random.Generator, start: int, end: int, x: float, y: float) -> Blast:
    """A blast of random size and tint."""
    return Blast(start, end, x, y, float(rng.uniform(13, 20)), float(rng.uniform(0, 1)))


def surveillance_story(plan: VideoPlan, rng: np.random.Generator) -> Story:
    """Ordinary life of all people with the planned events in it."""
    actors = [make_actor(rng, person) for person in plan.people]
    story, duties = Story(actors), [[] for _ in actors]
    common = float(np.mean([actors[0].y, actors[1].y]))
    for start, end, kind in plan.events:
        site = float(rng.uniform(38, 58))
        if kind == "RoadAccidents":
            parts, path = _accident(rng, start, end, site)
            story.vehicles.append(make_vehicle(rng, actors[0].y + 1.5, path))
        else:
            parts = _DUTIES[kind](rng, start, end, site)
        if len(parts) == 2:  # those who meet stand on the same line
            for actor in actors[:2]:
                actor.height += (common - actor.y) * 0.7
                actor.y = common
        if kind == "Explosion":
            story.blasts.append(make_blast(rng, start, end, site, common - 6))
        for duty, part in zip(duties, parts):
            duty.append(part)
    for actor, duty in zip(actors, duties):
        actor.track = fill(rng, duty, plan.n_frames)
    _distractors(rng, story, plan.n_frames)
    return story


def _main_segments(action: str, rng: np.random.Generator, n: int, x: float) -> list[list[Segment]]:
    """The tracks of those who do the action over n frames around x."""
    sign = int(rng.integers(2)) * 2 - 1
    view = _VIEWS[int(rng.integers(4))]
    if action in ("Walk", "Run"):
        pace = rng.uniform(0.3, 0.75) if action == "Walk" else rng.uniform(1.4, 2.1)
        way = sign * min(n * pace, 58.0)  # a longer one would leave the evaluation crop
        return [[Segment(0, n, action.lower(), x - way / 2, x + way / 2, "side", sign)]]
    if action in ("Stand", "Wave"):
        return [[Segment(0, n, action.lower(), x, x, view, sign)]]
    if action == "CrouchPick":
        return [[Segment(-rng.uniform(0, 4), n, "crouch", x, x, "side", sign)]]
    if action == "Fight":
        return _fighting(rng, 0, n, x)
    if action == "Fall":
        start = int(rng.integers(1, 5))
        step = float(rng.uniform(0, 0.6)) * start * sign
        before = Segment(0, start, "walk" if abs(step) > 1 else "stand", x - step, x, "side", sign)
        return [[before, *_struggle(start, max(n, start + 28), x, x + 3 * sign, -sign)]]
    return []


def clip_story(plan: VideoPlan, rng: np.random.Generator) -> Story:
    """A short clip of one action, with by-standers and lamps that do not tell which."""
    n, x = plan.n_frames, float(rng.uniform(38, 58))
    actors = [make_actor(rng, person) for person in plan.people]
    story, parts = Story(actors), _main_segments(plan.action, rng, n, x)
    if plan.action == "Explosion":
        start = int(rng.integers(1, 7))
        end = start + int(rng.integers(30, 70))
        story.blasts.append(make_blast(rng, start, end, x, actors[0].y - 6))
        if rng.random() < 0.5:
            parts = _flight(rng, start, start + 40, x)
            parts = [life_before(rng, start, part[0].x0) + part for part in parts]
    elif plan.action == "VehicleCrash":
        parts, path = _accident(rng, -int(rng.integers(0, 5)), n + 30, x)
        story.vehicles.append(make_vehicle(rng, actors[0].y + 1.5, path))
    elif plan.action == "VehiclePass":
        sign, speed = int(rng.integers(2)) * 2 - 1, float(rng.uniform(0.9, 2.0))
        middle, way = float(rng.uniform(36, 60)), sign * speed * (n / 2 + 10)
        path = [(-10, middle - way), (n + 10, middle + way)]
        story.vehicles.append(make_vehicle(rng, float(rng.uniform(50, 60)), path))
    if len(parts) == 2:
        actors[1].height += (actors[0].y - actors[1].y) * 0.7
        actors[1].y = actors[0].y
    n_extra = int(rng.integers(0, 2)) if parts else int(rng.integers(0, 3))
    story.actors = actors[: len(parts) + n_extra]
    for i, actor in enumerate(story.actors):
        if i < len(parts):
            actor.track = parts[i]
        else:
            x_other = float(rng.uniform(LEFT, 36)) if x > 48 else float(rng.uniform(60, RIGHT))
            motion = "walk" if rng.random() < 0.4 else "stand"
            step = float(rng.uniform(-0.6, 0.6)) * n if motion == "walk" else 0.0
            view, facing = "side" if step else "front", _facing(0, step, rng)
            actor.track = [Segment(0, n, motion, x_other, x_other + step, view, facing)]
    if rng.random() < 0.2:
        story.lamps.append(make_lamp(rng))
    return story
