"""UCF-Crime: 1,900 videos, 128 hours, 13 kinds of crime (train 800 normal + 810, test 150 + 140).

    ROOT/Videos/<Category>/<Name>_x264.mp4         or the category folders anywhere below ROOT
    ROOT/Anomaly_Train.txt, ROOT/Anomaly_Test.txt  or both in ROOT/Anomaly_Detection_splits/
    ROOT/Temporal_Anomaly_Annotation_for_Testing_Videos.txt  (frames at 30 fps, 1-based, inclusive)

Sultani, Chen, Shah: Real-world Anomaly Detection in Surveillance Videos, CVPR 2018;
https://www.crcv.ucf.edu/projects/real-world/, for research use.
"""

from functools import cached_property
from pathlib import Path

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, files_of, first_existing, numbered_lines
from aux_code.errors import UserError

OFFICIAL_COUNTS = {"train": 1610, "test": 290}
ANNOTATIONS = "Temporal_Anomaly_Annotation_for_Testing_Videos.txt"
_NORMAL_FOLDERS = {"Training_Normal_Videos_Anomaly", "Testing_Normal_Videos_Anomaly"}
_EXPECTED = "'<name> <class> <start1> <end1> <start2> <end2>', frames from 1, -1 for none"


def load(root: Path) -> st.SurveillanceDataset:
    """Reads lists and annotations; no video needs to be there."""
    places = [root, root / "Anomaly_Detection_splits"]
    lists = [
        first_existing([place / name for place in places], f"UCF-Crime's {name}")
        for name in ("Anomaly_Train.txt", "Anomaly_Test.txt", ANNOTATIONS)
    ]
    files, events = _VideoFiles(root), _read_annotations(lists[2])
    videos = _read_list(lists[0], "train", files, {})
    videos += _read_list(lists[1], "test", files, events)
    report = st.unlisted(
        "annotations", events.keys() - {v.name for v in videos if v.split == "test"}
    )
    return st.assemble("ucf_crime", root, videos, report, lists)


class _VideoFiles:
    """Finds listed videos: where the list says, else by file name anywhere below the root.

    A file in the category's folder comes first: archives hold some normal videos twice, once for
    event recognition.
    """

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in files_of(self.root, st.VIDEO_SUFFIXES, deep=True):
            found.setdefault(path.name, []).append(path)
        return found

    def find(self, listed: str) -> Path:
        """Path of a listed video; the expected one if the file is nowhere."""
        expected = self.root / "Videos" / listed
        if expected.exists():
            return expected
        found = self._by_name.get(expected.name, [expected])
        return next((path for path in found if path.parent.name == expected.parent.name), found[0])


def _read_list(
    path: Path, split: str, files: _VideoFiles, events: dict[str, st.Events]
) -> list[st.SurveillanceVideo]:
    videos = []
    for number, line in numbered_lines(path):
        folder, slash, file = line.partition("/")
        if not slash or not file.lower().endswith(st.VIDEO_SUFFIXES) or "/" in file:
            raise broken_line(path, number, line, "'<Category>/<Name>_x264.mp4'")
        name, normal = st.video_stem(file), folder in _NORMAL_FOLDERS
        video_events = events.get(name, ())
        if split == "test" and normal == bool(video_events):
            problem = "has no event in" if not normal else "is normal, but has an event in"
            remedy = "correct one of the two files"
            raise UserError(f"{path}, line {number}: {line} {problem} {ANNOTATIONS}; {remedy}")
        label, category = (0, st.NORMAL) if normal else (1, folder)
        video = st.SurveillanceVideo(name, files.find(line), split, label, category, video_events)
        videos.append(video)
    return videos


def _read_annotations(path: Path) -> dict[str, st.Events]:
    events = {}
    for number, line in numbered_lines(path):
        try:
            name, _, *numbers = line.rsplit(maxsplit=5)
            first, second = _event(*map(int, numbers[:2])), _event(*map(int, numbers[2:]))
        except (ValueError, TypeError) as error:
            raise broken_line(path, number, line, _EXPECTED) from error
        name = st.video_stem(name)
        if name in events:
            raise broken_line(path, number, line, "each video once")
        events[name] = first + second
    return events


def _event(start: int, end: int) -> st.Events:
    """1-based inclusive start..end -> ((start - 1, end),); -1, -1 -> ()."""
    if start == end == -1:
        return ()
    if not 1 <= start <= end:
        raise ValueError(f"no event: {start} to {end}")
    return ((start - 1, end),)
