"""Features as circulated with RTFM and MGFN: .list files of .npy paths, and a ground truth.

    train.list, test.list   one .npy path per line; optionally blanks or a comma and 0 (normal) or 1
                            (anomalous), and for test videos, after that, the number of frames
    <name>.npy              (n, D) or (n, n_crops, D), float32 or float64
    <name>_0.npy ...        or <name>__0.npy ...: one file (n, D) per crop; the list holds all of
                            them, or <name>.npy for all
    gt.npy                  one 0 or 1 per frame, the test videos one after the other as listed

Labels come from the column, else from the name (`_label_A`, `Normal`, a UCF-Crime category), else
from the data set's own annotations; never from the place in the list.
"""

import glob
import logging
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from anomaly_detection_mgfn.feature_bags import FeatureEntry, FeatureSource, read_array
from anomaly_detection_mgfn.ground_truth import LabelledVideos, VideoTruth, truth_from_labels
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from aux_code.datasets.lists import broken_line, numbered_lines
from aux_code.datasets.surveillance import load_surveillance
from aux_code.datasets.surveillance_types import ANOMALY, NORMAL, SurveillanceVideo
from aux_code.datasets.xd_violence import CATEGORIES
from aux_code.errors import UserError

log = logging.getLogger(__name__)

_LINE = re.compile(r"(.+?\.npy)(?:[\s,]+([01])(?:[\s,]+(\d+))?)?", re.IGNORECASE)
_CROP = re.compile(r"(.+?)_{1,2}(\d)")
_UCF_CATEGORY = re.compile(
    r"(Abuse|Arrest|Arson|Assault|Burglary|Explosion|Fighting|RoadAccidents|Robbery|Shooting"
    r"|Shoplifting|Stealing|Vandalism)\d{3}"
)
_N_NAMED = 10


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


def read_list(path: Path, folder: Path | None) -> list[ListedVideo]:
    """Videos of a .list file, in its order; the files of a video's crops make one video. Files that
    are not where the list says (which often holds its author's paths) are sought in `folder`.

    Raises:
        UserError: a line that names no .npy, a file that is nowhere, a crop that is missing, an
            empty list.
    """
    rows = []
    for number, line in numbered_lines(path):
        match = _LINE.fullmatch(line)
        if not match:
            raise broken_line(path, number, line, "'<path>.npy [0 or 1 [number of frames]]'")
        label, n_frames = (None if text is None else int(text) for text in match.groups()[1:])
        files = _find(Path(match[1]), path, number, folder)
        rows.append(ListedVideo(Path(match[1]).stem, files, label, n_frames))
    if not rows:
        raise UserError(f"{path} lists no features")
    crops: dict[str, dict[int, ListedVideo]] = {}
    for row in rows:
        if match := _CROP.fullmatch(row.name):
            crops.setdefault(match[1], {})[int(match[2])] = row
    # a lone number belongs to the name: it may count videos
    crops = {stem: own for stem, own in crops.items() if len(own) > 1 and 0 in own}
    videos: dict[str, ListedVideo] = {}
    for row in rows:
        match = _CROP.fullmatch(row.name)
        stem = match[1] if match and match[1] in crops else row.name
        if stem in videos and stem not in crops:
            raise UserError(f"{path}: '{stem}' is listed more than once")
        if own := crops.get(stem):
            if sorted(own) != list(range(len(own))):
                raise UserError(f"{path}: '{stem}' has the crops {sorted(own)}; list all, from 0")
            files = tuple(own[i].files[0] for i in range(len(own)))
            row = replace(own[0], name=stem, files=files)
        videos.setdefault(stem, row)
    return list(videos.values())


def _find(listed: Path, path: Path, number: int, folder: Path | None) -> tuple[Path, ...]:
    places = [path.parent / listed]
    if folder is not None:
        places += [folder / listed.parent.name / listed.name, folder / listed.name]
    for place in places:
        if place.is_file():
            return (place,)
        for mark in ("_", "__"):
            crops = sorted(place.parent.glob(f"{glob.escape(place.stem)}{mark}[0-9].npy"))
            if crops:
                return tuple(crops)
    raise UserError(
        f"{path}, line {number}: {places[-1]} does not exist; name the features' folder: --features"
    )


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
    both = {video.name for video in train} & {video.name for video in test}
    if both:
        raise UserError(f"{lists[-1]}: '{min(both)}' is in the training list too; remove it there")
    return train, test


def open_feature_lists(params: MgfnParams) -> FeatureSource:
    """The source of all listed features; reads the files' headers only.

    Raises:
        UserError: a file with another dimension or number of crops than the first one.
    """
    train, test = read_lists(params)
    entries, widths = {}, {}
    for video in (*train, *test):
        first, *others = video.files
        shapes = [read_array(file, mapped=True).shape for file in video.files]
        if len(set(shapes)) > 1 or len(shapes[0]) not in (2, 3) or shapes[0][0] < 1:
            raise UserError(
                f"{first}: expected (n, D) or (n, crops, D), alike for all crops, found {shapes}"
            )
        n_clips, *_, dimension = shapes[0]
        n_crops = len(shapes) * (shapes[0][1] if len(shapes[0]) == 3 else 1)
        widths.setdefault((n_crops, dimension), first)
        n_frames = video.n_frames or n_clips * params.frames_per_feature
        entries[video.name] = FeatureEntry(first, n_clips, n_frames, tuple(others))
    if len(widths) > 1:
        kinds = widths.items()
        found = "; ".join(f"{file}: {crops} crops of {width}" for (crops, width), file in kinds)
        raise UserError(f"the listed features differ in crops or dimension: {found}; list one kind")
    (n_crops, dimension), spacing = next(iter(widths)), params.frames_per_feature
    header = {"frames_per_feature": spacing, "feature_dim": dimension, "n_crops": n_crops}
    location = Path(params.features_list[-1])
    return FeatureSource(location, entries, dimension, n_crops, spacing, header)


def match_lists(params: MgfnParams, source: FeatureSource) -> LabelledVideos:
    """Labels of the listed videos, and the test videos' frames from --ground_truth.

    Raises:
        UserError: a label that nothing tells, lengths that do not fit, no video of one of the
            classes.
    """
    train, test = read_lists(params)
    annotated = _Annotations(params.dataset)
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
    if wrong:
        raise UserError(
            f"{source.location}: lengths do not fit: {_named(wrong)}; see --frames_per_feature"
        )
    against = [v.name for v, part in zip(videos, parts, strict=True) if not v.label and part.any()]
    if borders[-1] != len(labels):
        log.error("%s", "\n".join(lengths))
        raise UserError(
            f"{path} has {len(labels)} frames, the videos of {source.location} have {borders[-1]} "
            "(each named above); normal videos that would hold anomalous frames: "
            f"{_named(against) or 'none'}. Give --frames_per_feature, or each test video's label "
            "and number of frames after its path in the list"
        )
    if against:
        names = _named(against)
        raise UserError(f"{path}: anomalous frames in normal videos: {names}; another order?")
    if not labels.any() or labels.all():
        raise UserError(f"{path}: the test videos need anomalous and normal frames")
    return [
        truth_from_labels(video.name, video.category, video.label, part, spacing)
        for video, part in zip(videos, parts, strict=True)
    ]


def _named(items: list[str]) -> str:
    return "; ".join(items[:_N_NAMED]) + ("; ..." if len(items) > _N_NAMED else "")
