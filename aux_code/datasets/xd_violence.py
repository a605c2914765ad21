"""XD-Violence: 4,754 videos, 217 hours, of films and cameras (train 3,954, test 300 + 500).

    ROOT/train/<Name>.mp4  ROOT/test/<Name>.mp4  at any depth; or ROOT/1-1004 ... and ROOT/videos
    ROOT/annotations.txt   "<name> start end start end ...", frames from 0, end exclusive

A name ends in _label_A (normal) or in _label_ and codes joined by '-': its label and category.

Wu et al.: Not only Look, but also Listen, ECCV 2020; https://roc-ng.github.io/XD-Violence/, for
research use.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, files_of, first_existing, numbered_lines, some_of
from aux_code.errors import UserError

OFFICIAL_COUNTS = {"train": 3954, "test": 800}
CATEGORIES = {
    "B1": "Fighting", "B2": "Shooting", "B4": "Riot", "B5": "Abuse", "B6": "CarAccident",
    "G": "Explosion",
}  # fmt: skip
TRAIN_FOLDERS = ("train", "1-1004", "1005-2004", "2005-2804", "2805-3319", "3320-3954")
TEST_FOLDERS = ("test", "videos")


def load(root: Path) -> st.SurveillanceDataset:
    """Lists the videos by their folders, labels them by their names and reads the test events."""
    annotations = first_existing([root / "annotations.txt"], "XD-Violence's annotations")
    events = _read_annotations(annotations)
    train = [_video(path, "train", {}) for path in _videos(root, TRAIN_FOLDERS)]
    test = [_video(path, "test", events) for path in _videos(root, TEST_FOLDERS)]
    if not train and not test:
        places = ", ".join(str(root / folder) for folder in (*TRAIN_FOLDERS, *TEST_FOLDERS))
        raise UserError(f"no XD-Violence videos; looked for them below {places}")
    for video in test:
        if video.label != bool(video.events):
            by_name, by_list = ("anomalous", "no event") if video.label else ("normal", "an event")
            problem = f"is {by_name} by its name, but has {by_list}"
            raise UserError(f"{video.path} {problem} in {annotations}; correct one of the two")
    report = _report(root, train, test, events)
    return st.assemble("xd_violence", root, [*train, *test], report, [annotations])


def _videos(root: Path, folders: Sequence[str]) -> list[Path]:
    found = (
        path for name in folders for path in files_of(root / name, st.VIDEO_SUFFIXES, deep=True)
    )
    return [path for path in found if path.is_file()]


def _report(root: Path, train: list, test: list, events: dict[str, st.Events]) -> list[str]:
    """Lines on what is not there: all of a split, or test videos that are annotated."""
    report = []
    splits = ("training", train, TRAIN_FOLDERS[:2]), ("test", test, TEST_FOLDERS)
    for split, videos, folders in splits:
        if not videos:
            places = " or ".join(str(root / name) for name in folders)
            report.append(f"no {split} videos; unpack them into {places}")
    folders = [root / name for name in TEST_FOLDERS]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    names = sorted(events.keys() - {video.name for video in test})
    absent = [folder / f"{name}.mp4" for name in names]
    return report + some_of("annotated test videos are missing", absent)


def _video(path: Path, split: str, events: dict[str, st.Events]) -> st.SurveillanceVideo:
    name = st.video_stem(path.name)
    match = re.search(r"_label_([A-Z0-9-]+)$", name)
    codes = match[1].split("-") if match else []
    if not codes or not set(codes) <= {"A", "0", *CATEGORIES}:
        known = ", ".join(CATEGORIES)
        raise UserError(f"{path}: the name must end in _label_A or _label_<codes> of {known}, 0")
    kinds = [CATEGORIES[code] for code in codes if code in CATEGORIES]
    label, category = (0, st.NORMAL) if codes == ["A"] else (1, kinds[0] if kinds else st.ANOMALY)
    return st.SurveillanceVideo(name, path, split, label, category, events.get(name, ()))


def _read_annotations(path: Path) -> dict[str, st.Events]:
    events = {}
    for number, line in numbered_lines(path):
        # A name may hold blanks; its end is known by its label.
        match = re.fullmatch(r"(.*_label_\S+?)((?:\s+\d+\s+\d+)+)", line)
        if not match:
            expected = "'<name>_label_<codes> <start> <end> [<start> <end> ...]'"
            raise broken_line(path, number, line, expected)
        name, bounds = st.video_stem(match[1]), list(map(int, match[2].split()))
        pairs = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        if name in events or any(start >= end for start, end in pairs):
            raise broken_line(path, number, line, "each video once, and start before end")
        events[name] = pairs
    return events
