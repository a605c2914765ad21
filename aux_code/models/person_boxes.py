"""Boxes of people by a COCO detector, for the blurring and blackening baselines (paper section 4)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from aux_code.errors import UserError
from aux_code.models.weight_files import load_strictly, read_weight_file

COCO_PERSON = 1
"""Class index of people in torchvision's COCO detectors."""


def load_person_detector(weights_file: Path | str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """torchvision's Faster R-CNN (ResNet-50, COCO), in eval mode.

    Args:
        weights_file: local copy of the weights; None: torchvision's own mechanism (its cache, else its download).
        device: where it runs.

    Raises:
        UserError: no such file, weights that do not fit, or no network (says which file to put where).
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    if weights_file is not None:
        load_strictly(detector, read_weight_file(weights_file, "detector"))
        return detector.eval().to(device)
    try:
        detector.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise UserError(
            f"the weights of the person detector could not be downloaded ({error}). Without a network, fetch "
            f"{weights.url} elsewhere and put it at {cached}"
        ) from error
    return detector.eval().to(device)


@torch.inference_mode()
def detect_person_boxes(frames: Tensor, detector: nn.Module, threshold: float = 0.5, chunk: int = 4) -> list[Tensor]:
    """Finds people.

    Args:
        frames: (N, 3, H, W) in [0, 1], on the detector's device.
        detector: of torchvision's detection interface: list of images -> list of {"boxes", "labels", "scores"}.
        threshold: least confidence, in [0, 1] (ours; the paper does not state one).
        chunk: frames per pass.

    Returns:
        N tensors (K, 4) on the CPU: x0, y0, x1, y1 in pixels of the frames as given.
    """
    boxes = []
    for part in frames.split(chunk):
        for found in detector(list(part)):
            people = (found["labels"] == COCO_PERSON) & (found["scores"] >= threshold)
            boxes.append(found["boxes"][people].cpu())
    return boxes
