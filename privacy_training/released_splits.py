"""From the parameters to the pictures of an attack: VISPR's splits through f_A, with the person
boxes they need."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aux_code import config
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.datasets.vispr import ATTRIBUTE_SETS, Vispr, annotated_attributes, canonical_name
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.person_boxes import PersonBoxes, open_person_boxes
from aux_code.runs import Run
from privacy_training.attribute_prediction import Splits
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import PictureSource, Releaser, release_images

BoxesOf = Callable[[Path, np.ndarray], np.ndarray]
"""Image file, decoded picture uint8 (H, W, 3) -> person boxes (K, 4) x0, y0, x1, y1 in its
pixels."""


def attribute_names(params: PrivacyParams) -> tuple[str, ...]:
    """The attributes to predict: those of the sets and those named one by one, each once.

    `all` stands for what the training images have; see `untrained_attributes` for what only others
    have.

    Raises:
        UserError: a set of another name. Names of attributes are checked where the annotations are
            read.
    """
    names: list[str] = []
    for name in params.attributes or ("vispr1",):
        if name == "all":
            names += sorted(
                annotated_attributes(config.VISPR_ROOT, ("train",)), key=_attribute_number
            )
        elif name.startswith("vispr") and name not in ATTRIBUTE_SETS:
            raise UserError(
                f"unknown set of attributes '{name}'; the sets are {', '.join(ATTRIBUTE_SETS)} and all"
            )
        else:
            names += ATTRIBUTE_SETS.get(name, (canonical_name(name),))
    return tuple(dict.fromkeys(names))


def untrained_attributes(params: PrivacyParams) -> list[str]:
    """What `all` leaves out: attributes of validation or test images that no training image has."""
    if "all" not in params.attributes:
        return []
    return sorted(
        annotated_attributes(config.VISPR_ROOT) - set(attribute_names(params)),
        key=_attribute_number,
    )


def _attribute_number(name: str) -> tuple[int, str]:
    """a9_face_complete before a10_face_partial."""
    digits = name[1:].split("_")[0]
    return (int(digits) if digits.isdigit() else 0), name


def build_releaser(params: PrivacyParams, run: Run, anonymizer: str | None = None) -> Releaser:
    """The frozen networks of the run; `anonymizer` takes another one than the parameters'.

    Raises:
        UserError: a checkpoint without an f_A, or --level feature without an f_T.
    """
    if params.level == "feature" and params.utility is None:
        raise UserError("--level feature attacks f_T's features: give its checkpoint by --utility")
    utility = load_utility(params.utility) if params.level == "feature" else None
    net = load_anonymizer(anonymizer or params.anonymizer)
    storage = getattr(torch, params.storage)
    # "auto" is for the attacker's training; what is released and measured is exact unless bf16 is
    # asked for by name
    precision = "bf16" if params.precision == "bf16" else "fp32"
    return Releaser(
        net, run.device, params.average_frames, utility, params.clip_frames, storage, precision
    )


def build_splits(params: PrivacyParams, run: Run, anonymizer: str | None = None) -> Splits:
    """Releases the training, validation and test pictures once; they stay in memory."""
    releaser = build_releaser(params, run, anonymizer)
    people = open_boxes(params, releaser.anonymizer, run.device)
    sets = {}
    for split in ("train", "val", "test"):
        source = _picture_source(params, run, split, people)
        # averaging K releases leaves little noise, so that fewer different means are worth their
        # time
        n_releases = max(1, params.n_releases // params.average_frames) if split == "train" else 1
        sets[split] = release_images(source, releaser, split, n_releases, params.seed)
    return Splits(*(sets[split].to(run.device) for split in ("train", "val", "test")))


def open_boxes(
    params: PrivacyParams, anonymizer: nn.Module, device: torch.device
) -> PersonBoxes | None:
    """Where the boxes come from: --boxes, --detector_weights, the data set's person_boxes.csv, else
    a detector.

    Returns:
        None if the anonymizer needs no boxes.
    """
    if not anonymizer.requires_boxes:
        return None
    return open_person_boxes(params.boxes, params.detector_weights, config.VISPR_ROOT, device)


def _boxes_of(people: PersonBoxes | None) -> BoxesOf | None:
    if people is None:
        return None
    return lambda path, picture: people.of_frames(path, (0,), picture[None])[0]


def _picture_source(
    params: PrivacyParams, run: Run, split: str, people: PersonBoxes | None
) -> PictureSource:
    dataset = Vispr(config.VISPR_ROOT, split, attribute_names(params))
    labels = torch.from_numpy(dataset.labels)
    if split == "train":
        _check_learnable(labels, dataset.attributes)
    elif not labels.any():
        raise UserError(
            f"VISPR {split}2017: no image has any of {', '.join(dataset.attributes)}, so there is nothing to measure; "
            "choose other --attributes"
        )
    if people is not None:
        people.require(dataset.paths)
    unreadable = UnreadableLog(run.folder, len(dataset), params.max_unreadable_share)
    return PictureSource(
        dataset.paths,
        labels,
        params.size,
        _boxes_of(people),
        unreadable,
        params.release_batch,
        params.n_workers,
    )


def _check_learnable(labels: torch.Tensor, names: tuple[str, ...]) -> None:
    constant = [
        name for name, column in zip(names, labels.T, strict=True) if column.min() == column.max()
    ]
    if constant:
        raise UserError(
            f"VISPR train2017: every image has the same label of {', '.join(constant)}, so nothing can be learned; "
            "choose --attributes that vary"
        )
