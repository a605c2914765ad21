"""What the benchmark shows, as plain data before anything is rendered.

Every attribute, camera and motion is an independent draw with the same rates in training and test.
"""

from dataclasses import dataclass, replace

import numpy as np

ATTRIBUTES = (
    "a17_color", "a4_gender", "a9_face_complete", "a10_face_partial", "a12_semi_nudity",
    "a64_rel_personal", "a65_rel_social", "a59_sports",
)  # fmt: skip
ATTRIBUTE_RATES = (0.47, 0.46, 0.36, 0.32, 0.22, 0.20, 0.22, 0.25)
HELD_OUT = ATTRIBUTES[-1]
"""Nobody chose anything by it: it stands for the private things that no label names."""
OTHER_ATTRIBUTES = (
    "a1_age_approx", "a2_weight_approx", "a3_height_approx", "a5_eye_color", "a6_hair_color",
    "a16_race", "a18_ethnic_clothing", "a48_occupation", "a67_rel_competitors",
    "a70_education_history",
)  # fmt: skip
N_CAMERAS = 8
ACTIONS = (
    "CrouchPick", "Explosion", "Fall", "Fight", "Run", "Stand", "VehicleCrash", "VehiclePass",
    "Walk", "Wave",
)  # fmt: skip
ANOMALIES = ("Fighting", "RoadAccidents", "Explosion", "Assault", "Vandalism", "Stealing")
XD_ANOMALIES = {"Fighting": "B1", "Assault": "B5", "RoadAccidents": "B6", "Explosion": "G"}
SHANGHAITECH_ANOMALIES = ("Fighting", "Running", "Assault", "RoadAccidents")


@dataclass(frozen=True)
class PersonPlan:
    """The attributes of one person in a video; `face` is what shows when seen from the front, and
    who is sporty carries a ball."""

    coloured: bool
    feminine: bool
    semi_nude: bool
    face: str
    sporty: bool


@dataclass(frozen=True)
class StillPlan:
    """One VISPR-like image: `attributes` follow ATTRIBUTES; rgb, grey, cmyk or rotated (EXIF)."""

    split: str
    image_id: str
    attributes: tuple[bool, ...]
    others: tuple[str, ...]
    camera: int
    size: tuple[int, int]
    mode: str
    index: int


@dataclass(frozen=True)
class VideoPlan:
    """One video of any set. `file` is relative to the set's root; `events` are (start, end, kind)
    in frames from 0, end exclusive; `action` is the class of a UCF101-like clip, else ''; `split`
    is train or test."""

    dataset: str
    split: str
    file: str
    action: str
    events: tuple[tuple[int, int, str], ...]
    camera: int
    people: tuple[PersonPlan, ...]
    n_frames: int
    fps: int
    index: int


def _people(rng: np.random.Generator, n: int) -> tuple[PersonPlan, ...]:
    faces = ("front", "front", "front", "cap", "mask", "hand")
    rates = (*ATTRIBUTE_RATES[:2], 0.12, ATTRIBUTE_RATES[-1])
    people = []
    for _ in range(n):
        *others, sporty = (bool(rng.random() < rate) for rate in rates)
        people.append(PersonPlan(*others, faces[int(rng.integers(6))], sporty))
    return tuple(people)


def _scaled(count: int, scale: float, least: int) -> int:
    return max(least, round(count * scale))


def _complete(rows: np.ndarray) -> np.ndarray:
    """Gives each attribute two positives and two negatives, which a set of useful size has."""
    for column in range(rows.shape[1]):
        for value in (True, False):
            spare = [i for i in range(len(rows)) if rows[i, column] != value]
            while np.count_nonzero(rows[:, column] == value) < 2:
                rows[spare.pop((3 * column) % len(spare)), column] = value
    return rows


