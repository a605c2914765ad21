"""What an anonymizer releases of VISPR, in 8 bits: all that the attacker sees.

Who attacks has f_A (its checkpoint, or the same camera) and photographs with labels. So he augments
his training images first and then sends them through f_A, anew in every epoch; the images that are
to be read, of validation and test, were released once.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aux_code.datasets import transforms
from aux_code.datasets.decode import read_image
from aux_code.datasets.transforms import Policy, evaluation_images, transform_boxes
from aux_code.datasets.unreadable import UnreadableLog, UnreadableMedia
from aux_code.devices import to_device
from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer, prepare_utility
from aux_code.model_loaders import apply_anonymizer, is_noisy, noise_keys
from aux_code.models.anonymizers import as_8_bit
from aux_code.models.person_boxes import PersonBoxes
from aux_code.progress import progress
from aux_code.runs import seeded_generator

Boxes = list[Tensor] | None
"""Per image (K, 4) x0, y0, x1, y1 in its pixels; None where the anonymizer needs none."""

AUGMENTATIONS = {
    "strong": replace(transforms.STRONG, grey_probability=0.1),
    "moderate": Policy((0.7, 0.9), flip_probability=0.5, brightness=0.1, contrast=0.1),
}
"""Name on the command line -> policy of the attacker's training images. Moderate: about the crop of
the evaluation, colours kept, for small images and few of them (ours)."""


@dataclass
class Releaser:
    """Frozen f_A, and f_T at feature level, on a device.

    Args:
        anonymizer: of `load_anonymizer`; gets its inference form.
        device: where it runs.
        seed: of the noise, with an image's name and the number of its release.
        average_frames: independent releases of an image that are averaged.
        utility: network with `extract_features`, gets that form too; None at image level.
        clip_frames: frames of the still clip at feature level.
        precision: in force, in which f_A and f_T compute.
    """

    anonymizer: nn.Module
    device: torch.device
    seed: int = 0
    average_frames: int = 1
    utility: nn.Module | None = None
    clip_frames: int = 16
    precision: str = "fp32"
    inverter: Callable[[Tensor], Tensor] | None = field(default=None, init=False)
    """What the attacker puts behind f_A: images (N, 3, H, W) in [0, 1] -> the same, in 8 bits."""

    def __post_init__(self) -> None:
        self.anonymizer = prepare_anonymizer(self.anonymizer, self.device, self.precision)
        if self.utility is not None:
            self.utility = prepare_utility(self.utility, self.device, self.precision)

    @property
    def requires_boxes(self) -> bool:
        """Whether f_A needs to know where the people are."""
        return getattr(self.anonymizer, "requires_boxes", False)

    @torch.no_grad()
    def __call__(
        self, frames: Tensor, boxes: Boxes, files: Sequence[Path], release: int = 0
    ) -> Tensor:
        """Release number `release` of images (N, 3, H, W) in [0, 1], which are of these files.

        Returns images (N, 3, H, W) in 8 bits (means and recovered ones, too), or features (N, F).
        """
        n_frames, n = 1, 1
        if is_noisy(self.anonymizer):
            n_frames, n = 1 if self.utility is None else self.clip_frames, self.average_frames
        numbers, indices = range(n * release, n * (release + 1)), range(n_frames)
        keys = (key for file in files for i in indices for number in numbers
                for key in noise_keys(self.seed, file, (i,), number))  # fmt: skip
        frames = frames.to(self.device, memory_format=torch.channels_last)
        released = apply_anonymizer(self.anonymizer, frames, boxes, keys, n_frames * n)
        released = as_8_bit(released.unflatten(0, (-1, n)).mean(1))  # (N*n_frames, 3, H, W)
        if self.inverter is not None:
            released = self.inverter(released)
        if self.utility is None:
            return released
        clips = released.unflatten(0, (-1, n_frames)).transpose(1, 2)  # (N, 3, n_frames, H, W)
        clips = clips.expand(-1, -1, self.clip_frames, -1, -1)
        return self.utility.extract_features(clips).float()


@dataclass
class ReleasedImages:
    """Validation or test images as the attacker gets them: a centre crop of each, released once."""

    released: Tensor
    """(N, 3, size, size) uint8, or features (N, feature_dim) float32; on the CPU."""
    labels: Tensor
    """(N, n_attributes) in {0, 1}, float32."""
    names: list[str] = field(default_factory=list)
    """(N) file names."""
    unreadable: list[str] = field(default_factory=list)
    """Files of the split that did not decode and are missing above."""


@dataclass
class TrainingImages:
    """The images on which the attacker learns, and how he gets them."""

    sources: list[Tensor]
    """(N) uint8 (H, W, 3), as large as the smallest crop needs."""
    boxes: list[np.ndarray]
    """(N) person boxes (K, 4) as shares of the image; empty where f_A needs none."""
    labels: Tensor
    """(N, n_attributes) in {0, 1}, float32."""
    files: list[Path]
    """(N)."""
    unreadable: list[str]
    """Files of the split that did not decode and are missing above."""
    releaser: Releaser
    policy: Policy
    size: int
    """Height and width of the crops in pixels."""

    def crops(self, batch: Sequence[int], epoch: int) -> tuple[Tensor, Boxes]:
        """Augmented images (n, 3, size, size) in [0, 1], and the people's boxes in them.

        They depend on seed, epoch and file name alone.
        """
        device, seed = self.releaser.device, self.releaser.seed
        names = [self.files[i].name for i in batch]
        generators = [seeded_generator(seed, "crop", epoch, name) for name in names]
        draws = transforms.draw(self.policy, generators, len(names))
        images = [transforms.whole(to_device(self.sources[i], device)[None]) for i in batch]
        frames = transforms.augment_crops(images, draws, self.policy, self.size)[:, :, 0]
        if not self.boxes:
            return frames, None
        placed = (
            transform_boxes(self.boxes[i], (1, 1), self.size, drawn)
            for i, drawn in zip(batch, draws, strict=True)
        )
        return frames, [torch.as_tensor(own, dtype=torch.float32) for own in placed]

    def pairs(self, batch: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """This epoch's crops (n, 3, size, size) in [0, 1], and `release` of them."""
        crops, boxes = self.crops(batch, epoch)
        return crops, self.releaser(crops, boxes, [self.files[i] for i in batch], epoch)

    def release(self, batch: Sequence[int], epoch: int) -> Tensor:
        """What f_A makes of this epoch's crops: images (n, 3, size, size) or features (n, F)."""
        return self.pairs(batch, epoch)[1]


