"""VISPR: photographs labelled with the private attributes they show (train 10,000, test 8,000).

    ROOT/train2017/<id>.jpg     val2017, test2017
    ROOT/train2017/<id>.json    or in ROOT/annotations/train2017, or in ROOT/train2017_annotation

The labels that circulate are of train and test: without labelled images in val2017 a tenth of
train, always the same, stands for val, and train lacks it.

Orekondy, Schiele, Fritz: Towards a Visual Privacy Advisor, ICCV 2017;
https://tribhuvanesh.github.io/vpa, for research use.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aux_code.datasets.lists import refuse_all, report_missing, require_root, some_of
from aux_code.datasets.media_files import IMAGE_SUFFIXES, files_of
from aux_code.errors import UserError
from aux_code.runs import derived_seed

log = logging.getLogger(__name__)

OFFICIAL_COUNTS = {"train": 10_000, "test": 8_000}
SPLITS = ("train", "val", "test")

# fmt: off
VISPR1 = (
    "a17_color", "a4_gender", "a9_face_complete", "a10_face_partial", "a12_semi_nudity",
    "a64_rel_personal", "a65_rel_social",
)
"""The seven attributes of the paper, in its order."""

VISPR2 = (
    "a6_hair_color", "a16_race", "a59_sports", "a1_age_approx", "a2_weight_approx",
    "a73_landmark", "a11_tattoo",
)
"""The second set, for which nobody chose an anonymizer (Dave, Chen, Shah: SPAct, CVPR 2022)."""
# fmt: on

ATTRIBUTE_SETS = {"vispr1": VISPR1, "vispr2": VISPR2}
"""Name of a set -> its attributes."""

SAFE = "a0_safe"
"""Says that an image shows nothing private."""

_ALIASES = {"a65_rel_soci": "a65_rel_social"}


class Vispr(Sequence):
    """The images of one split, without decoding any: a sequence of image paths, sorted by name.

    Args:
        root: the data set's folder (`config.VISPR_ROOT`).
        split: train, val or test.
        attributes: what the columns of `labels` mean; any of the data set's 68.
        load_labels: False reads no annotation: f_A trains without labels (paper, section 3).
        hold_out: False leaves all of train2017 in train.

    Attributes:
        paths: the images.
        labels: float32 (N, n_attributes), 0 or 1; None without labels.
        report: lines on images or annotations without the other, attributes without a positive.
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        attributes: Sequence[str] = VISPR1,
        load_labels: bool = True,
        hold_out: bool = True,
    ):
        self.root = require_root(root, "VISPR_ROOT")
        if split not in SPLITS:
            raise UserError(f"VISPR has the splits {', '.join(SPLITS)}, not {split!r}")
        folder = self.root / f"{split}2017"
        self.paths = _own(self.root, split, _images, hold_out)
        if not self.paths:
            held_out = " with annotations, or ten images in train2017" if split == "val" else ""
            remedy = f"unpack {split}2017 of VISPR there{held_out}"
            raise UserError(f"{folder} holds no images; {remedy}")
        counts = Counter(path.stem for path in self.paths)
        if twice := [stem for stem, count in counts.items() if count > 1]:
            names = ", ".join(twice[:5])
            raise UserError(f"{folder}: several images are called {names}; keep one of each")
        self.attributes = tuple(map(canonical_name, attributes))
        self.report: list[str] = []
        self.labels: np.ndarray | None = None
        if load_labels:
            self._load_labels(split, hold_out)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def _load_labels(self, split: str, hold_out: bool) -> None:
        files = _own(self.root, split, _annotation_files, hold_out)
        annotations = {path.stem: path for path in files}
        if not annotations:
            places = ", ".join(map(str, _annotation_places(self.root, split)))
            raise UserError(f"no VISPR annotations (*.json) of {split}2017; looked in {places}")
        without = [path for path in self.paths if path.stem not in annotations]
        missing = [path.with_suffix(".json") for path in without]
        report_missing(missing, len(self.paths), "VISPR annotations")
        self._note("images have no annotation and are left out", [path.stem for path in without])
        self.paths = [path for path in self.paths if path.stem in annotations]
        stems = {path.stem for path in self.paths}
        folder = self.root / f"{split}2017"
        absent = [str(folder / f"{stem}.jpg") for stem in sorted(annotations.keys() - stems)]
        self._note("annotations have no image", absent)
        per_image = _read_annotations([annotations[path.stem] for path in self.paths])
        counts = Counter(name for names in per_image for name in names)
        self._check_attributes(counts)
        labels = [[name in names for name in self.attributes] for names in per_image]
        self.labels = np.array(labels, dtype=np.float32)  # (N, n_attributes)

    def _check_attributes(self, counts: Counter[str]) -> None:
        unknown = [name for name in self.attributes if name not in counts and name not in VISPR1]
        if unknown:  # those that only images of other splits have are known, and reported below
            known = counts.keys() | annotated_attributes(self.root)
            unknown = [name for name in unknown if name not in known]
        if unknown:
            wrong, names = ", ".join(unknown), ", ".join(sorted(known))
            raise UserError(f"unknown VISPR attributes {wrong}; the annotations have {names}")
        without = [name for name in self.attributes if not counts[name]]
        self._note("attributes have no positive image, so no average precision", without)

    def _note(self, what: str, names: list[str]) -> None:
        for line in some_of(what, names):
            self.report.append(line)
            log.warning("VISPR: %s", line)


