"""What an anonymizer releases of VISPR, in 8 bits, all that the attacker sees."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.datasets.decode import read_image
from aux_code.datasets.transforms import evaluation_images, transform_boxes
from aux_code.datasets.unreadable import UnreadableLog, UnreadableMedia
from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer, prepare_utility
from aux_code.model_loaders import apply_anonymizer, is_noisy, noise_keys
from aux_code.models.person_boxes import PersonBoxes
from aux_code.progress import progress

Boxes = list[Tensor] | None
"""Per image (K, 4) x0, y0, x1, y1 in its pixels; None where the anonymizer needs none."""


@dataclass
class ReleasedImages:
    """One split as the attacker gets it."""

    releases: list[Tensor]
    """Independent releases, each (N, 3, size, size) images or (N, feature_dim) features."""
    labels: Tensor
    """(N, n_attributes) in {0, 1}, float32."""
    names: list[str] = field(default_factory=list)
    """(N) file names."""
    unreadable: list[str] = field(default_factory=list)
    """Files of the split that did not decode and are missing above."""

    def release(self, epoch: int) -> Tensor:
        """The release that an epoch works on: with several, each epoch gets the next one."""
        return self.releases[epoch % len(self.releases)]

    def to(self, device: torch.device) -> "ReleasedImages":
        """On a GPU if that takes less than half of its free memory, else left in main memory."""
        n_bytes = sum(release.nbytes for release in self.releases)
        if device.type != "cuda" or n_bytes >= 0.5 * torch.cuda.mem_get_info(device)[0]:
            return self
        releases = [release.to(device) for release in self.releases]
        return replace(self, releases=releases, labels=self.labels.to(device))


@dataclass
class Splits:
    """Images (or features) of one attack, which learns from `train`; `test` chooses nothing."""

    train: ReleasedImages
    validation: ReleasedImages
    test: ReleasedImages


@dataclass
class Releaser:
    """Frozen f_A, and f_T at feature level, on a device.

    Args:
        anonymizer: frames (N, 3, H, W) in [0, 1] -> (N, 3, H, W); gets its inference form.
        device: where it runs.
        average_frames: independent releases of an image that are averaged.
        utility: network with `extract_features`, gets that form too; None at image level.
        clip_frames: frames of the still clip at feature level.
        storage: dtype of released images; features are float32.
        precision: in force, fp32 or bf16, in which f_A and f_T compute.
        seed: of the noise, with an image's name and the number of its release.
    """

    anonymizer: nn.Module
    device: torch.device
    average_frames: int = 1
    utility: nn.Module | None = None
    clip_frames: int = 16
    storage: torch.dtype = torch.float32
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        self.anonymizer = prepare_anonymizer(self.anonymizer, self.device, self.precision)
        if self.utility is not None:
            self.utility = prepare_utility(self.utility, self.device, self.precision)

    @torch.inference_mode()
    def __call__(
        self, frames: Tensor, boxes: Boxes, files: Sequence[Path], release: int = 0
    ) -> Tensor:
        """Release number `release` of images (N, 3, H, W) in [0, 1], read from these files.

        Returns images (N, 3, H, W) or features (N, F), on the CPU.
        """
        frames = frames.to(self.device, memory_format=torch.channels_last)
        if self.utility is None:
            released = self._mean_release(frames, boxes, files, release, 1)
            return released.to("cpu", self.storage).contiguous()
        n_frames = self.clip_frames if is_noisy(self.anonymizer) else 1
        stills = frames.repeat_interleave(n_frames, dim=0)  # (N*n, 3, H, W)
        still_boxes = boxes and [box for box in boxes for _ in range(n_frames)]
        released = self._mean_release(stills, still_boxes, files, release, n_frames)
        clips = released.unflatten(0, (-1, n_frames))  # (N, n, 3, H, W)
        clips = clips.expand(-1, self.clip_frames, -1, -1, -1).transpose(1, 2)  # (N, 3, T, H, W)
        return self.utility.extract_features(clips).float().cpu()

    def _mean_release(
        self, frames: Tensor, boxes: Boxes, files: Sequence[Path], release: int, n_frames: int
    ) -> Tensor:
        """Of `average_frames` releases; `n_frames` of each file."""
        total, n = 0, self.average_frames
        for number in range(n * release, n * (release + 1)):
            keys = [noise_keys(self.seed, file, range(n_frames), number) for file in files]
            noise = chain.from_iterable(keys)
            total = total + apply_anonymizer(self.anonymizer, frames, boxes, noise)
        return total / n


@dataclass
class ImageSource:
    """Decoded images of one VISPR split at evaluation geometry (centre crop 0.8, resized).

    Args:
        paths: image files.
        labels: (N, n_attributes) in {0, 1}.
        size: height and width in pixels.
        people: their boxes; None: the anonymizer needs none.
        log: counts and names files that do not decode.
        batch: images per pass through f_A; bounds its memory.
        n_workers: decoding threads.
    """

    paths: list[Path]
    labels: Tensor
    size: int
    people: PersonBoxes | None
    log: UnreadableLog
    batch: int = 64
    n_workers: int = 1

    def chunks(self) -> Iterator[tuple[Tensor, Boxes, list[int]]]:
        """Frames (n, 3, size, size) in [0, 1], boxes and indices of the files that decode."""
        numbered = iter(enumerate(self.paths))
        with ThreadPoolExecutor(self.n_workers) as pool:
            while batch := list(islice(numbered, self.batch)):
                decoded = pool.map(_read_or_error, [path for _, path in batch])
                images = {}
                for (i, path), image in zip(batch, decoded, strict=True):
                    if isinstance(image, UnreadableMedia):
                        self.log.record(path, image.reason)
                    else:
                        images[i] = image
                if images:
                    frames = evaluation_images(list(images.values()), self.size)
                    yield frames, self._boxes(images), list(images)

    def _boxes(self, images: dict[int, np.ndarray]) -> Boxes:
        if self.people is None:
            return None
        boxes = []
        for i, image in images.items():
            (found,) = self.people.of_frames(self.paths[i], (0,), image[None])
            found = transform_boxes(found, image.shape[:2], self.size)
            boxes.append(torch.as_tensor(found, dtype=torch.float32).reshape(-1, 4))  # (K, 4)
        return boxes


def release_images(
    source: ImageSource, releaser: Releaser, split: str, n_releases: int
) -> ReleasedImages:
    """Runs a split through f_A, `n_releases` times if f_A adds noise, else once."""
    n_releases = n_releases if is_noisy(releaser.anonymizer) else 1
    parts: list[list[Tensor]] = [[] for _ in range(n_releases)]
    kept: list[int] = []
    bar = progress(total=len(source.paths), description=f"release {split}")
    for frames, boxes, indices in source.chunks():
        files = [source.paths[i] for i in indices]
        for number, part in enumerate(parts):
            part.append(releaser(frames, boxes, files, number))
        kept += indices
        bar.update(len(indices))
    bar.close()
    if not kept:
        raise UserError(f"VISPR {split}: no image decodes; {source.log.path} names them")
    releases = [torch.cat(part) for part in parts]
    names = [source.paths[i].name for i in kept]
    return ReleasedImages(releases, source.labels[kept].float(), names, source.log.names)


def _read_or_error(path: Path) -> np.ndarray | UnreadableMedia:
    """The decoded image, or the error that says why not, for the thread that counts them."""
    try:
        return read_image(path)
    except UnreadableMedia as error:
        return error