@dataclass
class Splits:
    """Images (or features) of one attack, which learns from `train`; `test` chooses nothing."""

    train: TrainingImages
    validation: ReleasedImages
    test: ReleasedImages


@dataclass
class ImageSource:
    """The files of one VISPR split.

    Args:
        split: for messages.
        paths: image files.
        labels: (N, n_attributes) in {0, 1}.
        size: height and width of the released images in pixels.
        people: their boxes; None: the anonymizer needs none.
        log: counts and names files that do not decode.
        batch: images per pass through f_A; bounds its memory.
        n_workers: decoding threads.
    """

    split: str
    paths: list[Path]
    labels: Tensor
    size: int
    people: PersonBoxes | None
    log: UnreadableLog
    batch: int = 64
    n_workers: int = 1

    def chunks(self) -> Iterator[dict[int, np.ndarray]]:
        """Index -> uint8 (H, W, 3), of the files that decode; UserError if none does, or too many
        do not, once all have been read."""
        numbered, found = iter(enumerate(self.paths)), False
        bar = progress(total=len(self.paths), description=f"read {self.split}")
        with ThreadPoolExecutor(self.n_workers) as pool:
            while batch := list(islice(numbered, self.batch)):
                decoded = pool.map(_read_or_error, [path for _, path in batch])
                images = {}
                for (i, path), image in zip(batch, decoded, strict=True):
                    if isinstance(image, UnreadableMedia):
                        self.log.record(path, image.reason)
                    else:
                        images[i] = image
                bar.update(len(batch))
                found |= bool(images)
                if images and not self.log.are_too_many:
                    yield images
        bar.close()
        self.log.stop_if_too_many()
        if not found:
            raise UserError(f"VISPR {self.split}: no image decodes; {self.log.path} names them")

    def boxes(self, index: int, image: np.ndarray) -> np.ndarray:
        """The people (K, 4) on an image, as shares of its sides."""
        (found,) = self.people.of_frames(self.paths[index], (0,), image[None])
        height, width = image.shape[:2]
        return np.asarray(found, np.float64).reshape(-1, 4) / [width, height, width, height]


def release_images(source: ImageSource, releaser: Releaser) -> ReleasedImages:
    """A split at evaluation geometry (centre crop 0.8, resized), through f_A once."""
    parts: list[Tensor] = []
    kept: list[int] = []
    for images in source.chunks():
        frames, boxes = evaluation_images([*images.values()], source.size), None
        if releaser.requires_boxes:
            shares = (source.boxes(i, image) for i, image in images.items())
            placed = (transform_boxes(own, (1, 1), source.size) for own in shares)
            boxes = [torch.as_tensor(own, dtype=torch.float32) for own in placed]
        released = releaser(frames, boxes, [source.paths[i] for i in images])
        parts.append(released.cpu() if released.ndim == 2 else as_bytes(released))
        kept += images
    names = [source.paths[i].name for i in kept]
    labels = source.labels[kept].float()
    return ReleasedImages(torch.cat(parts), labels, names, source.log.names)


def training_images(source: ImageSource, releaser: Releaser, policy: Policy) -> TrainingImages:
    """A split in memory, to be augmented and released in every epoch."""
    images, boxes, kept = [], [], []
    least = round(source.size / policy.crop_factor[0])
    for chunk in source.chunks():
        for i, image in chunk.items():
            images.append(_reduced(image, least))
            if releaser.requires_boxes:
                boxes.append(source.boxes(i, image))
        kept += chunk
    files, labels = [source.paths[i] for i in kept], source.labels[kept].float()
    return TrainingImages(
        images, boxes, labels, files, source.log.names, releaser, policy, source.size
    )


def pixels(released: Tensor) -> Tensor:
    """Stored images (N, 3, H, W) uint8 -> float32 in [0, 1]; features as they are."""
    return released.float() / 255 if released.dtype == torch.uint8 else released


def as_bytes(images: Tensor) -> Tensor:
    """(N, 3, H, W) of multiples of 1 / 255 -> uint8, on the CPU."""
    return (images * 255).round().to("cpu", torch.uint8).contiguous()


def _reduced(image: np.ndarray, side: int) -> Tensor:
    """uint8 (H, W, 3), where it is larger a square of `side` pixels, of which crops are made.

    By Lanczos, which leaves what follows sharp: a crop is resampled once more.
    """
    if min(image.shape[:2]) > side:
        image = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    return torch.tensor(np.asarray(image))


def _read_or_error(path: Path) -> np.ndarray | UnreadableMedia:
    """The decoded image, or the error that says why not, for the thread that counts them."""
    try:
        return read_image(path)
    except UnreadableMedia as error:
        return error
