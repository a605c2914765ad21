"""Batches of stage 1: clips of videos and views of images, decoded, sampled and augmented.

What a batch holds depends on (seed, epoch, position of the sample) alone: not on workers, not on
where a run was interrupted. So a resumed run sees the batches that it would have seen. Under
torchrun each rank reads a contiguous share of every batch; batch sizes are those of all ranks
together.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aux_code import config
from aux_code.datasets.clip_sampling import random_clip, triplet_clips, uniform_clips
from aux_code.datasets.decode import DecodedCache, UnreadableMedia
from aux_code.datasets.transforms import (
    BUDGET_VIEWS,
    MODERATE,
    MODERATE_VIEWS,
    STRONG,
    Policy,
    augment_batch,
    augment_images,
)
from aux_code.datasets.ucf101 import Ucf101, Ucf101Item
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.datasets.vispr import Vispr
from aux_code.devices import keep_freed_memory
from aux_code.distributed import any_rank, gather_objects, share, world_size
from aux_code.errors import UserError
from aux_code.models.person_boxes import PersonBoxes
from aux_code.runs import seeded_generator

log = logging.getLogger(__name__)


class ClipBatch(NamedTuple):
    """Clips of B videos."""

    clips: Tensor
    """(K, B, 3, T, H, W) in [0, 1]: K views of each video. K = 1: anchor. K = 3: anchor, positive,
    negative. K = 2: two clips of each video. K = 8 (LLTC): four times in a first view, then the
    same four in a second view."""
    labels: Tensor
    """(B,) class indices."""
    person_masks: Tensor | None
    """(K, B, 1, T, H, W) in {0, 1}: where persons are, cropped and flipped like the clips; None
    unless asked for."""
    names: tuple[str, ...]
    """(B,) files, for messages."""

    def to(self, device: torch.device) -> "ClipBatch":
        """The batch on `device`."""
        masks = (
            None if self.person_masks is None else self.person_masks.to(device, non_blocking=True)
        )
        clips, labels = (x.to(device, non_blocking=True) for x in (self.clips, self.labels))
        return self._replace(clips=clips, labels=labels, person_masks=masks)


class ImageBatch(NamedTuple):
    """Two views of N images."""

    views: Tensor
    """(2, N, 3, H, W) in [0, 1]."""
    names: tuple[str, ...]
    """(N,) files, for messages."""

    def to(self, device: torch.device) -> "ImageBatch":
        """The batch on `device`."""
        return self._replace(views=self.views.to(device, non_blocking=True))


@dataclass(frozen=True)
class Sampling:
    """How a sample becomes clips."""

    clip_length: int
    stride: int
    size: int
    views: str
    """"ce" (1 clip), "triplet" (3), "invariance" (2) or "lltc" (4 times x 2 views)."""
    negative_distance: int
    augmentation: str
    seed: int


class _Sample(NamedTuple):
    arrays: list[np.ndarray]
    keys: tuple
    """Of the sample's generators: view k is drawn from seeded_generator(*keys, k)."""
    label: int
    name: str
    masks: list[np.ndarray] | None = None


AUGMENTATIONS = {"strong": STRONG, "moderate": MODERATE}
"""Name on the command line -> policy for clips."""
VIEW_AUGMENTATIONS = {"strong": BUDGET_VIEWS, "moderate": MODERATE_VIEWS}
"""Name on the command line -> policy for the two views of an image."""


class ClipSamples(Dataset):
    """Map from (epoch, index) to the decoded frames of one video's clips; None if the file does not
    decode."""

    def __init__(
        self, videos: Sequence[Ucf101Item], sampling: Sampling, cache: DecodedCache, boxes=None
    ):
        self.videos, self.sampling, self.cache, self.boxes = videos, sampling, cache, boxes

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> _Sample | UnreadableMedia:
        epoch, index = key
        video, sampling = self.videos[index], self.sampling
        generator = seeded_generator(sampling.seed, "clip", epoch, index)
        try:
            n_frames = self.cache.count_frames(video.path)
            clips = clip_indices(n_frames, sampling, generator)
            unique, inverse = np.unique(np.concatenate(clips), return_inverse=True)
            frames = self.cache.read_frames(video.path, unique)
        except UnreadableMedia as error:
            return error
        views = np.split(inverse, len(clips))
        masks = None
        if self.boxes is not None:
            painted = self.boxes.masks(video.path, unique, frames.shape[1:3])
            masks = [painted[places] for places in views]
        keys = (sampling.seed, "augment", epoch, index)
        return _Sample(
            [frames[places] for places in views], keys, video.label, str(video.path), masks
        )


def clip_indices(n_frames: int, sampling: Sampling, generator: torch.Generator) -> list[np.ndarray]:
    """Frame indices of the K clips of one sample; see `ClipBatch.clips`."""
    length, stride = sampling.clip_length, sampling.stride
    if sampling.views == "ce":
        return [random_clip(n_frames, length, stride, generator)]
    if sampling.views == "lltc":
        times = list(uniform_clips(n_frames, length, stride, 4))
        return times + times
    triplet = triplet_clips(n_frames, length, stride, generator, sampling.negative_distance or None)
    return [triplet.anchor, triplet.negative] if sampling.views == "invariance" else list(triplet)


