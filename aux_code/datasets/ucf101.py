"""UCF101: 13,320 clips of 101 human actions (split 1: 9,537 for training, 3,783 for testing).

    ROOT/Videos/<Class>/v_<Class>_g<group>_c<clip>.avi        or ROOT/UCF-101/<Class>/...
    ROOT/ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt

Soomro, Zamir, Shah: UCF101, CRCV-TR-12-01 (2012); https://www.crcv.ucf.edu/data/UCF101.php, for
research use.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aux_code.datasets.lists import (
    broken_line,
    first_existing,
    numbered_lines,
    refuse_all,
    report_missing,
    require_root,
)
from aux_code.datasets.media_files import ListedFiles
from aux_code.errors import UserError
from aux_code.runs import seeded_generator

OFFICIAL_COUNTS = {"train": 9537, "test": 3783}
"""Clips of split 1."""
_SPLITS = [(split, train) for split in (1, 2, 3) for train in (True, False)]
_CLASSES = "ucfTrainTestlist/classInd.txt"


@dataclass(frozen=True)
class Ucf101Item:
    """One clip. `label` counts from 1; clips of one `group` are cut from one recording."""

    path: Path
    label: int
    group: int


class Ucf101(Sequence):
    """The clips of one split, without decoding any: a sequence of `Ucf101Item`.

    Args:
        root: the data set's folder (`config.UCF101_ROOT`).
        split: 1, 2 or 3.
        train: the training list, else the test list.
        validation_fraction: share in [0, 1) of the training list's groups, each one person in one
            place, set aside for validation; no choice touches the test list.
        validation: give the groups set aside instead of the others; `seed` chooses them.

    Attributes:
        classes: name of each class index, "" at index 0, which no class has.
        missing: listed files that are absent; at most 1 % or a UserError.
    """

    def __init__(
        self,
        root: Path | str,
        split: int = 1,
        train: bool = True,
        validation_fraction: float = 0.0,
        validation: bool = False,
        seed: int = 0,
    ):
        self.root = require_root(root, "UCF101_ROOT")
        if split not in (1, 2, 3):
            raise UserError(f"UCF101 has the splits 1, 2 and 3, not {split}")
        self.classes, listed = read_split(self.root, split, train)
        self.missing = [item.path for item in listed if not item.path.exists()]
        report_missing(self.missing, len(listed), "UCF101 videos")
        absent = set(self.missing)
        items = [item for item in listed if item.path not in absent]
        if validation and not validation_fraction:
            raise UserError("a validation part needs validation_fraction above 0")
        if train and validation_fraction:
            chosen = _validation_groups({item.group for item in items}, validation_fraction, seed)
            items = [item for item in items if (item.group in chosen) == validation]
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Ucf101Item:
        return self.items[index]

    @property
    def num_classes(self) -> int:
        """Outputs a classifier needs: the number of classes and the unused output 0."""
        return len(self.classes)


def read_split(root: Path, split: int, train: bool) -> tuple[list[str], list[Ucf101Item]]:
    """Class names by index, and all clips that a list names, there or not."""
    videos = first_existing([root / "Videos", root / "UCF-101"], "the folder of UCF101 videos")
    classes = _read_classes(root / _CLASSES)
    return classes, _read_list(_list_file(root, split, train), videos, classes)


def listed(root: Path) -> tuple[list[Path], list[Path]]:
    """(lists, clips that they name) of all splits that are there."""
    splits = [key for key in _SPLITS if _list_file(root, *key).is_file()]
    clips = {item.path for key in splits for item in read_split(root, *key)[1]}
    return [root / _CLASSES, *(_list_file(root, *key) for key in splits)], sorted(clips)


def _list_file(root: Path, split: int, train: bool) -> Path:
    return root / "ucfTrainTestlist" / f"{'train' if train else 'test'}list{split:02d}.txt"


def _read_classes(path: Path) -> list[str]:
    classes = {}
    for number, line in numbered_lines(path):
        match = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if not match or int(match[1]) < 1 or int(match[1]) in classes:
            raise broken_line(path, number, line, "a new index from 1 and a class name")
        classes[int(match[1])] = match[2]
    if sorted(classes) != list(range(1, len(classes) + 1)):
        raise UserError(f"{path}: class indices must run from 1 on without a gap")
    return ["", *(classes[index] for index in sorted(classes))]


def _read_list(path: Path, videos: Path, classes: list[str]) -> list[Ucf101Item]:
    indices = {name: index for index, name in enumerate(classes) if index}
    files, items, seen, broken = ListedFiles(videos), [], set(), []
    for number, line in numbered_lines(path):
        pattern = r"(([^/]+)/[^/]+_g(\d+)_c\d+\.\w+)(?:\s+(\d+))?"
        match, expected = re.fullmatch(pattern, line.replace("\\", "/")), ""
        if not match or match[2] not in indices or match[1] in seen:
            expected = "<Class>/v_<Class>_g<n>_c<n>.avi of a known class, listed once"
        elif match[4] and int(match[4]) != indices[match[2]]:
            expected = f"class index {indices[match[2]]} as in classInd.txt"
        if expected:
            broken.append(broken_line(path, number, line, expected))
            continue
        seen.add(match[1])
        items.append(Ucf101Item(files.expected(match[1]), indices[match[2]], int(match[3])))
    refuse_all("lines cannot be understood", broken, "correct them or get the list again")
    return items


def _validation_groups(groups: set[int], fraction: float, seed: int) -> set[int]:
    if not 0 < fraction < 1:
        raise UserError(f"validation_fraction must lie in [0, 1), not {fraction}")
    ordered = sorted(groups)
    if len(ordered) < 2:
        raise UserError("a validation part needs clips of at least two groups in the training list")
    n_chosen = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
    generator = seeded_generator("ucf101 validation", seed)
    order = torch.randperm(len(ordered), generator=generator).tolist()
    return {ordered[i] for i in order[:n_chosen]}
