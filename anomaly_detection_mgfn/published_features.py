"""Features as circulated with RTFM and MGFN: .list files of .npy paths, and a ground truth.

    train.list, test.list   one .npy path per line; optionally blanks or a comma and 0 (normal) or 1
                            (anomalous) or the kind of anomaly, and for test videos, after that, the
                            number of frames; a header path,label; paths of any system
    <name>.npy              (n, D), (n, n_crops, D) or (n_crops, n, D), of any floating-point type
    <name>_0.npy ...        or <name>__0.npy ...: one file (n, D) per crop; the list holds all of
                            them, <name>.npy for all, or the same one of each video
    gt.npy                  one 0 or 1 per frame, the test videos one after the other as listed

Labels come from the column, else from the name (`_label_A`, `Normal`, a UCF-Crime category), else
from the data set's own annotations; never from the place in the list.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath

import numpy as np

from anomaly_detection_mgfn.feature_bags import FeatureEntry, FeatureSource, read_array
from anomaly_detection_mgfn.ground_truth import LabelledVideos, VideoTruth, truth_from_labels
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from aux_code.datasets.lists import N_NAMED, broken_line, numbered_lines, refuse_all, some_of
from aux_code.datasets.media_files import ListedFiles
from aux_code.datasets.surveillance import load_surveillance
from aux_code.datasets.surveillance_types import ANOMALY, NORMAL, SurveillanceVideo
from aux_code.datasets.xd_violence import CATEGORIES
from aux_code.errors import UserError

log = logging.getLogger(__name__)

_LINE = re.compile(
    r'"?(.+?\.npy)"?(?:[\s,;]+([A-Za-z][\w-]*|[01](?:\.0*)?)(?:[\s,;]+(\d+))?)?', re.IGNORECASE
)
_HEADER = re.compile(r"\W*(path|file|video|name)s?\W+label.*", re.IGNORECASE)
_CROP = re.compile(r"(.+?)(_{1,2})(\d)")
_NORMAL_WORDS = {"0", "normal", "a"}
_CROP_COUNTS = {5, 10}
_UCF_CATEGORY = re.compile(
    r"(Abuse|Arrest|Arson|Assault|Burglary|Explosion|Fighting|RoadAccidents|Robbery|Shooting"
    r"|Shoplifting|Stealing|Vandalism)\d{3}"
)
_TELLING = re.compile(rf"^Normal_Videos|_label_[A-Z0-9]+|^{_UCF_CATEGORY.pattern}")
_CALM = {"Normal_Videos", "_label_A"}
"""What official names of videos begin with or hold, and which of it normal ones do."""


@dataclass(frozen=True)
class ListedVideo:
    """A video of a .list file."""

    name: str
    files: tuple[Path, ...]
    """One file, or one per crop."""
    label: int | None
    """Of the list's column."""
    n_frames: int | None
    """Of the list's column."""
    crops: tuple[int, ...] = ()
    """Numbers of the listed files, where each is of a crop."""


def read_list(path: Path, folder: Path | None) -> list[ListedVideo]:
    """Videos of a .list file, in its order; the files of a video's crops make one video. Files that
    are not where the list says (which often holds its author's paths) are sought in `folder`.

    Raises:
        UserError: lines that name no .npy, files that are nowhere, a crop that is missing, an empty
            list.
    """
    rows = _read_rows(path, folder)
    crops: dict[str, dict[int, ListedVideo]] = {}
    matches = [_CROP.fullmatch(row.name) for row in rows]
    for row, match in zip(rows, matches):
        if match:
            crops.setdefault(match[1], {})[int(match[3])] = row
    # a lone number belongs to the name, since it may count videos, but for the same __5 of all
    marks = {match.groups()[1:] if match else () for match in matches}
    if len(marks) > 1 or "__" not in min(marks):
        crops = {stem: own for stem, own in crops.items() if len(own) > 1 and 0 in own}
    videos: dict[str, ListedVideo] = {}
    for row, match in zip(rows, matches):
        stem = match[1] if match and match[1] in crops else row.name
        if stem in videos and stem not in crops:
            raise UserError(f"{path}: '{stem}' is listed more than once")
        if own := crops.get(stem):
            if len(own) > 1 and sorted(own) != list(range(len(own))):
                raise UserError(f"{path}: '{stem}' has the crops {sorted(own)}; list all, from 0")
            if len({row.label for row in own.values()}) > 1:
                raise UserError(
                    f"{path}: the crops of '{stem}' have different labels; correct them"
                )
            files = tuple(own[i].files[0] for i in sorted(own))
            row = replace(own[min(own)], name=stem, files=files, crops=tuple(sorted(own)))
        videos.setdefault(stem, row)
    return list(videos.values())