class ImageSamples(Dataset):
    """Map from (epoch, index) to a decoded image."""

    def __init__(self, paths: Sequence[Path], cache: DecodedCache, seed: int):
        self.paths, self.cache, self.seed = paths, cache, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> _Sample | UnreadableMedia:
        epoch, index = key
        try:
            image = self.cache.read_image(self.paths[index])
        except UnreadableMedia as error:
            return error
        return _Sample(
            [image, image], (self.seed, "view", epoch, index), -1, str(self.paths[index])
        )


class _CollateClips:
    def __init__(self, size: int, policy: Policy):
        self.size, self.policy = size, policy
        # Without colours and erasing: where the crop and the flip take a mask.
        self.geometry = Policy(policy.crop_factor, flip_probability=policy.flip_probability)

    def __call__(
        self, samples: list[_Sample | UnreadableMedia]
    ) -> tuple[ClipBatch | None, list[UnreadableMedia]]:
        good, bad = _split(samples)
        if not good:
            return None, bad
        n_views = len(good[0].arrays)
        arrays = [sample.arrays[k] for k in range(n_views) for sample in good]
        generators = [seeded_generator(*sample.keys, k) for k in range(n_views) for sample in good]
        clips = augment_batch(arrays, self.policy, self.size, generators).unflatten(
            0, (n_views, len(good))
        )
        labels = torch.tensor([sample.label for sample in good])
        return ClipBatch(
            clips, labels, self._masks(good, n_views), tuple(sample.name for sample in good)
        ), bad

    def _masks(self, samples: list[_Sample], n_views: int) -> Tensor | None:
        """The same crops and flips of the person masks: every policy makes the same draws from
        equal generators."""
        if samples[0].masks is None:
            return None
        masks = [sample.masks[k] for k in range(n_views) for sample in samples]
        generators = [
            seeded_generator(*sample.keys, k) for k in range(n_views) for sample in samples
        ]
        moved = augment_batch(masks, self.geometry, self.size, generators)[:, :1] >= 0.5
        return moved.float().unflatten(0, (n_views, len(samples)))


class _CollateImages:
    def __init__(self, size: int, policy: Policy):
        self.size, self.policy = size, policy

    def __call__(
        self, samples: list[_Sample | UnreadableMedia]
    ) -> tuple[ImageBatch | None, list[UnreadableMedia]]:
        good, bad = _split(samples)
        if not good:
            return None, bad
        arrays = [sample.arrays[k] for k in range(2) for sample in good]
        generators = [seeded_generator(*sample.keys, k) for k in range(2) for sample in good]
        views = augment_images(arrays, self.policy, self.size, generators).unflatten(
            0, (2, len(good))
        )
        return ImageBatch(views, tuple(sample.name for sample in good)), bad


def _split(samples: list[_Sample | UnreadableMedia]) -> tuple[list[_Sample], list[UnreadableMedia]]:
    good = [sample for sample in samples if isinstance(sample, _Sample)]
    bad = [sample for sample in samples if isinstance(sample, UnreadableMedia)]
    if world_size() > 1 and good:  # losses over all ranks need shares of one size
        good += [good[i % len(good)] for i in range(len(bad))]
    return good, bad


