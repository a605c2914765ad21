"""What is measured of the networks of stage 1: recognition, NT-Xent accuracy, and for TensorBoard
alone a privacy probe and images.

No weight, no schedule and no choice of `best` depends on a private label: the probe is watched and
nothing else. A fresh attacker (stage 2) reads more than it does.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anonymization_training import training_batches
from anonymization_training.minimax import Networks, set_modes
from anonymization_training.params_anonymization import (
    EvaluateUtilityParams,
    StageParams,
    TrainAnonymizerParams,
)
from anonymization_training.training_batches import VIEWS, TrainingData, readable_images
from aux_code import config
from aux_code.artefacts import record_of
from aux_code.datasets import transforms
from aux_code.datasets.clip_sampling import uniform_clips
from aux_code.datasets.decode import DecodedCache, UnreadableMedia
from aux_code.datasets.transforms import EVALUATION, augment_batch, evaluation_images
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.datasets.vispr import Vispr
from aux_code.distributed import rank, sum_over_ranks, world_size
from aux_code.errors import UserError
from aux_code.layout import apply_per_frame
from aux_code.metrics import attribute_metrics
from aux_code.model_loaders import apply_anonymizer, noise_keys
from aux_code.models.anonymizers import as_8_bit
from aux_code.models.person_boxes import PersonBoxes
from aux_code.runs import Run, seeded_generator

log = logging.getLogger(__name__)

N_CLIPS = 5
"""Clips of a video whose probabilities are averaged where recognition is measured (release)."""
N_VIEWED_IMAGES = 128
"""Training images on whose views f_B's NT-Xent accuracy is measured."""
N_SHOWN = 8
"""Images and video frames in TensorBoard's raw and anonymized grids."""
N_PROBED_IMAGES = 1000
"""Training images that the privacy probe looks at, at most; drawn once."""
HELD_OUT = 4
"""One image of so many evaluates the probe, the others fit it."""
RIDGE = 1.0
"""Penalty on the weights of standardised features, per fitted image."""


@torch.no_grad()
def obfuscate(
    anonymizer: nn.Module,
    clips: Tensor,
    masks: Tensor | None = None,
    noise: Iterator[tuple] | None = None,
) -> Tensor:
    """What is released of clips (B, 3, T, H, W); `noise` as of `apply_anonymizer`.

    Masks of persons (B, 1, T, H, W) take the place of boxes where clips are augmented.
    """
    if masks is None:
        release = partial(apply_anonymizer, anonymizer, noise=noise)
        return apply_per_frame(release, clips, chunk=0)
    replaced = apply_per_frame(anonymizer.replacement, clips, chunk=0)
    return as_8_bit(torch.where(masks > 0.5, replaced, clips))


def require_fitting(
    ft: nn.Module, params: StageParams | EvaluateUtilityParams, n_classes: int, named: str
) -> None:
    """Refuses an f_T that cannot learn or tell UCF101's classes from the clips of these parameters.

    Raises:
        UserError: it says `named`, the option and the file, and what would fit.
    """
    n_outputs = ft.architecture["arguments"].get("num_classes", n_classes)
    clip = (params.clip_length, params.size, params.size)
    if n_outputs != n_classes:
        remedy = "give ft_action.pth of init_utility.py, which adapts weights by --init_weights"
        raise UserError(f"{named}: f_T has {n_outputs} outputs, UCF101 needs {n_classes}; {remedy}")
    if getattr(ft, "clip_shape", None) not in (None, clip):
        shape = "f_T takes clips of T, H, W = {}, {}, {}".format(*ft.clip_shape)
        raise UserError(f"{named}: {shape}; change --clip_length and --size")


class Recognition(NamedTuple):
    """How well f_T recognises actions."""

    top1: float
    """Share of the videos, in [0, 1]."""
    n_videos: int
    """Those that decode; the others do not count."""


@torch.no_grad()
def recognition_accuracy(
    ft: nn.Module,
    anonymizer: nn.Module,
    videos: Sequence[Ucf101Item],
    cache: DecodedCache,
    params: StageParams | EvaluateUtilityParams,
    device: torch.device | str,
    people: PersonBoxes | None = None,
) -> Recognition:
    """Top-1 accuracy by video: probabilities averaged over N_CLIPS clips of it.

    The clips are spread over the video, in the crop of evaluations. Under torchrun every rank takes
    its share of the videos, and all get the accuracy on all. One that does not decode is named in
    the log and does not count.

    Raises:
        UserError: no video decodes.
    """
    ft.eval()
    hits, n_counted = 0, 0
    for video in list(videos)[rank() :: world_size()]:
        try:
            n_frames = cache.count_frames(video.path)
            indices = uniform_clips(n_frames, params.clip_length, params.stride, N_CLIPS)
            frames = [cache.read_frames(video.path, clip) for clip in indices]
        except UnreadableMedia as error:
            log.warning("left out of the accuracy: %s", error)
            continue
        arrays, masks = frames, None
        if people is not None:
            paint, shape = training_batches.person_masks, frames[0].shape[1:3]
            arrays = [paint(people, video.path, clip, shape) for clip in indices]
            masks = augment_batch(arrays, EVALUATION, params.size, [None] * N_CLIPS)[:, :1]
            masks = masks.to(device)
        clips = augment_batch(frames, EVALUATION, params.size, [None] * N_CLIPS).to(device)
        noise = noise_keys(params.seed, video.path, indices.ravel())
        logits, _ = ft(obfuscate(anonymizer, clips, masks, noise))
        hits += int(logits.softmax(1).mean(0).argmax() == video.label)
        n_counted += 1
    hits, n_counted = sum_over_ranks(torch.tensor([hits, n_counted])).tolist()
    if not n_counted:
        counts = f"not one of {len(videos)} videos to evaluate on"
        raise UserError(f"{counts} is readable; look at the data set")
    return Recognition(hits / n_counted, n_counted)


