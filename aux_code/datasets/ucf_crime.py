"""UCF-Crime: 1,900 videos, 128 hours, 13 kinds of crime (train 800 normal + 810, test 150 + 140).

    ROOT/Videos/<Category>/<Name>_x264.mp4         or anywhere below ROOT, as the archives unpack
    ROOT/Anomaly_Train.txt, ROOT/Anomaly_Test.txt  or anywhere below ROOT
    ROOT/Temporal_Anomaly_Annotation_for_Testing_Videos.txt  (frames at 30 fps, 1-based, inclusive)
                                                   or Temporal_Anomaly_Annotation.txt, anywhere

Sultani, Chen, Shah: Real-world Anomaly Detection in Surveillance Videos, CVPR 2018;
https://www.crcv.ucf.edu/projects/real-world/, for research use.
"""

from functools import cached_property
from pathlib import Path, PureWindowsPath

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, find_list, numbered_lines, refuse_all
from aux_code.datasets.media_files import ListedFiles, files_of, spelling_key

OFFICIAL_COUNTS = {"train": 1610, "test": 290}
ANNOTATIONS = "Temporal_Anomaly_Annotation_for_Testing_Videos.txt"
_NORMAL_FOLDERS = {"Training_Normal_Videos_Anomaly", "Testing_Normal_Videos_Anomaly"}
_EXPECTED = "'<name> <class> <start1> <end1> <start2> <end2>', frames from 1, -1 for none"


def load(root: Path) -> st.SurveillanceDataset:
    """Reads lists and annotations; no video needs to be there."""
    lists = [find_list(root, name) for name in ("Anomaly_Train.txt", "Anomaly_Test.txt")]
    lists.append(find_list(root, ANNOTATIONS, "Temporal_Anomaly_Annotation*.txt"))
    files, annotations = _VideoFiles(root), _Annotations(lists[2])
    videos = _read_list(lists[0], "train", files, None)
    videos += _read_list(lists[1], "test", files, annotations)
    listed = {video.name for video in videos if video.split == "test"}
    broken = [text for name, text in annotations.broken.items() if name not in listed]
    refuse_all("annotations cannot be understood", broken, "correct them or get the file again")
    report = st.unlisted("annotations", annotations.events.keys() - listed)
    return st.assemble("ucf_crime", root, videos, report, lists)


class _VideoFiles:
    """Finds listed videos: where the list says, else by file name anywhere below the root.

    A file in the category's folder comes first: archives hold some normal videos twice, once for
    event recognition.
    """

    def __init__(self, root: Path):
        self.root, self._listed = root, ListedFiles(root / "Videos")

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in files_of(self.root, suffixes=st.VIDEO_SUFFIXES, deep=True):
            found.setdefault(spelling_key(path.name), []).append(path)
        return found

    def find(self, listed: str) -> Path:
        """Path of a listed video; the expected one if the file is nowhere."""
        if path := self._listed.find(listed):
            return path
        expected = self.root / "Videos" / listed
        found = self._by_name.get(spelling_key(expected.name), [expected])
        return next((path for path in found if path.parent.name == expected.parent.name), found[0])


def _read_list(
    path: Path, split: str, files: _VideoFiles, annotations: "_Annotations | None"
) -> list[st.SurveillanceVideo]:
    videos, broken = [], []
    for number, line in numbered_lines(path):
        *_, folder, file = ("", *PureWindowsPath(line).parts)
        if not folder or not file.lower().endswith(st.VIDEO_SUFFIXES):
            broken.append(broken_line(path, number, line, "'<Category>/<Name>_x264.mp4'"))
            continue
        name, normal, events, problem = st.video_stem(file), folder in _NORMAL_FOLDERS, (), ""
        if annotations:
            events = annotations.events.get(name, ())
            if problem := annotations.problem(name, normal):
                problem = f"{path}, line {number}: {line} {problem}"
        label, category = (0, st.NORMAL) if normal else (1, folder)
        found = files.find(f"{folder}/{file}")
        video = st.SurveillanceVideo(name, found, split, label, category, events, problem=problem)
        videos.append(video)
    refuse_all("lines cannot be understood", broken, "correct them or get the list again")
    return videos


class _Annotations:
    """Events of the test videos; `broken`: video -> why its line cannot be used."""

    def __init__(self, path: Path):
        self.path, self.broken = path, {}
        self.events: dict[str, st.Events] = {}
        for number, line in numbered_lines(path):
            name, expected = st.video_stem(line.split()[0]), _EXPECTED
            try:
                file, _, *numbers = line.rsplit(maxsplit=5)
                name = st.video_stem(file)
                first, second = _event(*map(int, numbers[:2])), _event(*map(int, numbers[2:]))
                if name in self.events:
                    raise ValueError(expected := "each video once")
                self.events[name] = first + second
            except (ValueError, TypeError):
                self.broken[name] = str(broken_line(path, number, line, expected))

    def problem(self, name: str, normal: bool) -> str:
        """Why a test video and its annotation do not go together; empty if they do."""
        if name in self.broken:
            return f"has a broken annotation ({self.broken[name]})"
        if not normal and name not in self.events:
            return f"has no line in {self.path}"
        contradicts = normal and self.events.get(name)
        return f"is normal, but has an event in {self.path}" if contradicts else ""


def _event(start: int, end: int) -> st.Events:
    """1-based inclusive start..end -> ((start - 1, end),); -1, -1 -> ()."""
    if start == end == -1:
        return ()
    if not 1 <= start <= end:
        raise ValueError(f"no event: {start} to {end}")
    return ((start - 1, end),)