def plan_vispr(seed: int, scale: float = 1.0) -> list[StillPlan]:
    """1,500 + 500 + 700 stills at scale 1."""
    plans, index = [], 0
    counts = (("train2017", 1500), ("val2017", 500), ("test2017", 700))
    for number, (split, count) in enumerate(counts):
        rng = np.random.default_rng([seed, 11, number])
        n = _scaled(count, scale, 8)
        rows = _complete(rng.random((n, len(ATTRIBUTES))) < np.array(ATTRIBUTE_RATES))
        cmyk, rotated = rng.permutation(n)[:2]
        for i in range(n):
            mode = {cmyk: "cmyk", rotated: "rotated"}.get(i)
            mode = mode or ("grey" if rng.random() < 0.015 else "rgb")
            others = tuple(name for name in OTHER_ATTRIBUTES if rng.random() < 0.06)
            size = (int(rng.integers(88, 129)), int(rng.integers(88, 129)))
            image_id = f"2017_{10000000 * (number + 1) + 3571 * i + int(rng.integers(3571)):08d}"
            own, camera = tuple(bool(v) for v in rows[i]), int(rng.integers(N_CAMERAS))
            plans.append(StillPlan(split, image_id, own, others, camera, size, mode, index))
            index += 1
    return plans


def ucf101_groups(scale: float) -> tuple[int, int, int]:
    """(test groups, all groups, clips per group) of each class; 4, 20 and 6 at scale 1."""
    root = scale**0.5
    test, train = max(2, round(4 * root)), max(4, round(16 * root))
    return test, test + train, max(1, round(6 * root))


def plan_ucf101(seed: int, scale: float = 1.0) -> list[VideoPlan]:
    """960 training and 240 test clips of 30 to 36 frames at scale 1, in which two clips of 8 frames
    at stride 2 fit; `split` is that of split 01 (its test groups come first).
    """
    n_test, n_groups, n_clips = ucf101_groups(scale)
    rng = np.random.default_rng([seed, 13])
    plans = []
    for action in ACTIONS:
        for group in range(1, n_groups + 1):
            for clip in range(1, n_clips + 1):
                file = f"Videos/{action}/v_{action}_g{group:02d}_c{clip:02d}.avi"
                split = "test" if group <= n_test else "train"
                camera, length = int(rng.integers(N_CAMERAS)), int(rng.integers(30, 37))
                labels = ("ucf101", split, file, action, ())
                people, index = _people(rng, 3), len(plans)
                plans.append(VideoPlan(*labels, camera, people, length, 25, index))
    return plans


def _length(rng: np.random.Generator, low: int, high: int) -> int:
    """A number of frames that is no multiple of 16 (nor of 32)."""
    n = int(rng.integers(low, high + 1))
    return n + 1 if n % 16 == 0 else n


