"""Batches of stage 1: clips of videos and views of images, decoded, sampled and augmented.

Loading processes decode, draw and cut: what they hand over is uint8 and holds a frame once, however
many views look at it. The process that trains augments on its device.

What a batch holds depends on (seed, epoch, position of the sample) alone: not on workers, not on
where a run was interrupted. So a resumed run sees the batches that it would have seen. Under
torchrun each rank reads a contiguous share of every batch; batch sizes are those of all ranks
together.
"""

import logging
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anonymization_training.params_anonymization import StageParams
from aux_code import config
from aux_code.datasets import transforms
from aux_code.datasets.clip_sampling import disjoint_clips, random_clip, triplet_clips
from aux_code.datasets.decode import DecodedCache, UnreadableMedia
from aux_code.datasets.transforms import Crop, Policy
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
    """(K, B, 3, T, H, W) in [0, 1]: K views of each video. K = 1: anchor; 2: two times; 3: anchor,
    positive, negative; 8 (LLTC): four times in a first view, then in a second one; the first time
    is the anchor."""
    labels: Tensor
    """(B,) class indices."""
    person_masks: Tensor | None
    """(K, B, 1, T, H, W) in {0, 1}, cropped and flipped like the clips; None unless asked for."""
    names: tuple[str, ...]
    """(B,) files, for messages."""


class ImageBatch(NamedTuple):
    """Two views of N images."""

    views: Tensor
    """(2, N, 3, H, W) in [0, 1]."""
    names: tuple[str, ...]
    """(N,) files, for messages."""


N_VIEWS = {"ce": 1, "triplet": 3, "invariance": 2, "lltc": 8}
"""Kind of sampling -> clips of each video; lltc: four times in two views."""


class Sampling(NamedTuple):
    """How a video becomes clips."""

    views: str
    """A key of N_VIEWS."""
    clip_length: int
    stride: int
    seed: int
    negative_distance: int = 0
    """Frames; 0: any other time."""
    n_used: int = 0
    """Frames, spread over a clip, that it is reduced to; 0: all."""


class _Sample(NamedTuple):
    clips: Sequence[np.ndarray]
    """uint8 (T, H, W, 3), with masks of persons (T, H, W, 4); an image is one frame."""
    of_view: Sequence[int]
    """Place in `clips` of what each view looks at."""
    keys: tuple
    """Of the sample's generators: view k is drawn from seeded_generator(*keys, k)."""
    name: str
    label: int | None = None
    """Of a video; None: an image."""


class Crops(NamedTuple):
    """What a loading process hands over: K views of each of B samples."""

    pixels: Tensor
    """(n_bytes,) uint8: the crops, one behind another."""
    places: list[tuple[tuple[int, ...], ...]]
    """Of each crop its shape (T, h, w, C), then the other fields of `transforms.Crop`."""
    views: list[list[int]]
    """(K, B) numbers of crops."""
    draws: Tensor
    """(K, B, 18), see `transforms.draw`."""
    labels: Tensor | None
    """(B,) class indices; None: images."""
    names: tuple[str, ...]
    """(B,) files."""


AUGMENTATIONS = {"strong": transforms.STRONG, "moderate": transforms.MODERATE}
"""Name on the command line -> policy for clips."""
VIEWS = {"strong": transforms.BUDGET_VIEWS, "moderate": transforms.MODERATE_VIEWS}
"""Name on the command line -> policy for the two views of an image."""


