"""Pictures for the report: the same test images and video frames as every method releases them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aux_code import config
from aux_code.datasets import ucf_crime
from aux_code.datasets.decode import count_frames, read_frames
from aux_code.datasets.image_files import read_image
from aux_code.datasets.surveillance import SurveillanceVideo
from aux_code.datasets.transforms import evaluation_transform, transform_boxes
from aux_code.datasets.vispr import Vispr
from aux_code.errors import UserError
from aux_code.model_loaders import apply_anonymizer, load_anonymizer
from aux_code.models.obfuscation import read_boxes
from aux_code.models.person_boxes import BOXES_FILE, PersonBoxes
from reproduction.methods import Method
from reproduction.plan import anonymizer_argument, miniature_root

log = logging.getLogger(__name__)

N_IMAGES = 5
N_VIDEO_FRAMES = 6


class Picture(NamedTuple):
    """A frame before anonymization."""

    pixels: np.ndarray
    """uint8 (H, W, 3) as decoded."""
    boxes: np.ndarray | None
    """(K, 4) person boxes x0, y0, x1, y1 in pixels, K may be 0; None where no file tells them."""
    label: str


class SampleSource:
    """Finds the sample pictures of a preset and seed and anonymizes them.

    Args:
        preset, seed: of the reproduction.
        size: height and width in pixels of the frames that the networks see.
    """

    def __init__(self, preset: str, seed: int, size: int):
        self.preset, self.seed, self.size = preset, seed, size
        self.vispr, self.ucf_crime = config.VISPR_ROOT, config.UCF_CRIME_ROOT
        if preset == "miniature":
            root = miniature_root(seed)
            self.vispr, self.ucf_crime = (
                root / config.VISPR_ROOT.name,
                root / config.UCF_CRIME_ROOT.name,
            )
        self._anonymizers: dict[str, nn.Module | None] = {}
        self._people: dict[Path, PersonBoxes | None] = {}

    def images(self) -> list[Picture]:
        """Test images that show private attributes: the first ones, by name, of different attribute
        sets."""
        data = Vispr(self.vispr, "test")
        shown: dict[frozenset[str], int] = {}
        for i, labels in enumerate(data.labels):
            present = frozenset(n for n, y in zip(data.attributes, labels, strict=True) if y)
            if len(present) >= 2 and present not in shown:
                shown[present] = i
            if len(shown) == N_IMAGES:
                break
        return [
            self._picture(self.vispr, data.paths[i], 0, _attribute_label(names))
            for names, i in shown.items()
        ]

    def videos(self) -> list[SurveillanceVideo]:
        """Three UCF-Crime test videos by a rule that looks at no score: the first of the first two
        anomalous categories and the first normal one, by name."""
        test = sorted(ucf_crime.load(self.ucf_crime).test, key=lambda video: video.name)
        anomalous = {
            video.category: video for video in reversed(test) if video.label and video.events
        }
        chosen = [anomalous[category] for category in sorted(anomalous)[:2]]
        return chosen + [video for video in test if not video.label][:1]

    def video_frames(self, video: SurveillanceVideo) -> tuple[list[Picture], list[int]]:
        """Frames spread over the video, and their places."""
        n_frames = count_frames(video.path)
        at = [int((i + 0.5) * n_frames / N_VIDEO_FRAMES) for i in range(N_VIDEO_FRAMES)]
        numbered = zip(read_frames(video.path, at), at, strict=True)
        return [
            Picture(f, self._boxes_of(self.ucf_crime, video.path, i), f"frame {i}")
            for f, i in numbered
        ], at

    def released(self, method: Method, pictures: Sequence[Picture]) -> np.ndarray | None:
        """What the method lets through: uint8 (n, size, size, 3), or None if its anonymizer is not
        there."""
        anonymizer = self._anonymizer(method)
        if anonymizer is None:
            return None
        if getattr(anonymizer, "requires_boxes", False) and any(
            picture.boxes is None for picture in pictures
        ):
            log.warning(
                "no pictures of %s: without person_boxes.csv they would show everybody",
                method.label,
            )
            return None
        frames = torch.cat(
            [evaluation_transform(picture.pixels[None], self.size) for picture in pictures]
        )
        boxes = [self._transformed_boxes(picture) for picture in pictures]
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                self.seed
            )  # an anonymizer may add noise; the same report twice shows the same pictures
            released = apply_anonymizer(anonymizer, frames, boxes)
        return (released.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    def _anonymizer(self, method: Method) -> nn.Module | None:
        if method.name not in self._anonymizers:
            try:
                self._anonymizers[method.name] = load_anonymizer(
                    anonymizer_argument(self.preset, self.seed, method)
                )
            except UserError as error:
                log.warning("no pictures of %s: %s", method.label, error)
                self._anonymizers[method.name] = None
        return self._anonymizers[method.name]

    def _transformed_boxes(self, picture: Picture) -> Tensor:
        if picture.boxes is None:
            return torch.zeros(0, 4)
        boxes = transform_boxes(picture.boxes, picture.pixels.shape[:2], self.size)
        return torch.from_numpy(boxes).float()

    def _picture(self, root: Path, path: Path, frame: int, label: str) -> Picture:
        return Picture(read_image(path), self._boxes_of(root, path, frame), label)

    def _boxes_of(self, root: Path, path: Path, frame: int) -> np.ndarray | None:
        """None if the data set has no boxes file."""
        if root not in self._people:
            file = root / BOXES_FILE
            self._people[root] = PersonBoxes(read_boxes(file)) if file.is_file() else None
        people = self._people[root]
        return None if people is None else people.of_frames(path, [frame])[0]


def _attribute_label(names: frozenset[str]) -> str:
    """Short names, one to a line."""
    return "\n".join(sorted(name.split("_", 1)[-1].replace("_", " ") for name in names))
