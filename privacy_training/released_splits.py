"""From parameters to the images of an attack: VISPR's splits, with person boxes, through f_A."""

from typing import Any

import torch

from aux_code import config
from aux_code.artefacts import Recipe
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.datasets.vispr import (
    ATTRIBUTE_SETS,
    SAFE,
    SPLITS,
    Vispr,
    annotated_attributes,
    canonical_name,
)
from aux_code.devices import precision_in_force
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.anonymizers import remove_noise
from aux_code.models.person_boxes import PersonBoxes, open_person_boxes
from aux_code.runs import Run
from privacy_training.inversion import invert_splits
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import (
    AUGMENTATIONS,
    ImageSource,
    Releaser,
    Splits,
    release_images,
    training_images,
)


def attack_splits(params: PrivacyParams, run: Run, recipe: Recipe) -> tuple[Splits, dict[str, Any]]:
    """The images of the attack that the parameters name, and what else there is to report of it.

    raw_trained learns and chooses its epoch on raw images and meets released ones only in the test:
    an opponent who does not adapt. inversion sees what a network recovered from the released
    images; it learned that from pairs of raw and released training images.

    Raises:
        UserError: a checkpoint without an f_A, --level feature without an f_T, or a split that is
            missing or has labels from which nothing follows; before any image is released.
    """
    if params.level == "feature" and params.utility is None:
        raise UserError("--level feature attacks f_T's features: give its checkpoint by --utility")
    utility = load_utility(params.utility) if params.level == "feature" else None
    net, raw = load_anonymizer(params.anonymizer), load_anonymizer("raw")
    if params.average_frames == 0:
        remove_noise(net)
    people = None
    if net.requires_boxes:
        root, weights = config.VISPR_ROOT, params.detector_weights
        people = open_person_boxes(params.boxes, weights, root, run.device)
    train, validation, test = (_image_source(params, run, split, people) for split in SPLITS)
    precision = precision_in_force(params.precision, run.device)
    form = (max(1, params.average_frames), utility, params.clip_frames, precision)
    releaser = Releaser(net, run.device, params.seed, *form)
    adapted = releaser
    if params.attacker == "raw_trained":
        adapted = Releaser(raw, run.device, params.seed, *form)
    splits = Splits(
        training_images(train, adapted, AUGMENTATIONS[params.augmentation]),
        release_images(validation, adapted),
        release_images(test, releaser),
    )
    if params.attacker != "inversion":
        return splits, {}
    truth = release_images(test, Releaser(raw, run.device)).released
    return splits, {"inversion": invert_splits(splits, truth, params, run, recipe)}


def attribute_names(params: PrivacyParams) -> tuple[str, ...]:
    """The attributes to predict: those of the sets and those named one by one, each once, held-out
    ones last.

    `all` stands for what the training images have, but for "nothing private"; see
    `untrained_attributes` for the others.

    Raises:
        UserError: a set of another name. Names of attributes are checked with the annotations.
    """
    names: list[str] = []
    for name in params.attributes or ("vispr1",):
        if name == "all":
            found = annotated_attributes(config.VISPR_ROOT, ("train",)) - {SAFE}
            names += sorted(found, key=_attribute_number)
        elif name.startswith("vispr") and name not in ATTRIBUTE_SETS:
            known = f"{', '.join(ATTRIBUTE_SETS)} and all"
            raise UserError(f"unknown set of attributes '{name}'; the sets are {known}")
        else:
            names += ATTRIBUTE_SETS.get(name, (canonical_name(name),))
    held_out = tuple(map(canonical_name, params.held_out))
    return (*(name for name in dict.fromkeys(names) if name not in held_out), *held_out)


def untrained_attributes(params: PrivacyParams) -> list[str]:
    """What `all` leaves out: attributes of validation or test images that no training image has."""
    if "all" not in params.attributes:
        return []
    left_out = annotated_attributes(config.VISPR_ROOT) - {SAFE, *attribute_names(params)}
    return sorted(left_out, key=_attribute_number)


def _attribute_number(name: str) -> tuple[int, str]:
    """a9_face_complete before a10_face_partial."""
    digits = name[1:].split("_")[0]
    return (int(digits) if digits.isdigit() else 0), name


def _image_source(
    params: PrivacyParams, run: Run, split: str, people: PersonBoxes | None
) -> ImageSource:
    dataset = Vispr(config.VISPR_ROOT, split, attribute_names(params))
    labels = torch.from_numpy(dataset.labels)
    columns = zip(dataset.attributes, labels.T, strict=True)
    constant = [name for name, column in columns if column.min() == column.max()]
    if split == "train" and constant:
        same = f"every image has the same label of {', '.join(constant)}"
        raise UserError(f"VISPR train2017: {same}; choose --attributes that vary")
    if split != "train" and not labels.any():
        absent = f"no image has any of {', '.join(dataset.attributes)}"
        raise UserError(f"VISPR {split}2017: {absent}; choose other --attributes")
    if people is not None:
        people.require(dataset.paths)
    unreadable = UnreadableLog(run.folder, len(dataset), params.max_unreadable_share)
    batch, n_workers = params.release_batch, params.n_workers
    form = (params.size, people, unreadable, batch, n_workers)
    return ImageSource(split, dataset.paths, labels, *form)