def _events(rng: np.random.Generator, n_frames: int, kind: str) -> tuple[tuple[int, int, str], ...]:
    """One event of 52 to 120 frames, or (in a third of the videos that are long enough) two of 40
    to 70, 50 or more frames apart.
    """
    if n_frames >= 170 and rng.random() < 0.35:
        first, second = (int(v) for v in rng.integers(40, min(71, n_frames // 4), 2))
        start = int(rng.integers(12, n_frames - first - second - 62))
        start_2 = int(rng.integers(start + first + 50, n_frames - second - 8))
        return (start, start + first, kind), (start_2, start_2 + second, kind)
    length = int(rng.integers(52, min(121, n_frames - 39)))
    start = int(rng.integers(12, n_frames - length - 6))
    return ((start, start + length, kind),)


_LENGTHS = {
    "ucf_crime": (100, 30, 30), "xd_violence": (120, 55, 24), "shanghaitech": (110, 40, 24),
}  # fmt: skip
"""Set -> least number of frames, mean of the exponential draw that bounds what is added to it,
frames per second. An interval of an AUC depends on how many videos there are, not on their length,
and time on all frames: videos are as short as an event with ordinary life around it may be."""


def _surveillance(
    rng: np.random.Generator, dataset: str, split: str, kind: str, index: int
) -> VideoPlan:
    """A video without a name yet; kind '' is a normal one."""
    low, mean, fps = _LENGTHS[dataset]
    n_frames = _length(rng, low, min(2 * low, low + int(rng.exponential(mean)) + 6))
    events = _events(rng, n_frames, kind) if kind else ()
    people = _people(rng, 2 + int(rng.integers(2)))
    camera = int(rng.integers(N_CAMERAS))
    return VideoPlan(dataset, split, "", "", events, camera, people, n_frames, fps, index)


def _kinds(rng: np.random.Generator, kinds: tuple[str, ...], n: int) -> list[str]:
    """n kinds, each as often as the others, in random order."""
    offset = int(rng.integers(len(kinds)))
    return [kinds[(i + offset) % len(kinds)] for i in rng.permutation(n)]


def plan_ucf_crime(seed: int, scale: float = 1.0) -> list[VideoPlan]:
    """100 training and 400 test videos at scale 1, half of each anomalous."""
    rng = np.random.default_rng([seed, 17])
    plans, numbers = [], dict.fromkeys(ANOMALIES, 0)
    for split, count in (("train", 50), ("test", 200)):
        n = _scaled(count, scale, 2)
        for kind in _kinds(rng, ANOMALIES, n):
            numbers[kind] += 1
            video = _surveillance(rng, "ucf_crime", split, kind, len(plans))
            plans.append(replace(video, file=f"Videos/{kind}/{kind}{numbers[kind]:03d}_x264.mp4"))
        for i in range(1, n + 1):
            name = f"Normal_Videos{'_' * (split == 'test')}{i:03d}_x264.mp4"
            folder = f"Videos/{split.capitalize()}ing_Normal_Videos_Anomaly"
            video = _surveillance(rng, "ucf_crime", split, "", len(plans))
            plans.append(replace(video, file=f"{folder}/{name}"))
    return plans


_FILMS = (
    "City.of.Corners.2009", "v=Kx9_miniature", "Straßen Szene", "Night.Market.1998",
    "Café Le Nord.2004", "v=0aB-c#d",
)  # fmt: skip


def _xd_name(rng: np.random.Generator, i: int, codes: str) -> str:
    """A name with the quirks of the real ones: '#', '=', dots, blanks, a non-ASCII letter."""
    start, end = (f"00-{second // 60:02d}-{second % 60:02d}" for second in (i, i + 8))
    return f"{_FILMS[int(rng.integers(6))]}__#{start}_{end}_label_{codes}"


def plan_xd_violence(seed: int, scale: float = 1.0) -> list[VideoPlan]:
    """60 training and 120 test videos at scale 1, half of each anomalous."""
    rng = np.random.default_rng([seed, 19])
    plans = []
    for split, count in (("train", 30), ("test", 60)):
        n = _scaled(count, scale, 2)
        for kind in _kinds(rng, tuple(XD_ANOMALIES), n) + [""] * n:
            codes = f"{XD_ANOMALIES[kind]}-0-0" if kind else "A"
            video = _surveillance(rng, "xd_violence", split, kind, len(plans))
            plans.append(replace(video, file=f"{split}/{_xd_name(rng, 7 * len(plans), codes)}.mp4"))
    return plans


def plan_shanghaitech(seed: int, scale: float = 1.0) -> list[VideoPlan]:
    """50 training and 120 test videos at scale 1. Normal ones are AVI files or, some, frame
    folders; anomalous ones are frame folders. The scene id is the camera + 1."""
    rng = np.random.default_rng([seed, 23])
    plans = []
    for split, n_avi, n_normal, n_anomalous in (("train", 26, 5, 19), ("test", 48, 18, 54)):
        kinds = _kinds(rng, SHANGHAITECH_ANOMALIES, _scaled(n_anomalous, scale, 2))
        jobs = [("", True)] * _scaled(n_avi, scale, 2) + [("", False)] * _scaled(n_normal, scale, 1)
        jobs += [(kind, False) for kind in kinds]
        for kind, is_avi in jobs:
            video = _surveillance(rng, "shanghaitech", split, kind, len(plans))
            scene, number = video.camera + 1, len(plans) + 1
            as_avi = f"training/videos/{scene:02d}_{number:03d}.avi"
            file = as_avi if is_avi else f"testing/frames/{scene:02d}_{number:04d}"
            plans.append(replace(video, file=file))
    return plans
