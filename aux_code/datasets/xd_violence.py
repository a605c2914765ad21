"""XD-Violence: 4,754 videos, 217 hours, of films and cameras (train 3,954, test 300 + 500).

    ROOT/train/<Name>.mp4  ROOT/test/<Name>.mp4  at any depth; or ROOT/1-1004 ... and ROOT/videos
    ROOT/annotations.txt   "<name> start end start end ...", frames from 0, end exclusive; or below

A name ends in _label_A (normal) or in _label_ and codes joined by '-': its label and category.

Wu et al.: Not only Look, but also Listen, ECCV 2020; https://roc-ng.github.io/XD-Violence/, for
research use.
"""

import re
from dataclasses import replace
from pathlib import Path

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, find_list, numbered_lines, refuse_all, some_of
from aux_code.datasets.media_files import name_left_out, walk
from aux_code.errors import UserError

OFFICIAL_COUNTS = {"train": 3954, "test": 800}
CATEGORIES = {
    "B1": "Fighting", "B2": "Shooting", "B4": "Riot", "B5": "Abuse", "B6": "CarAccident",
    "G": "Explosion",
}  # fmt: skip
TRAIN_FOLDERS = ("train", "1-1004", "1005-2004", "2005-2804", "2805-3319", "3320-3954")
TEST_FOLDERS = ("test", "videos", "test_videos")


def load(root: Path) -> st.SurveillanceDataset:
    """Lists the videos by their folders, labels them by their names and reads the test events."""
    annotations = find_list(root, "annotations.txt")
    events, broken = _read_annotations(annotations)
    paths, others = {}, []
    for split, names in (("train", TRAIN_FOLDERS), ("test", TEST_FOLDERS)):
        found = walk(*(root / name for name in names))
        paths[split] = [path for path in found if path.suffix.lower() in st.VIDEO_SUFFIXES]
        others += [path for path in found if path.suffix.lower() not in st.VIDEO_SUFFIXES]
    name_left_out(root, others)
    if not any(paths.values()):
        places = ", ".join(str(root / folder) for folder in (*TRAIN_FOLDERS, *TEST_FOLDERS))
        raise UserError(f"no XD-Violence videos; looked for them below {places}")
    unnamed = [path for own in paths.values() for path in own if not _codes(path)]
    known = f"_label_A or _label_<codes> of {', '.join(CATEGORIES)}, 0"
    refuse_all(f"videos' names do not end in {known}", unnamed, "rename them or take them away")
    train = [_video(path, "train", {}) for path in paths["train"]]
    test = [_checked(_video(path, "test", events), annotations, broken) for path in paths["test"]]
    refuse_all("lines cannot be understood", [*broken.values()], "correct them")
    return st.assemble(
        "xd_violence", root, [*train, *test], _report(root, train, test, events), [annotations]
    )


def _checked(
    video: st.SurveillanceVideo, annotations: Path, broken: dict[str, str]
) -> st.SurveillanceVideo:
    """A test video with what is wrong about its annotation, whose line is then no longer broken."""
    if problem := broken.pop(video.name, ""):
        return replace(video, problem=problem)
    if video.label == bool(video.events):
        return video
    by_name, by_list = ("anomalous", "no event") if video.label else ("normal", "an event")
    problem = f"{video.path} is {by_name} by its name, but has {by_list} in {annotations}"
    return replace(video, problem=problem)


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


def _codes(path: Path) -> list[str]:
    """What a name says of its video; empty if it says nothing."""
    match = re.search(r"_label_([A-Z0-9-]+)$", st.video_stem(path.name))
    codes = match[1].split("-") if match else []
    return codes if set(codes) <= {"A", "0", *CATEGORIES} else []


def _video(path: Path, split: str, events: dict[str, st.Events]) -> st.SurveillanceVideo:
    name, codes = st.video_stem(path.name), _codes(path)
    kinds = [CATEGORIES[code] for code in codes if code in CATEGORIES]
    label, category = (0, st.NORMAL) if codes == ["A"] else (1, kinds[0] if kinds else st.ANOMALY)
    return st.SurveillanceVideo(name, path, split, label, category, events.get(name, ()))


def _read_annotations(path: Path) -> tuple[dict[str, st.Events], dict[str, str]]:
    """(video -> events, video or line -> why it cannot be used)."""
    events, broken = {}, {}
    for number, line in numbered_lines(path):
        # A name may hold blanks; its end is known by its label.
        match = re.fullmatch(r"(.*_label_\S+?)((?:\s+\d+\s+\d+)+)", line)
        named = match or re.match(r"(.*_label_\S+)", line) or [None, line]
        name, expected = st.video_stem(named[1]), "each video once, and start before end"
        bounds = list(map(int, match[2].split())) if match else []
        pairs = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        if not match:
            expected = "'<name>_label_<codes> <start> <end> [<start> <end> ...]'"
        if not match or name in events or any(start >= end for start, end in pairs):
            broken[name] = str(broken_line(path, number, line, expected))
        events[name] = pairs
    return events, broken
