"""Boxes of people for the blurring and blackening baselines (paper section 4): read or detected.

Every stage opens them by `open_person_boxes`, so that the same people are hidden in all of them.
"""

import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.artefacts import sha256
from aux_code.datasets.lists import some_of
from aux_code.datasets.person_box_files import read_boxes
from aux_code.errors import UserError
from aux_code.models.weight_files import download, load_strictly, read_weight_file

log = logging.getLogger(__name__)

Device = torch.device | str

COCO_PERSON = 1
"""Class index of people in torchvision's COCO detectors."""
BOXES_FILE = "person_boxes.csv"
"""Name of the boxes file in a data set's folder."""
SHORTEST_SIDE = 800
"""Pixels to which the detector scales the shorter side of a frame (torchvision's own)."""
_CHUNK = 4
"""Frames per pass of the detector."""


class PersonBoxes:
    """Where the people are, in pixels of images and frames as decoded; several threads may ask.

    Args:
        rows: what `read_boxes` gives; None: the detector looks at the frames.
        detector: see `detect_person_boxes`; only without rows.
        device: where the detector runs.
        origin: {"source": what they come from, "sha256": of the file}.
    """

    def __init__(
        self,
        rows: Mapping[str, Mapping[int, np.ndarray]] | None = None,
        detector: nn.Module | None = None,
        device: Device = "cpu",
        origin: dict[str, str] | None = None,
    ):
        if (rows is None) == (detector is None):
            raise ValueError("boxes come from rows or from a detector")
        self.rows, self.detector, self.device = rows, detector, device
        self.origin = origin or {"source": "rows" if detector is None else "detector", "sha256": ""}
        self._lock = threading.Lock()

    @property
    def needs_frames(self) -> bool:
        """Whether boxes come from the frames themselves."""
        return self.rows is None

    def of_frames(
        self, path: Path, indices: Sequence[int], frames: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Boxes (K, 4) float32, x0, y0, x1, y1, of each of T frames.

        Args:
            path: image, video or folder of frames; its rows are those whose `file` ends the path.
            indices: numbers of the frames in the video, from 0; 0 for an image.
            frames: uint8 (T, H, W, 3), where `needs_frames`.
        """
        if self.rows is not None:
            of_video = self.rows.get(self._name_of(path), {})
            return [of_video.get(int(i), np.zeros((0, 4), np.float32)) for i in indices]
        boxes: list[np.ndarray] = []
        for start in range(0, len(frames), _CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(frames[start : start + _CHUNK]))
            part = part.to(self.device).permute(0, 3, 1, 2).float() / 255  # (T, 3, H, W)
            with self._lock:
                found = detect_person_boxes(part, self.detector)
            boxes += [of_frame.numpy() for of_frame in found]
        return boxes

    def require(self, paths: Iterable[Path]) -> None:
        """Checks that the file is about these images or videos; one without a row has no people.

        Raises:
            UserError: it has a row for none of them, so that everybody in them would stay visible.
        """
        if self.rows is None:
            return
        paths = list(paths)
        unknown = [path for path in paths if self._name_of(path) is None]
        source = self.origin["source"]
        if unknown and len(unknown) == len(paths):
            others = f" or any other of {len(paths)} files" if len(paths) > 1 else ""
            remedy = "so nobody would be hidden: its column `file` must be the end of that path"
            raise UserError(f"{source} has no row for {unknown[0]}{others}, {remedy}")
        for line in some_of(f"of {len(paths)} files, taken as without people", unknown):
            log.warning("%s has no row for %s", source, line)

    def _name_of(self, path: Path) -> str | None:
        """The longest `file` of the rows that is the end of a path, as given or without links."""
        for full in (os.path.abspath(path), os.path.realpath(path)):
            parts = Path(full).parts[1:]
            for first in range(len(parts)):
                if (end := "/".join(parts[first:])) in self.rows:
                    return end
        return None


def find_boxes_file(boxes: Path | None, detector_weights: Path | None, place: Path) -> Path | None:
    """`--boxes`, else without weights the nearest person_boxes.csv at or above the data.

    None: a detector looks. A UserError if both options were given.
    """
    if boxes is not None and detector_weights is not None:
        raise UserError("--boxes and --detector_weights are two sources of boxes: give one of them")
    if boxes is not None or detector_weights is not None:
        return boxes
    place = Path(os.path.abspath(place))
    files = (folder / BOXES_FILE for folder in (place, *place.parents))
    return next((file for file in files if file.is_file()), None)


def boxes_origin(boxes: Path | None, detector_weights: Path | None, place: Path) -> dict[str, str]:
    """{"source", "sha256"} of what `open_person_boxes` would open; torchvision's: no digest."""
    file = find_boxes_file(boxes, detector_weights, place) or detector_weights
    if file is None:
        return {"source": "fasterrcnn_resnet50_fpn, COCO_V1", "sha256": ""}
    return {"source": str(file), "sha256": sha256(file) if Path(file).is_file() else ""}


def open_person_boxes(
    boxes: Path | None, detector_weights: Path | None, place: Path, device: Device = "cpu"
) -> PersonBoxes:
    """The boxes as the options `--boxes` and `--detector_weights` say.

    Args:
        boxes: a CSV file as of `read_boxes`.
        detector_weights: local weights of torchvision's Faster R-CNN.
        place: the data set's folder, or one video, at or above which person_boxes.csv is taken if
            neither is given; without one the detector looks, with torchvision's weights.

    Raises:
        UserError: both options, a file that cannot be read, or no weights (says what to put where).
    """
    origin = boxes_origin(boxes, detector_weights, place)
    file = find_boxes_file(boxes, detector_weights, place)
    log.info("person boxes from %s", origin["source"])
    if file is not None:
        return PersonBoxes(read_boxes(file), origin=origin)
    detector = load_person_detector(detector_weights, device)
    return PersonBoxes(detector=detector, device=device, origin=origin)


def load_person_detector(
    weights_file: Path | str | None = None, device: Device = "cpu"
) -> nn.Module:
    """torchvision's Faster R-CNN (ResNet-50, COCO), in eval mode.

    `weights_file`: local copy of the weights; None: torchvision's cache, else its download. A
    UserError if it is absent or does not fit, or without a network (says what to put where).
    """
    from torchvision.models import detection

    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 91}
    detector = detection.fasterrcnn_resnet50_fpn(**options, min_size=SHORTEST_SIDE)
    if weights_file is not None:
        load_strictly(detector, read_weight_file(weights_file, "detector"))
        return detector.eval().to(device)
    remedy = (
        "give it by --detector_weights FILE or put it at {cached}; or give the boxes of the people "
        f"as a file: --boxes, or {BOXES_FILE} in the data set's folder"
    )
    weights = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    detector.load_state_dict(download(weights, "weights of the person detector", remedy).state)
    return detector.eval().to(device)


@torch.inference_mode()
def detect_person_boxes(
    frames: Tensor, detector: nn.Module, threshold: float = 0.5, chunk: int = _CHUNK
) -> list[Tensor]:
    """Finds people in frames (N, 3, H, W) in [0, 1], `chunk` of them per pass.

    Args:
        detector: as torchvision's: list of images -> list of {"boxes", "labels", "scores"}.
        threshold: least confidence, in [0, 1] (ours; the paper does not state one).

    Returns:
        N tensors (K, 4) on the CPU: x0, y0, x1, y1 in pixels of the frames as given.
    """
    boxes = []
    for part in frames.split(chunk):
        for found in detector(list(part)):
            people = (found["labels"] == COCO_PERSON) & (found["scores"] >= threshold)
            boxes.append(found["boxes"][people].cpu())
    return boxes