def _read_rows(path: Path, folder: Path | None) -> list[ListedVideo]:
    """A video for each line."""
    rows, broken, nowhere = [], [], []
    files = ListedFiles(path.parent), ListedFiles(*[folder] * bool(folder), moved=True)
    for number, line in numbered_lines(path):
        match = _LINE.fullmatch(line)
        if not match:
            expected = "'<path>.npy [0, 1 or a kind of anomaly [number of frames]]'"
            if number > 1 or not _HEADER.fullmatch(line):
                broken.append(broken_line(path, number, line, expected))
            continue
        listed, word, n_frames = match[1].strip(), (match[2] or "").lower(), match[3]
        label = int(word.split(".")[0] not in _NORMAL_WORDS) if word else None
        own = next(filter(None, (_find(found, listed) for found in files)), ())
        stem, n_frames = PureWindowsPath(listed).stem, int(n_frames) if n_frames else None
        rows.append(ListedVideo(stem, own, label, n_frames))
        nowhere += [] if own else [f"line {number}: {listed}"]
    refuse_all("lines cannot be understood", broken, "correct them or get the list again")
    remedy = "name the features' folder: --features"
    refuse_all(f"files of {path} do not exist", nowhere, remedy)
    if not rows:
        raise UserError(f"{path} lists no features; get the list again")
    return rows


def _find(files: ListedFiles, listed: str) -> tuple[Path, ...]:
    """The listed file or, if it stands for them, those of its crops; empty: neither is there."""
    if path := files.find(listed):
        return (path,)
    for mark in ("_", "__"):
        crops = [files.find(f"{listed[:-4]}{mark}{i}.npy") for i in range(10)]
        if any(crops):
            return tuple(filter(None, crops))
    return ()


def read_lists(params: MgfnParams) -> tuple[list[ListedVideo], list[ListedVideo]]:
    """(training videos, test videos) of --features_list; --eval_only needs the last list alone.

    Raises:
        UserError: another number of lists, or a video in both.
    """
    lists = [Path(item) for item in params.features_list]
    if len(lists) != 2 and not (params.eval_only and len(lists) == 1):
        raise UserError("--features_list takes TRAIN.list TEST.list (--eval_only: TEST.list)")
    folder = Path(params.features) if params.features else None
    *train, test = (read_list(path, folder) for path in lists)
    train = train[0] if train and not params.eval_only else []
    train, test = _with_common_crops(train, test)
    both = {video.name for video in train} & {video.name for video in test}
    if both:
        raise UserError(f"{lists[-1]}: '{min(both)}' is in the training list too; remove it there")
    return train, test


def _with_common_crops(
    train: list[ListedVideo], test: list[ListedVideo]
) -> tuple[list[ListedVideo], list[ListedVideo]]:
    """The files of the crops that all videos have, where test lists name a single one of each."""
    kinds = {video.crops for video in (*train, *test)}
    common = set.intersection(*map(set, kinds))
    if len(kinds) == 1 or not common:
        return train, test
    log.warning("crops %s alone are of all listed videos; others are left out", sorted(common))
    for videos in (train, test):
        for i, video in enumerate(videos):
            files = (file for crop, file in zip(video.crops, video.files) if crop in common)
            videos[i] = replace(video, files=tuple(files))
    return train, test