def seen_by_utility(start: str | None, n_steps: int, n_clips: int) -> dict[str, float]:
    """{"ft_steps", "ft_clips"}: how long f_T has learned, including what it started from."""
    try:
        before = record_of(start, "metrics").get("metrics", {}) if start else {}
    except UserError:  # a name, or a file of others
        before = {}
    counts = {"ft_steps": n_steps, "ft_clips": n_clips}
    return {name: float(count + before.get(name, 0)) for name, count in counts.items()}


def nt_xent_accuracy(first: Tensor, second: Tensor) -> Tensor:
    """Share of views, embeddings (N, D), whose nearest other is the other view of its image."""
    both = torch.cat([first, second]).detach().float()
    similarity = both @ both.T  # (2*N, 2*N)
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return (similarity.argmax(1) == partner).float().mean()


class Validation:
    """Looks at the players between the epochs of the minimax, in eval mode, without gradient."""

    def __init__(
        self, networks: Networks, data: TrainingData, params: TrainAnonymizerParams, run: Run
    ):
        self.networks, self.data, self.params, self.run = networks, data, params, run

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Of f_T the top-1 accuracy on anonymized videos (`top1`; of the test list `test_top1`), of
        f_B the NT-Xent accuracy on two views of training images, in [0, 1]."""
        networks, data, params = self.networks, self.data, self.params
        set_modes(networks, "validation", params)
        device = self.run.device
        of_list = (data.validation, data.cache, params, device)
        top1 = recognition_accuracy(networks.ft, networks.fa, *of_list).top1
        images = readable_images(data.images.paths[:N_VIEWED_IMAGES], data.cache)
        places = [(view, k) for view in range(2) for k in range(len(images))]
        generators = [seeded_generator("probe", *place) for place in places]
        policy = VIEWS[params.augmentation]
        views = transforms.augment_images(images * 2, policy, params.size, generators)
        embedding = torch.cat([networks.fb(part) for part in self._released(views)])
        accuracy = nt_xent_accuracy(*embedding.chunk(2)).item()  # of (N, D) each
        prefix = "test_" if params.chosen_on == "test" else ""
        return {f"{prefix}top1": top1, "nt_xent_accuracy": accuracy}

    @torch.no_grad()
    def show(self, epoch: int) -> None:
        """Images, then middle frames of validation videos, raw above anonymized, in TensorBoard."""
        from torchvision.utils import make_grid

        cache, half = self.data.cache, N_SHOWN // 2
        shown = readable_images(self.data.images.paths[:half], cache)
        for video in list(self.data.validation)[:half]:
            with contextlib.suppress(UnreadableMedia):  # which the validation names
                middle = cache.count_frames(video.path) // 2
                shown.append(cache.read_frames(video.path, np.array([middle]))[0])
        set_modes(self.networks, "validation", self.params)
        raw = evaluation_images(shown, self.params.size).to(self.run.device)
        both = torch.cat([raw, *self._released(raw)])
        self.run.writer.add_image("raw above anonymized", make_grid(both, nrow=len(raw)), epoch)

    @torch.no_grad()
    def probe(self, epoch: int) -> None:
        """cMAP in [0, 1] of a ridge regression from f_B's features to the private attributes.

        It is fitted on some and evaluated on other *training* images; silent without labels.
        """
        if self._labelled_images is None:
            return
        images, labels = self._labelled_images
        set_modes(self.networks, "validation", self.params)
        read = self.networks.fb.extract_features
        parts = [read(released).double().cpu() for released in self._released(images)]
        held_out = torch.arange(len(images)) % HELD_OUT == 0
        scores = ridge_scores(torch.cat(parts), labels, held_out)
        cmap = attribute_metrics(scores.numpy(), labels[held_out].numpy()).cmap
        self.run.writer.add_scalar("privacy/probe_cmap", cmap, epoch)

    def _released(self, images: Tensor) -> Iterator[Tensor]:
        """(N, 3, H, W) as released, 64 at a time; noise by number, whatever was drawn before."""
        noise = noise_keys(self.params.seed, Path("validation"), range(len(images)))
        for part in images.split(64):
            yield apply_anonymizer(self.networks.fa, part.to(self.run.device), noise=noise)

    @cached_property
    def _labelled_images(self) -> tuple[Tensor, Tensor] | None:
        """(N, 3, H, W) at evaluation geometry and (N, n_attributes) labels, if there are any."""
        try:
            vispr = Vispr(config.VISPR_ROOT, "train")
            order = torch.randperm(len(vispr), generator=seeded_generator("privacy probe"))
            chosen = order[:N_PROBED_IMAGES].tolist()
            arrays = [self.data.cache.read_image(vispr[i]) for i in chosen]
        except (UserError, UnreadableMedia) as error:
            log.warning("no privacy probe: %s", error)
            return None
        labels = torch.from_numpy(vispr.labels[chosen]).double()
        return evaluation_images(arrays, self.params.size), labels


def ridge_scores(features: Tensor, labels: Tensor, held_out: Tensor) -> Tensor:
    """Scores (n_held_out, n_attributes) of a ridge regression fitted on the other rows.

    Args:
        features: (N, F) float64.
        labels: (N, n_attributes) float64.
        held_out: (N,) bool.
    """
    fitted = features[~held_out]
    mean, deviation = fitted.mean(0), fitted.std(0).clamp_min(1e-8)
    x, y = (fitted - mean) / deviation, labels[~held_out]
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(0)))
    return ((features[held_out] - mean) / deviation) @ weights + y.mean(0)
