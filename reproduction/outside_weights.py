"""Weights that the paper's plan starts from and that this repository does not make: are they
there?"""

from pathlib import Path

import torch

from reproduction.tasks import Task

NEED_BOXES = ("blur", "blacken")
"""Methods that need to know where people are."""


def weight_notes(tasks: list[Task]) -> list[str]:
    """One line for each kind of weights that the steps need or could start from, and do not find
    here.

    Args:
        tasks: those that are still to run.
    """
    tasks = [task for task in tasks if task.arguments[:2] == ("--preset", "paper")]
    starts = [task for task in tasks if task.stage == "init_utility"]
    notes = []
    if any("--init_weights" not in task.arguments for task in starts):
        notes.append(
            "f_T starts from random weights; the paper's starts from Kinetics-400: give --init_weights FILE"
        )
    files = {}
    without = ", ".join(_roots_without_boxes(tasks))
    if without:
        files[_detector_url()] = (
            f"the person detector of blur and blacken (no person_boxes.csv in {without})"
        )
    for task in starts:
        options = dict(zip(task.arguments, task.arguments[1:], strict=False))
        if options.get("--init_weights") == "kinetics400":
            files[_kinetics_url(options["--ft_arch"])] = (
                f"f_T {options['--ft_arch']} (Kinetics-400, torchvision)"
            )
    for url, what in files.items():
        cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        if not cached.is_file():
            notes.append(
                f"weights of {what}: not at {cached}, so they will be downloaded from {url}"
            )
    return notes


def _roots_without_boxes(tasks: list[Task]) -> list[str]:
    """Data sets in which somebody has to look for people first."""
    roots = {root for task in tasks if task.method in NEED_BOXES for root in task.data}
    return sorted(root.name for root in roots if not (root / "person_boxes.csv").is_file())


def _kinetics_url(arch: str) -> str:
    from torchvision.models.video import MViT_V2_S_Weights, R3D_18_Weights

    return {"r3d_18": R3D_18_Weights, "mvitv2": MViT_V2_S_Weights}[arch].KINETICS400_V1.url


def _detector_url() -> str:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url