@dataclass
class ClipSamples(Dataset):
    """Map from (epoch, index) to the decoded clips of a video, or to why it does not decode."""

    videos: Sequence[Ucf101Item]
    sampling: Sampling
    cache: DecodedCache
    people: PersonBoxes | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: tuple[int, int]) -> _Sample | UnreadableMedia:
        epoch, index = key
        video, sampling = self.videos[index], self.sampling
        generator = seeded_generator(sampling.seed, "clip", epoch, index)
        try:
            n_frames = self.cache.count_frames(video.path)
            clips = [tuple(clip) for clip in clip_indices(n_frames, sampling, generator)]
            distinct = list(dict.fromkeys(clips))
            frames = self.cache.read_frames(video.path, indices := np.concatenate(distinct))
        except UnreadableMedia as error:
            return error
        if self.people is not None:
            masks = person_masks(self.people, video.path, indices, frames.shape[1:3])
            frames = np.concatenate([frames, masks[..., :1]], axis=3)
        of_view, arrays = map(distinct.index, clips), np.split(frames, len(distinct))
        keys = (sampling.seed, "augment", epoch, index)
        return _Sample(arrays, list(of_view), keys, str(video.path), video.label)


def clip_indices(n_frames: int, sampling: Sampling, generator: torch.Generator) -> list[np.ndarray]:
    """Frame indices of the K clips of one sample; see `ClipBatch.clips`."""
    length, stride = sampling.clip_length, sampling.stride
    if sampling.views == "ce":
        clip = random_clip(n_frames, length, stride, generator)
        n_used = sampling.n_used or length
        return [clip[:: max(1, length // n_used)][:n_used]]
    if sampling.views == "lltc":
        times = list(disjoint_clips(n_frames, length, stride, 4, generator))
        return times + times
    triplet = triplet_clips(n_frames, length, stride, generator, sampling.negative_distance or None)
    return [triplet.anchor, triplet.negative] if sampling.views == "invariance" else list(triplet)


@dataclass
class ImageSamples(Dataset):
    """Map from (epoch, index) to a decoded image, or to why it does not decode."""

    paths: Sequence[Path]
    cache: DecodedCache
    seed: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> _Sample | UnreadableMedia:
        epoch, index = key
        try:
            image = self.cache.read_image(self.paths[index])
        except UnreadableMedia as error:
            return error
        keys = (self.seed, "view", epoch, index)
        return _Sample([image[None]], [0, 0], keys, str(self.paths[index]))


def collate(
    samples: list[_Sample | UnreadableMedia], size: int, policy: Policy
) -> tuple[Crops | None, list[UnreadableMedia]]:
    """What views of size x size pixels need of the samples, and what did not decode."""
    good = [sample for sample in samples if isinstance(sample, _Sample)]
    bad = [sample for sample in samples if isinstance(sample, UnreadableMedia)]
    if not good:
        return None, bad
    if world_size() > 1:  # losses over all ranks need shares of one size
        good += [good[i % len(good)] for i in range(len(bad))]
    n_views = len(good[0].of_view)
    generators = [seeded_generator(*sample.keys, k) for k in range(n_views) for sample in good]
    draws = transforms.draw(policy, generators, len(generators))
    sides = np.array([sample.clips[0].shape[1:3] for sample in good] * n_views)
    boxes = transforms.needed(draws, sides).reshape(n_views, len(good), 2, 2)
    draws, crops, views = draws.unflatten(0, (n_views, len(good))), [], []
    for b, sample in enumerate(good):
        cut, of_view = _cut(sample, boxes[:, b], draws[:, b], size)
        views.append([len(crops) + i for i in of_view])
        crops += cut
    pixels = torch.from_numpy(np.concatenate([crop.pixels.ravel() for crop in crops]))
    places = [(crop.pixels.shape, *crop[1:]) for crop in crops]
    is_video = good[0].label is not None
    labels = torch.tensor([sample.label for sample in good]) if is_video else None
    by_view = [list(of_view) for of_view in zip(*views, strict=True)]
    names = tuple(sample.name for sample in good)
    return Crops(pixels, places, by_view, draws, labels, names), bad


def _cut(
    sample: _Sample, boxes: np.ndarray, draws: Tensor, size: int
) -> tuple[list[Crop], Sequence[int]]:
    """Crops of a sample with these boxes and draws of its views, and the place of each view's.

    Frames of more than 4 size^2 pixels, whose bytes are more than the views', are resized here.
    """
    clips = [transforms.whole(clip) for clip in sample.clips]
    if clips[0].height * clips[0].width <= 4 * size**2:
        viewed = np.array(sample.of_view)
        cut = [transforms.crop_to(clip, boxes[viewed == i]) for i, clip in enumerate(clips)]
        return cut, sample.of_view
    each = zip(sample.of_view, boxes, draws[:, 3] > 0, strict=True)
    crops = [transforms.shrink(clips[i], box, flip, size) for i, box, flip in each]
    draws[:, : len(transforms.RESIZED)] = transforms.RESIZED
    return crops, range(len(crops))


def augmented(
    batch: Crops, size: int, policy: Policy, device: torch.device
) -> ClipBatch | ImageBatch:
    """The views of a batch, made on `device` without waiting for it."""
    sizes = [math.prod(shape) for shape, *_ in batch.places]
    parts = batch.pixels.to(device, non_blocking=True).split(sizes)
    placed = zip(parts, batch.places, strict=True)
    crops = [Crop(part.view(*shape), *place) for part, (shape, *place) in placed]
    views = []
    for of_view, draws in zip(batch.views, batch.draws, strict=True):
        viewed = [crops[i] for i in of_view]
        views.append(transforms.augment_crops(viewed, draws, policy, size))
    views = torch.stack(views)  # (K, B, C, T, size, size)
    if batch.labels is None:
        return ImageBatch(views[:, :, :, 0], tuple(batch.names))
    clips, masks = views[:, :, :3], None
    if views.shape[2] > 3:
        masks = (views[:, :, 3:] >= 0.5).float()
    labels = batch.labels.to(device, non_blocking=True)
    return ClipBatch(clips, labels, masks, tuple(batch.names))


def _begin_loading(worker: int) -> None:
    """Signals go to the whole process group; the training saves first, then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_freed_memory()  # decodes and augments a quarter faster


class BatchSource:
    """Endless, seekable batches: batch `step` of the whole training, whatever was read before.

    Args:
        policy: of the augmentation.
        batch_size: samples per batch, of all ranks together; the last, incomplete batch of an epoch
            is filled from the next epoch's order.
        params: of the script: size, n_workers, max_unreadable_share and seed are read.
        folder: where unreadable.txt names what does not decode.

    Raises:
        UserError: the ranks cannot share a batch equally.
    """

    def __init__(
        self, samples: Dataset, policy: Policy, batch_size: int, params: StageParams, folder: Path
    ):
        self.samples, self.batch_size = samples, batch_size
        self.how = {"size": params.size, "policy": policy}
        self.collate = partial(collate, **self.how)
        self.n_workers, self.seed = params.n_workers, params.seed
        self.unreadable = UnreadableLog(folder, len(samples), params.max_unreadable_share)
        self.steps_per_epoch = max(1, -(-len(samples) // batch_size))
        self._ordered = (-1, np.empty(0))
        if batch_size % world_size():
            raise UserError(
                f"{world_size()} processes cannot share batches of {batch_size} equally; change "
                "--batch_videos and --batch_images (of all processes) or --nproc_per_node"
            )

    def batches(
        self, first_step: int, n_steps: int, device: torch.device | str = "cpu"
    ) -> Iterator[ClipBatch | ImageBatch]:
        """Batches first_step, ..., first_step + n_steps - 1 on `device`; this rank's share of each.

        Raises as `crops` does.
        """
        device = torch.device(device)
        for crops in self.crops(first_step, n_steps, pinned=device.type == "cuda"):
            yield augmented(crops, **self.how, device=device)

    def crops(self, first_step: int, n_steps: int, pinned: bool = False) -> Iterator[Crops]:
        """What these batches are made of, as loading processes hand it over; `pinned` for a GPU.

        Raises:
            UserError: no file of a batch is readable, or too many of the data set are not.
        """
        keys = map(self._keys, range(first_step, first_step + n_steps))
        how = {"num_workers": self.n_workers, "worker_init_fn": _begin_loading}
        how |= {"collate_fn": self.collate, "pin_memory": pinned}
        loader = DataLoader(self.samples, batch_sampler=keys, **how)
        for batch, errors in loader:
            # every rank counts what any of them met, so that all of them stop or none
            met = gather_objects((batch is None, errors)) if any_rank(bool(errors)) else []
            for error in (error for _, met_there in met for error in met_there):
                self.unreadable.record(error.path, error.reason)
            self.unreadable.stop_if_too_many()
            lost = [str(e.path) for is_lost, met_there in met if is_lost for e in met_there]
            if lost:
                names = ", ".join(lost)
                raise UserError(f"not one file of a batch is readable: {names}; replace them")
            yield batch

    def _keys(self, step: int) -> list[tuple[int, int]]:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        n = len(self.samples)
        return share([(place // n, int(self._order(place // n)[place % n])) for place in places])

    def _order(self, epoch: int) -> np.ndarray:
        if self._ordered[0] != epoch:
            generator = seeded_generator(self.seed, "order", epoch)
            self._ordered = (epoch, torch.randperm(len(self.samples), generator=generator).numpy())
        return self._ordered[1]


def clip_source(
    videos: Sequence[Ucf101Item],
    views: str,
    params: StageParams,
    cache: DecodedCache,
    folder: Path,
    people: PersonBoxes | None = None,
    n_used: int = 0,
) -> BatchSource:
    """Batches of clips; see `Sampling`. With `people` they have masks."""
    distance = getattr(params, "negative_distance", 0)  # the minimax alone has it
    sampling = Sampling(views, params.clip_length, params.stride, params.seed, distance, n_used)
    samples = ClipSamples(videos, sampling, cache, people)
    policy = AUGMENTATIONS[params.augmentation]
    return BatchSource(samples, policy, params.batch_videos, params, folder)


def image_source(
    paths: Sequence[Path], params: StageParams, cache: DecodedCache, folder: Path
) -> BatchSource:
    """Batches of two views of images."""
    samples = ImageSamples(paths, cache, params.seed)
    policy = VIEWS[params.augmentation]
    return BatchSource(samples, policy, params.batch_images, params, folder)


def readable_images(paths: Sequence[Path], cache: DecodedCache) -> list[np.ndarray]:
    """The images (H, W, 3) of the files that decode; the log names the others, which do not count.

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
        counts = f"not one of {len(paths)} images"
        raise UserError(f"{counts} is readable, such as {paths[0]}; replace them")
    return images


class TrainingData(NamedTuple):
    """What the stage trains on and chooses by."""

    train: Ucf101
    validation: Ucf101
    """What accuracies are of: held-out videos, or the test list, see `StageParams.chosen_on`."""
    images: Vispr | None
    """VISPR training images, without labels."""
    cache: DecodedCache


def load_training_data(params: StageParams, with_images: bool = True) -> TrainingData:
    """UCF101 split 1 and VISPR as config.py says; some groups of the training list validate, the
    same ones whatever the seed, or where validation_fraction is 0 the test list.

    Raises:
        UserError: a data set is missing.
    """
    fraction = params.validation_fraction
    train = Ucf101(config.UCF101_ROOT, validation_fraction=fraction)
    held_out = {"validation_fraction": fraction, "validation": True} if fraction else {}
    validation = Ucf101(config.UCF101_ROOT, **held_out or {"train": False})
    images = Vispr(config.VISPR_ROOT, "train", load_labels=False) if with_images else None
    return TrainingData(train, validation, images, DecodedCache(params.cache_megabytes * 2**20))


def person_masks(
    people: PersonBoxes, path: Path, indices: np.ndarray, height_width: tuple[int, int]
) -> np.ndarray:
    """uint8 (T, H, W, 3), 255 inside a box, for these frames; `people` needs no frames."""
    boxes = people.of_frames(path, indices)
    masks = np.zeros((len(indices), *height_width, 3), dtype=np.uint8)
    for mask, of_frame in zip(masks, boxes, strict=True):
        for x0, y0, x1, y1 in of_frame:
            mask[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = 255
    return masks
