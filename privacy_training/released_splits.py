"""From the parameters to the pictures of an attack: VISPR's splits through f_A, with the person boxes they need."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aux_code import config
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.datasets.vispr import VISPR1, Vispr, annotated_attributes
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.obfuscation import read_boxes
from aux_code.models.person_boxes import detect_person_boxes, load_person_detector
from aux_code.runs import Run
from privacy_training.attribute_prediction import Splits
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import PictureSource, Releaser, release_images

log = logging.getLogger(__name__)

BoxesOf = Callable[[Path, np.ndarray], np.ndarray]
"""Image file, decoded picture uint8 (H, W, 3) -> person boxes (K, 4) x0, y0, x1, y1 in its pixels."""


def attribute_names(params: PrivacyParams) -> tuple[str, ...]:
    """The attributes to predict: those of the sets (vispr1, all) and those named one by one, each once."""
    names: list[str] = []
    for name in params.attributes or ("vispr1",):
        if name == "vispr1":
            names += VISPR1
        elif name == "all":
            names += sorted(annotated_attributes(config.VISPR_ROOT), key=_attribute_number)
        else:
            names.append(name)
    return tuple(dict.fromkeys(names))


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
    # "auto" is for the attacker's training; what is released and measured is exact unless bf16 is asked for by name
    precision = "bf16" if params.precision == "bf16" else "fp32"
    return Releaser(net, run.device, params.average_frames, utility, params.clip_frames, storage, precision)


def build_splits(params: PrivacyParams, run: Run, anonymizer: str | None = None) -> Splits:
    """Releases the training, validation and test pictures once; they stay in memory."""
    releaser = build_releaser(params, run, anonymizer)
    boxes_of = person_boxes(params, releaser.anonymizer, run.device)
    sets = {}
    for split in ("train", "val", "test"):
        source = _picture_source(params, run, split, boxes_of)
        # averaging K releases leaves little noise, so that fewer different means are worth their time
        n_releases = max(1, params.n_releases // params.average_frames) if split == "train" else 1
        sets[split] = release_images(source, releaser, split, n_releases, params.seed)
    return Splits(*(sets[split].to(run.device) for split in ("train", "val", "test")))


def person_boxes(params: PrivacyParams, anonymizer: nn.Module, device: torch.device) -> BoxesOf | None:
    """Where the boxes come from: the file of --boxes, the data set's person_boxes.csv, else a detector.

    Returns:
        None if the anonymizer needs no boxes.
    """
    if not anonymizer.requires_boxes:
        return None
    path = params.boxes or config.VISPR_ROOT / "person_boxes.csv"
    if params.boxes is None and not path.is_file():
        return _detected_boxes(load_person_detector(params.detector_weights, device), device)
    boxes = read_boxes(path)
    log.info("person boxes from %s", path)

    def boxes_of(image_path: Path, image: np.ndarray) -> np.ndarray:
        name = image_path.relative_to(config.VISPR_ROOT).as_posix()
        return boxes.get(name, {}).get(0, np.zeros((0, 4)))

    return boxes_of


def _detected_boxes(detector: nn.Module, device: torch.device) -> BoxesOf:
    """Boxes by a detector, which sees the whole decoded picture."""

    def boxes_of(image_path: Path, image: np.ndarray) -> np.ndarray:
        frame = torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255
        return detect_person_boxes(frame[None], detector)[0].numpy()

    return boxes_of


def _picture_source(params: PrivacyParams, run: Run, split: str, boxes_of: BoxesOf | None) -> PictureSource:
    dataset = Vispr(config.VISPR_ROOT, split, attribute_names(params))
    labels = torch.from_numpy(dataset.labels)
    if split == "train":
        _check_learnable(labels, dataset.attributes)
    unreadable = UnreadableLog(run.folder, len(dataset), params.max_unreadable_share)
    return PictureSource(
        dataset.paths, labels, params.size, boxes_of, unreadable, params.release_batch, params.n_workers
    )


def _check_learnable(labels: torch.Tensor, names: tuple[str, ...]) -> None:
    constant = [name for name, column in zip(names, labels.T, strict=True) if column.min() == column.max()]
    if constant:
        raise UserError(
            f"VISPR train2017: every image has the same label of {', '.join(constant)}, so nothing can be learned; "
            "choose --attributes that vary"
        )