def listed(root: Path) -> tuple[list[Path], list[Path]]:
    """(annotations, images) of all splits that are there."""
    annotations = [path for split in SPLITS for path in _annotation_files(root, split)]
    return annotations, [path for split in SPLITS for path in _images(root, split)]


def has_validation(root: Path) -> bool:
    """Whether val2017 has labelled images; if not, a tenth of train stands for it."""
    return bool(_images(root, "val") and _annotation_files(root, "val"))


def canonical_name(attribute: str) -> str:
    """The name of an attribute in the annotations for one that papers abbreviate."""
    return _ALIASES.get(attribute, attribute)


def annotated_attributes(root: Path, splits: Sequence[str] = SPLITS) -> set[str]:
    """Every attribute that some image of some of the splits has."""
    files = (file for split in splits for file in _own(root, split, _annotation_files))
    return set().union(*_read_annotations(list(files)))


def _own(
    root: Path, split: str, files: Callable[[Path, str], list[Path]], hold_out: bool = True
) -> list[Path]:
    """The files (`_images` or `_annotation_files`) of a split, which may be a part of a folder."""
    if split == "test" or not hold_out or has_validation(root):
        return files(root, split)
    stems = {path.stem for path in _images(root, "train")}
    by_draw = sorted(stems, key=lambda stem: derived_seed("VISPR without val2017", stem))
    held_out = set(by_draw[: len(stems) // 10])
    return [path for path in files(root, "train") if (path.stem in held_out) == (split == "val")]


def _images(root: Path, split: str) -> list[Path]:
    return files_of(root / f"{split}2017", suffixes=IMAGE_SUFFIXES)


def _annotation_places(root: Path, split: str) -> list[Path]:
    name = f"{split}2017"
    return [root / name, root / "annotations" / name, root / f"{name}_annotation"]


def _annotation_files(root: Path, split: str) -> list[Path]:
    """Those of the first place that has any; none where the split has none."""
    places = _annotation_places(root, split)
    found = (files_of(folder, suffixes=(".json",)) for folder in places)
    return next(filter(None, found), [])


def _read_annotations(paths: Sequence[Path]) -> list[set[str]]:
    """The attributes of each file; one UserError names all that are broken."""
    per_file, broken = [], []
    for path in paths:
        try:
            per_file.append(_read_annotation(path))
        except UserError as error:
            broken.append(error)
    refuse_all("VISPR annotations are broken", broken, "unpack them again")
    return per_file


def _read_annotation(path: Path) -> set[str]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f'{path}: expected {{"labels": [...], ...}} ({problem})') from error
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise UserError(f"{path}: labels must be attribute names, found {str(labels)[:80]}")
    return set(map(canonical_name, labels))