def open_feature_lists(params: MgfnParams) -> FeatureSource:
    """The source of all listed features; reads the files' headers only.

    Raises:
        UserError: a file with another dimension or number of crops than the first one.
    """
    train, test = read_lists(params)
    shapes = _shapes([*train, *test])
    crops_first, entries, widths = _are_crops_first(shapes.values()), {}, {}
    for video in (*train, *test):
        (first, *others), shape = video.files, shapes[video.name]
        n_clips, n_crops = shape[0], len(video.files)
        if len(shape) == 3:
            n_clips, n_crops = shape[:2][::-1] if crops_first else shape[:2]
        widths.setdefault((n_crops, shape[-1]), first)
        n_frames = video.n_frames or n_clips * params.frames_per_feature
        of_crops = tuple(others)
        entries[video.name] = FeatureEntry(
            first, n_clips, n_frames, of_crops, crops_first=crops_first
        )
    if len(widths) > 1:
        kinds = widths.items()
        found = "; ".join(f"{file}: {crops} crops of {width}" for (crops, width), file in kinds)
        raise UserError(f"the listed features differ in crops or dimension: {found}; list one kind")
    (n_crops, dimension), spacing = next(iter(widths)), params.frames_per_feature
    header = {"frames_per_feature": spacing, "feature_dim": dimension, "n_crops": n_crops}
    location = Path(params.features_list[-1])
    return FeatureSource(location, entries, dimension, n_crops, spacing, header)


def _shapes(videos: list[ListedVideo]) -> dict[str, tuple[int, ...]]:
    """The shape of each video's file or files, (n, D) or with crops; broken files are named."""
    shapes, broken = {}, []
    for video in videos:
        try:
            own = {read_array(file, mapped=True).shape for file in video.files}
        except UserError as error:
            broken.append(error)
            continue
        shape = shapes[video.name] = min(own)
        one_of_all = len(video.files) == 1 and len(shape) == 3
        if len(own) > 1 or 0 in shape or not (one_of_all or len(shape) == 2):
            expected = "(n, D) or (n, crops, D), alike for all crops"
            broken.append(f"{video.files[0]}: expected {expected}, found {sorted(own)}")
    refuse_all("feature files are broken", broken, "get them again")
    return shapes


