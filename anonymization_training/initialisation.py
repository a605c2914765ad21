"""The three initialisations before the minimax: what one step minimises, and how good the result
is.

f_A: L1 reconstruction. f_T: action recognition. f_B: NT-Xent on two views of an image.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training.minimax import Updater, finite
from anonymization_training.training_batches import ClipBatch, ImageBatch, PersonMasks
from aux_code.datasets.clip_sampling import uniform_clips
from aux_code.datasets.decode import DecodedCache, UnreadableMedia
from aux_code.datasets.transforms import EVALUATION, augment_batch, evaluation_images
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.distributed import gather_rows, rank, sum_over_ranks, world_size
from aux_code.errors import UserError
from aux_code.layout import apply_per_frame
from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.losses.temporal import temporally_distinct_loss

log = logging.getLogger(__name__)


def reconstruction_step(
    fa: nn.Module, clips: ClipBatch, images: ImageBatch, frames_per_video: int, updater: Updater
) -> dict[str, float]:
    """One update of f_A towards the identity: L1 on frames of videos and on images."""
    # The frames of a clip look alike; some of each video say as much as all of them.
    every = max(1, clips.clips.shape[3] // frames_per_video)
    frames = clips.clips[0][:, :, ::every][:, :, :frames_per_video].transpose(1, 2).flatten(0, 1)
    pictures = torch.cat([frames, images.views[0]])
    fa.train()
    loss = updater.loss(lambda: F.l1_loss(fa(pictures).float(), pictures))
    losses = finite({"l1": loss}, "reconstruction/")
    updater.update(loss)
    return losses


@torch.no_grad()
def reconstruction_psnr(
    fa: nn.Module, images: Sequence[np.ndarray], size: int, device: torch.device
) -> float:
    """Peak signal-to-noise ratio in dB of f_A's output on images at evaluation geometry (peak
    1)."""
    fa.eval()
    pictures = evaluation_images(images, size).to(device)
    error = torch.cat([(fa(part) - part).square().mean((1, 2, 3)) for part in pictures.split(32)])
    return float(-10 * torch.log10(error.clamp_min(1e-10)).mean())


def recognition_step(
    ft: nn.Module,
    obfuscate: "Obfuscator",
    clips: ClipBatch,
    omega: float,
    margin: float,
    updater: Updater,
) -> dict[str, float]:
    """One update of f_T: cross-entropy on the anchor clips, with `omega` > 0 the
    temporally-distinct triplet too."""
    ft.train()
    total, parts = updater.loss(recognition_loss, ft, obfuscate, clips, omega, margin)
    losses = finite({"loss": total} | parts, "recognition/")
    updater.update(total)
    return losses


def recognition_loss(
    ft: nn.Module, obfuscate: "Obfuscator", clips: ClipBatch, omega: float, margin: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `recognition_step` minimises, and its named parts."""
    n_views, n_videos = clips.clips.shape[:2]
    masks = None if clips.person_masks is None else clips.person_masks.flatten(0, 1)
    logits, embedding = ft(obfuscate(clips.clips.flatten(0, 1), masks))
    total = cross_entropy = F.cross_entropy(logits[:n_videos], clips.labels)
    parts = {"cross_entropy": cross_entropy}
    if omega > 0:
        parts["triplet"] = temporally_distinct_loss(
            *embedding.float().unflatten(0, (n_views, n_videos)), margin
        )
        total = total + omega * parts["triplet"]
    return total, parts


class Obfuscator:
    """Any anonymizer on clips in training geometry: a network, or the blurring and blackening of
    person masks."""

    def __init__(self, anonymizer: nn.Module, device: torch.device):
        self.anonymizer = anonymizer.to(device).eval()

    @torch.no_grad()
    def __call__(self, clips: Tensor, masks: Tensor | None = None) -> Tensor:
        """clips (B, 3, T, H, W), masks (B, 1, T, H, W) or None -> anonymized clips."""
        # at once: what f_T trains on fits without f_A's gradients all the more, and small frames
        # are not worth passes
        if masks is None:
            return apply_per_frame(self.anonymizer, clips, chunk=0)
        replaced = apply_per_frame(_Replacement(self.anonymizer), clips, chunk=0)
        return torch.where(masks > 0.5, replaced, clips)


class _Replacement(nn.Module):
    def __init__(self, anonymizer: nn.Module):
        super().__init__()
        self.anonymizer = anonymizer

    def forward(self, frames: Tensor) -> Tensor:
        return self.anonymizer.replacement(frames)


@torch.no_grad()
def recognition_accuracy(
    ft: nn.Module, obfuscate: Obfuscator, videos: Sequence[Ucf101Item], cache: DecodedCache, params,
    masks: PersonMasks | None = None, n_modes: int = 5, device: torch.device | str = "cpu",
) -> float:  # fmt: skip
    """Top-1 accuracy by video: probabilities averaged over `n_modes` clips spread over the video,
    evaluation crop.

    Under torchrun every rank judges its share of the videos, and all get the accuracy on all of
    them. A video that does not decode is named in the log and judges nothing.

    Raises:
        UserError: no video decodes.
    """
    ft.eval()
    hits, n_judged = 0, 0
    for video in list(videos)[rank() :: world_size()]:
        try:
            indices = uniform_clips(
                cache.count_frames(video.path), params.clip_length, params.stride, n_modes
            )
            frames = [cache.read_frames(video.path, clip) for clip in indices]
        except UnreadableMedia as error:
            log.warning("left out of the validation: %s", error)
            continue
        clips = augment_batch(frames, EVALUATION, params.size, [None] * n_modes).to(device)
        painted = None
        if masks is not None:
            arrays = [masks.masks(video.path, clip, frames[0].shape[1:3]) for clip in indices]
            painted = augment_batch(arrays, EVALUATION, params.size, [None] * n_modes)[:, :1].to(
                device
            )
        logits, _ = ft(obfuscate(clips, painted))
        hits += int(logits.softmax(1).mean(0).argmax() == video.label)
        n_judged += 1
    hits, n_judged = sum_over_ranks(torch.tensor([hits, n_judged])).tolist()
    if not n_judged:
        raise UserError(
            f"not one of {len(videos)} validation videos is readable; look at the data set"
        )
    return hits / n_judged


def contrastive_step(
    fb: nn.Module, images: ImageBatch, temperature: float, updater: Updater
) -> dict[str, float]:
    """One update of f_B: NT-Xent between two views of each image."""
    fb.train()
    loss, accuracy = updater.loss(contrastive_loss, fb, images.views, temperature)
    losses = finite({"nt_xent": loss, "accuracy": accuracy}, "contrast/")
    updater.update(loss)
    return losses


def contrastive_loss(fb: nn.Module, views: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent between two views (2, N, 3, H, W) of each image, those of all ranks; and its
    accuracy."""
    first, second = map(gather_rows, fb(views.flatten(0, 1)).float().chunk(2))
    return nt_xent_loss(first, second, temperature), nt_xent_accuracy(first, second)


def nt_xent_accuracy(first: Tensor, second: Tensor) -> Tensor:
    """Share of views whose nearest other embedding is the other view of the same image; first and
    second (N, D)."""
    both = torch.cat([first, second]).detach().float()
    similarity = both @ both.T
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return (similarity.argmax(1) == partner).float().mean()
