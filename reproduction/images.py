"""Images for the report: the same test images and video frames as every method releases them."""

import io
import logging
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aux_code import config
from aux_code.datasets import ucf_crime
from aux_code.datasets.decode import count_frames, read_frames
from aux_code.datasets.image_files import read_image
from aux_code.datasets.person_box_files import read_boxes
from aux_code.datasets.surveillance import SurveillanceVideo
from aux_code.datasets.transforms import evaluation_transform, transform_boxes
from aux_code.datasets.vispr import Vispr
from aux_code.errors import UserError
from aux_code.model_loaders import apply_anonymizer, load_anonymizer, noise_keys
from aux_code.models.person_boxes import BOXES_FILE, PersonBoxes
from reproduction.methods import Method
from reproduction.plan import anonymizer_argument, miniature_root, run_prefix

log = logging.getLogger(__name__)

N_IMAGES, N_VIDEO_FRAMES, MAX_EPOCHS_SHOWN = 5, 6, 6
TAG, PADDING = "raw above anonymized", 2  # of the grids that train_anonymizer.py logs each epoch


class Sample(NamedTuple):
    """An image before anonymization: of a file, or frame number `place` of a video."""

    frame: Tensor  # (3, size, size) in [0, 1]
    boxes: Tensor | None  # (K, 4) of people, x0, y0, x1, y1 in pixels; None: no file tells them
    label: str
    path: Path = Path()
    place: int = 0


class SampleSource:
    """Finds the sample images of a preset and seed and anonymizes them.

    Args:
        preset, seed, render_seed: of the reproduction.
        size: height and width in pixels of the frames that the networks see.
        show_raw: also release real data unanonymized; drawn people always may be seen.
    """

    def __init__(
        self, preset: str, seed: int, size: int, show_raw: bool = False,
        render_seed: int | None = None,
    ):  # fmt: skip
        self.prefix, self.seed, self.size = run_prefix(preset, render_seed), seed, size
        self.show_raw = show_raw or preset == "miniature"
        self.roots = [config.VISPR_ROOT, config.UCF_CRIME_ROOT]
        if preset == "miniature":
            root = miniature_root(seed if render_seed is None else render_seed)
            self.roots = [root / usual.name for usual in self.roots]
        self._anonymizer = cache(self._load_anonymizer)

    def images(self) -> list[Sample]:
        """The first test images, by name, of different sets of two private attributes or more."""
        data, shown = Vispr(self.roots[0], "test"), {}
        for path, labels in zip(data.paths, data.labels, strict=True):
            present = [n for n, y in zip(data.attributes, labels, strict=True) if y]
            names = sorted(name.split("_", 1)[-1].replace("_", " ") for name in present)
            if len(names) >= 2 and len(shown) < N_IMAGES:
                shown.setdefault("\n".join(names), path)
        people = _people_in(self.roots[0])
        return [self._sample(people, p, 0, read_image(p), names) for names, p in shown.items()]

    def videos(self) -> list[SurveillanceVideo]:
        """By name, the first UCF-Crime test video of the first two categories, the first normal."""
        test = sorted(ucf_crime.load(self.roots[1]).test, key=lambda video: video.name)
        anomalous = {v.category: v for v in reversed(test) if v.label and v.events}
        chosen = [anomalous[category] for category in sorted(anomalous)[:2]]
        return chosen + [video for video in test if not video.label][:1]

    def video_frames(self, video: SurveillanceVideo) -> tuple[list[Sample], list[int]]:
        """Frames spread over the video, and their places."""
        path, people = video.path, _people_in(self.roots[1])
        n_frames = count_frames(path)
        at = [int((i + 0.5) * n_frames / N_VIDEO_FRAMES) for i in range(N_VIDEO_FRAMES)]
        frames = zip(at, read_frames(path, at), strict=True)
        return [self._sample(people, path, i, frame, f"frame {i}") for i, frame in frames], at

    def released(self, method: Method, samples: Sequence[Sample]) -> np.ndarray | None:
        """As released, uint8 (n, size, size, 3); None: may not be shown, or no anonymizer."""
        if not self.show_raw and (method.name == "raw" or method.kind == "reconstruction"):
            return None
        anonymizer = self._anonymizer(method)
        if anonymizer is None or not samples:
            return None
        if getattr(anonymizer, "requires_boxes", False) and any(s.boxes is None for s in samples):
            log.warning("no images of %s: without person_boxes.csv all would show", method.label)
            return None
        boxes = [torch.zeros(0, 4) if sample.boxes is None else sample.boxes for sample in samples]
        keys = [noise_keys(self.seed, sample.path, [sample.place]) for sample in samples]
        frames = torch.stack([sample.frame for sample in samples])  # (n, 3, size, size)
        with torch.inference_mode():
            released = apply_anonymizer(anonymizer, frames, boxes, chain.from_iterable(keys))
        return (released * 255).round().byte().permute(0, 2, 3, 1).numpy()

    def _load_anonymizer(self, method: Method) -> nn.Module | None:
        try:
            return load_anonymizer(anonymizer_argument(self.prefix, self.seed, method))
        except UserError as error:
            log.warning("no images of %s: %s", method.label, error)
            return None

    def _sample(
        self, people: PersonBoxes | None, path: Path, place: int, pixels: np.ndarray, label: str
    ) -> Sample:
        frame, boxes = evaluation_transform(pixels[None], self.size)[0], None
        if people is not None:
            placed = transform_boxes(
                people.of_frames(path, [place])[0], pixels.shape[:2], self.size
            )
            boxes = torch.from_numpy(placed).float()
        return Sample(frame, boxes, label, path, place)


@cache
def _people_in(root: Path) -> PersonBoxes | None:
    file = root / BOXES_FILE
    return PersonBoxes(read_boxes(file)) if file.is_file() else None


def training_images(log_folder: Path) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(epoch, raw, anonymized), uint8 (n, H, W, 3), of a few epochs, first and last too (Fig. 11).

    Empty without a log.
    """
    if not any(log_folder.glob("events.out.tfevents.*")):
        return []
    # imported here: it takes a second or two, which a report without trainings need not pay
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells where each file ends
    events = EventAccumulator(str(log_folder), size_guidance={"images": 0})
    events.Reload()
    if TAG not in events.Tags()["images"]:
        return []
    # of an epoch that an interrupted run repeated the last grid counts
    grids = sorted({e.step: e.encoded_image_string for e in events.Images(TAG)}.items())
    places = np.linspace(0, len(grids) - 1, min(len(grids), MAX_EPOCHS_SHOWN)).round()
    return [_take_apart(*grids[int(place)]) for place in places]


def _take_apart(epoch: int, png: bytes) -> tuple[int, np.ndarray, np.ndarray]:
    grid = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    side = (grid.shape[0] - PADDING) // 2  # two rows of square images, each with its padding
    n = (grid.shape[1] - PADDING) // side
    cells = grid[PADDING:, PADDING:].reshape(2, side, n, side, 3).swapaxes(1, 2)  # (2, n, H, W, 3)
    raw, anonymized = cells[:, :, : side - PADDING, : side - PADDING]
    return epoch, raw, anonymized