def _are_crops_first(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether (a, b, D) is (crops, n, D): a never varies, and b does or is no usual number."""
    of_crops = [shape for shape in shapes if len(shape) == 3]
    first, second = ({shape[axis] for shape in of_crops} for axis in (0, 1))
    usual = first <= _CROP_COUNTS and not second <= _CROP_COUNTS
    return len(first) == 1 and (len(second) > 1 or usual)


def match_lists(params: MgfnParams, source: FeatureSource) -> LabelledVideos:
    """Labels of the listed videos, and the test videos' frames from --ground_truth.

    Raises:
        UserError: a label that nothing tells, lengths that do not fit, no video of one of the
            classes.
    """
    train, test = read_lists(params)
    annotated = _Annotations(params.dataset)
    against = [
        f"{video.name} ({'anomalous' if video.label else 'normal'})"
        for video in (*train, *test)
        if (match := _TELLING.search(video.name)) and video.label == int(match[0] in _CALM)
    ]
    what = f"videos are listed in {' or '.join(map(str, params.features_list))} against their names"
    refuse_all(what, against, "correct the labels")
    labelled = [annotated.label(video, "train") for video in train]
    if train and {video.label for video in labelled} != {0, 1}:
        raise UserError(f"{params.features_list[0]}: training needs normal and anomalous videos")
    truths = read_ground_truth(params, source, [annotated.label(video, "test") for video in test])
    return LabelledVideos(labelled, truths, {}, len(truths))


class _Annotations:
    """Labels of listed videos; the data set's annotations are read when a name does not tell."""

    def __init__(self, dataset: str):
        self.dataset = dataset

    def label(self, video: ListedVideo, split: str) -> SurveillanceVideo:
        """Label and category by column, name or annotation."""
        category = self._category(video)
        label = video.label if video.label is not None else int(category != NORMAL)
        if label != int(category != NORMAL):
            category = ANOMALY if label else NORMAL
        return SurveillanceVideo(video.name, video.files[0], split, label, category)

    def _category(self, video: ListedVideo) -> str:
        if match := re.search(r"_label_([A-Z0-9]+)", video.name):
            return NORMAL if match[1] == "A" else CATEGORIES.get(match[1], ANOMALY)
        if "normal" in video.name.lower() and "abnormal" not in video.name.lower():
            return NORMAL
        if match := _UCF_CATEGORY.match(video.name):
            return match[1]
        if video.label is not None:
            return ANOMALY if video.label else NORMAL
        for name in (video.name, re.sub(r"_(i3d|c3d|rgb)$", "", video.name)):
            if name in self._annotated:
                return self._annotated[name].category
        raise UserError(
            f"{video.files[0]}: neither its name nor {self.dataset} tells whether '{video.name}' "
            "is normal; add 0 or 1 to its line in the list"
        )

    @cached_property
    def _annotated(self) -> dict[str, SurveillanceVideo]:
        try:
            return {video.name: video for video in load_surveillance(self.dataset).videos}
        except UserError as error:
            log.warning("no annotations: %s", error)
            return {}


def read_ground_truth(
    params: MgfnParams, source: FeatureSource, videos: list[SurveillanceVideo]
) -> list[VideoTruth]:
    """Cuts the concatenated frame labels into those of each test video.

    Raises:
        UserError: no file, labels other than 0 and 1, or lengths that do not fit, with what each
            video needs.
    """
    if not params.ground_truth:
        raise UserError("--features_list needs --ground_truth GT.npy: the test frames' labels")
    path, spacing = Path(params.ground_truth), source.frames_per_feature
    labels = read_array(path, mapped=True).reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{path}: expected 0 and 1 for each frame")
    entries = [source.entries[video.name] for video in videos]
    borders = np.cumsum([0, *(entry.n_frames for entry in entries)])
    parts = [np.asarray(part, np.uint8) for part in np.split(labels, borders[1:-1])]
    pairs = zip(videos, entries, strict=True)
    lengths = [f"{v.name}: {e.n_clips} features, {e.n_frames} frames" for v, e in pairs]
    expected = [-(-entry.n_frames // spacing) for entry in entries]
    fits = [abs(n - entry.n_clips) <= 1 for n, entry in zip(expected, entries, strict=True)]
    wrong = [text for text, fit in zip(lengths, fits, strict=True) if not fit]
    refuse_all(f"lengths of {source.location} do not fit", wrong, "see --frames_per_feature")
    calm = [v.name for v, part in zip(videos, parts, strict=True) if v.label and not part.any()]
    for line in some_of("anomalous videos have no anomalous frame in the ground truth", calm):
        log.warning("%s: %s", path, line)
    against = [v.name for v, part in zip(videos, parts, strict=True) if not v.label and part.any()]
    if borders[-1] != len(labels):
        log.error("%s", "\n".join(lengths))
        raise UserError(
            f"{path} has {len(labels)} frames, the videos of {source.location} have {borders[-1]} "
            "(each named above); normal videos that would hold anomalous frames: "
            f"{'; '.join(against[:N_NAMED]) or 'none'}. Give --frames_per_feature, or each test "
            "video's label and number of frames after its path in the list"
        )
    refuse_all(f"normal videos have anomalous frames in {path}", against, "another order?")
    if not labels.any() or labels.all():
        raise UserError(f"{path}: the test videos need anomalous and normal frames")
    return [
        truth_from_labels(video.name, video.category, video.label, part, spacing)
        for video, part in zip(videos, parts, strict=True)
    ]