def _begin_loading(worker: int) -> None:
    """Begins a decoding process.

    Ctrl-C and schedulers signal the whole process group; the training saves first, then ends its
    workers. Pictures and clips are large temporaries: an allocator that keeps what was freed
    decodes and augments a quarter faster.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_freed_memory()


class BatchSource:
    """Endless, seekable batches of one kind: batch `step` of the whole training, whatever was read
    before.

    Args:
        samples: ClipSamples or ImageSamples.
        collate: list of samples -> (batch, errors).
        batch_size: samples per batch, of all ranks together; the last, incomplete batch of an epoch
            is filled from the next epoch's order.
        n_workers: decoding processes.
        unreadable: counts and names what does not decode.
        seed: of the order.

    Raises:
        UserError: the ranks cannot share a batch equally.
    """

    def __init__(self, samples: Dataset, collate: Callable, batch_size: int, n_workers: int, unreadable: UnreadableLog,
                 seed: int):  # fmt: skip
        self.samples, self.collate, self.batch_size = samples, collate, batch_size
        self.n_workers, self.unreadable, self.seed = n_workers, unreadable, seed
        if batch_size % world_size():
            raise UserError(
                f"{world_size()} processes cannot share batches of {batch_size} equally; change --batch_videos and "
                "--batch_images, which are those of all processes together, or --nproc_per_node"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches after which every sample was seen once."""
        return max(1, -(-len(self.samples) // self.batch_size))

    def batches(self, first_step: int, n_steps: int) -> Iterator[ClipBatch | ImageBatch]:
        """Batches first_step, ..., first_step + n_steps - 1; of each, this rank's share.

        Raises:
            UserError: no file of a batch is readable, or too many of the data set are not.
        """
        keys = [self._keys(step) for step in range(first_step, first_step + n_steps)]
        loader = DataLoader(
            self.samples, batch_sampler=keys, collate_fn=self.collate, num_workers=self.n_workers,
            worker_init_fn=_begin_loading,
            pin_memory=torch.cuda.is_available(), persistent_workers=False,
        )  # fmt: skip
        for batch, errors in loader:
            # every rank counts what any of them met, so that all of them stop or none
            met = gather_objects((batch is None, errors)) if any_rank(bool(errors)) else []
            for error in (error for _, share_of_errors in met for error in share_of_errors):
                self.unreadable.record(error.path, error.reason)
            lost = [
                str(error.path)
                for is_lost, share_of_errors in met
                if is_lost
                for error in share_of_errors
            ]
            if lost:
                raise UserError(
                    f"not one file of a batch is readable: {', '.join(lost)}; replace them or enlarge the batches"
                )
            yield batch

    def _keys(self, step: int) -> list[tuple[int, int]]:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        n = len(self.samples)
        return share([(place // n, int(self._order(place // n)[place % n])) for place in places])

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_ordered", None) is None or self._ordered[0] != epoch:
            order = torch.randperm(
                len(self.samples), generator=seeded_generator(self.seed, "order", epoch)
            )
            self._ordered = (epoch, order.numpy())
        return self._ordered[1]


def clip_source(
    videos: Sequence[Ucf101Item],
    sampling: Sampling,
    cache: DecodedCache,
    params,
    folder: Path,
    boxes=None,
) -> BatchSource:
    """Batches of clips for a stage's parameters (batch_videos, n_workers, max_unreadable_share,
    seed)."""
    unreadable = UnreadableLog(folder, len(videos), params.max_unreadable_share)
    samples = ClipSamples(videos, sampling, cache, boxes)
    collate = _CollateClips(sampling.size, AUGMENTATIONS[sampling.augmentation])
    return BatchSource(
        samples, collate, params.batch_videos, params.n_workers, unreadable, params.seed
    )


def image_source(paths: Sequence[Path], cache: DecodedCache, params, folder: Path) -> BatchSource:
    """Batches of image views for a stage's parameters (batch_images, n_workers,
    max_unreadable_share, size, seed)."""
    unreadable = UnreadableLog(folder, len(paths), params.max_unreadable_share)
    samples = ImageSamples(paths, cache, params.seed)
    collate = _CollateImages(params.size, VIEW_AUGMENTATIONS[params.augmentation])
    return BatchSource(
        samples, collate, params.batch_images, params.n_workers, unreadable, params.seed
    )


def readable_images(paths: Sequence[Path], cache: DecodedCache) -> list[np.ndarray]:
    """The images (H, W, 3) of the files that decode; the log names the others, which judge nothing.

    Raises:
        UserError: none of them decodes.
    """
    images = []
    for path in paths:
        try:
            images.append(cache.read_image(path))
        except UnreadableMedia as error:
            log.warning("left out: %s", error)
    if not images:
        raise UserError(
            f"not one of {len(paths)} images is readable, the first of them {paths[0]}; replace them"
        )
    return images


class TrainingData(NamedTuple):
    """What the stage trains on and chooses by."""

    train: Ucf101
    validation: Ucf101
    images: Vispr | None
    """VISPR training images, without labels."""
    cache: DecodedCache


def load_training_data(params, with_images: bool = True) -> TrainingData:
    """UCF101 split 1 and VISPR as config.py says; a part of the training list, by group, is set
    aside for validation.

    Raises:
        UserError: a data set is missing.
    """
    part = {"validation_fraction": params.validation_fraction, "seed": params.seed}
    train = Ucf101(config.UCF101_ROOT, **part)
    validation = Ucf101(config.UCF101_ROOT, validation=True, **part)
    images = Vispr(config.VISPR_ROOT, "train", load_labels=False) if with_images else None
    return TrainingData(train, validation, images, DecodedCache(params.cache_megabytes * 2**20))


class PersonMasks:
    """Paints boxes of people as masks of the source frames.

    Args:
        people: boxes that need no frames: of a file, or detected beforehand.
    """

    def __init__(self, people: PersonBoxes):
        self.people = people

    def masks(self, path: Path, indices: np.ndarray, height_width: tuple[int, int]) -> np.ndarray:
        """uint8 (T, H, W, 3), 255 inside a box, for these frames of the video at `path`."""
        boxes = self.people.of_frames(path, indices)
        masks = np.zeros((len(indices), *height_width, 3), dtype=np.uint8)
        for mask, of_frame in zip(masks, boxes, strict=True):
            for x0, y0, x1, y1 in of_frame:
                mask[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = 255
        return masks
