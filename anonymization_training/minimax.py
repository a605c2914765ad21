"""The minimax training of TeD-SPAD: its two steps and its epoch (paper, section 3 and Algorithm 1).

Step 1 updates the anonymizer f_A to minimise  w_T * L_T - w_B * L_B.
Step 2, with f_A frozen, lets the utility network f_T minimise L_T and the privacy (budget) network f_B minimise L_B.

Under torchrun every rank takes its share of each batch, and R ranks do what one process does with
the whole batch: NT-Xent sees the rows of all ranks, with gradient, batch norms see the batches of
all ranks, and DistributedDataParallel averages the gradients. (LLTC contrasts the clips of one
video, and the other losses are means over videos.)
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code.batch_norm import keep_running_statistics
from aux_code.devices import supports_bf16
from aux_code.distributed import data_parallel, gather_rows, mean_over_ranks
from aux_code.layout import apply_per_frame
from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.losses.temporal import (
    local_local_temporal_contrastive_loss,
    temporal_invariance_loss,
    temporally_distinct_loss,
)


class NonFiniteLoss(ArithmeticError):
    """A loss or its gradient became NaN or infinite; the message names it."""


@dataclass
class Networks:
    """The players. `teacher` is f_T as it was before the training, on raw clips; None without
    distillation."""

    fa: nn.Module
    ft: nn.Module
    fb: nn.Module
    teacher: nn.Module | None = None


@dataclass(frozen=True)
class Objective:
    """What is minimised; the fields are those of TrainAnonymizerParams."""

    utility_loss: str
    omega: float
    margin: float
    temperature: float
    utility_weight: float
    budget_weight: float
    budget_positives: str
    ce_on_all_clips: bool
    distillation_weight: float
    batch_norm: str
    recompute_chunk: int


class Updater:
    """One network's optimizer with autocast, gradient scaling and clipping.

    Under torchrun the losses that `loss` computes have gradients averaged over the ranks.
    """

    def __init__(
        self,
        net: nn.Module,
        learning_rate: float,
        precision: str,
        device: torch.device,
        gradient_clip: float,
    ):
        self.net, self.device, self.gradient_clip = net, device, gradient_clip
        self.learning_rate, self.n_updates = learning_rate, 0
        if precision == "auto":
            precision = "bf16" if supports_bf16(device) else "fp32"
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.optimizer = torch.optim.Adam(
            [p for p in net.parameters() if p.requires_grad], lr=learning_rate, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    @cached_property
    def _data_parallel(self) -> Callable:
        return data_parallel(self.net)

    def loss(self, compute: Callable, *arguments) -> Any:
        """compute(*arguments), a loss of the network or a tuple with one, in the number format of
        the training."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self._data_parallel(compute, *arguments)

    def update(self, loss: Tensor) -> None:
        """Backward pass of what `loss` returned, and one step of the optimizer.

        Raises:
            NonFiniteLoss: a gradient is NaN or infinite; nothing was updated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip or math.inf)
        # the scaler itself leaves out a step whose gradients overflowed fp16, and tries a smaller
        # scale
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise NonFiniteLoss(f"the gradient of {type(self.net).__name__} is {norm.item()}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.n_updates += 1

    def state_dict(self) -> dict:
        """Optimizer and scaler."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "n_updates": self.n_updates,
        }

    def load_state_dict(self, state: dict) -> None:
        """See state_dict."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.n_updates = state["n_updates"]


@contextlib.contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """No gradient is computed for these networks' parameters inside; gradients still pass through
    them."""
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def normalising_by(statistics: str, *nets: nn.Module) -> Iterator[None]:
    """Sets which batch-norm statistics frozen networks use, and leaves their running statistics as
    they are.

    Args:
        statistics: "batch" (the batch's own, as the adversaries themselves see it in step 2) or
            "running" (eval mode).
        nets: networks whose modes are restored afterwards.
    """
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.train(statistics == "batch")
    try:
        with keep_running_statistics(*nets):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def step_anonymizer(
    networks: Networks, clips: ClipBatch, images: ImageBatch, objective: Objective, updater: Updater
) -> dict[str, float]:
    """Step 1: one update of f_A; f_T and f_B are left as they are, down to their batch-norm
    statistics.

    Returns:
        The named losses; `step1/total` is what was minimised.

    Raises:
        NonFiniteLoss: before anything was updated.
    """
    others = [networks.ft, networks.fb]
    forget_gradients(*others)
    with frozen(*others), normalising_by(objective.batch_norm, *others):
        total, parts = updater.loss(anonymizer_loss, networks, clips, images, objective)
        losses = finite({"total": total} | parts, "step1/")
        updater.update(total)
    return losses


def step_adversaries(
    networks: Networks, clips: ClipBatch, images: ImageBatch, objective: Objective,
    ft_updater: Updater, fb_updater: Updater,
) -> dict[str, float]:  # fmt: skip
    """Step 2: one update of f_T and one of f_B on f_A's output; f_A runs without gradient.

    Returns:
        The named losses.

    Raises:
        NonFiniteLoss: before anything was updated.
    """
    forget_gradients(networks.fa)
    networks.ft.train()
    networks.fb.train()
    utility, parts = ft_updater.loss(utility_loss, networks, clips, objective, False)
    budget = fb_updater.loss(budget_loss, networks, clips, images, objective, False)
    losses = finite({"utility": utility, "budget": budget} | parts, "step2/")
    ft_updater.update(utility)
    fb_updater.update(budget)
    return losses


def step_utility(
    networks: Networks, clips: ClipBatch, objective: Objective, updater: Updater
) -> dict[str, float]:
    """The part of step 2 that concerns f_T: f_A is frozen. It settles f_T's statistics after the
    minimax."""
    networks.ft.train()
    utility, parts = updater.loss(utility_loss, networks, clips, objective, False)
    losses = finite({"utility": utility} | parts, "settle/")
    updater.update(utility)
    return losses


def forget_gradients(*nets: nn.Module) -> None:
    """Frees the gradients that the other step has left, a third of the weights' memory each."""
    for net in nets:
        net.zero_grad(set_to_none=True)


def anonymizer_loss(
    networks: Networks, clips: ClipBatch, images: ImageBatch, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """w_T * L_T - w_B * L_B, which step 1 minimises, and its named parts."""
    utility, parts = utility_loss(networks, clips, objective)
    budget = budget_loss(networks, clips, images, objective)
    total = objective.utility_weight * utility - objective.budget_weight * budget
    return total, {"utility": utility, "budget": budget} | parts


def utility_loss(
    networks: Networks, batch: ClipBatch, objective: Objective, through_fa: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_T on anonymized clips: cross-entropy + omega * the term of `utility_loss` + distillation.

    All clips of the batch pass f_T together, so that its batch statistics are the same whichever
    loss is on.

    Args:
        through_fa: let the gradient reach f_A.

    Returns:
        The loss and its named parts.
    """
    n_views, n_videos = batch.clips.shape[:2]
    clips = batch.clips.flatten(0, 1)
    anonymized = anonymize(networks.fa, clips, objective.recompute_chunk, through_fa)
    features = networks.ft.extract_features(anonymized)
    logits, embedding = networks.ft.classify(features)
    if objective.ce_on_all_clips:
        cross_entropy = F.cross_entropy(logits, batch.labels.repeat(n_views))
    else:
        cross_entropy = F.cross_entropy(logits[:n_videos], batch.labels)
    parts = {"cross_entropy": cross_entropy}
    total = cross_entropy
    if objective.utility_loss != "ce":
        parts[objective.utility_loss] = temporal_term(
            embedding.float().unflatten(0, (n_views, n_videos)), objective
        )
        total = total + objective.omega * parts[objective.utility_loss]
    if networks.teacher is not None and objective.distillation_weight > 0:
        with torch.no_grad():
            target = networks.teacher.extract_features(clips)
        parts["distillation"] = (
            1 - F.cosine_similarity(features.float(), target.float(), dim=1).mean()
        )
        total = total + objective.distillation_weight * parts["distillation"]
    return total, parts


def temporal_term(embedding: Tensor, objective: Objective) -> Tensor:
    """The term beside the cross-entropy, of embeddings (K, B, D) of K clips of each video."""
    if objective.utility_loss == "triplet":
        anchor, positive, negative = embedding
        return temporally_distinct_loss(anchor, positive, negative, objective.margin)
    if objective.utility_loss == "invariance":
        return temporal_invariance_loss(*map(gather_rows, embedding), objective.temperature)
    first, second = embedding.transpose(0, 1).chunk(2, dim=1)
    return local_local_temporal_contrastive_loss(first, second, objective.temperature)


def budget_loss(
    networks: Networks,
    clips: ClipBatch,
    images: ImageBatch,
    objective: Objective,
    through_fa: bool = True,
) -> Tensor:
    """L_B: NT-Xent of f_B on anonymized pictures; positives are two views of an image, or two
    frames of a video."""
    if objective.budget_positives == "frames":
        # First frame of the first clip and last frame of the last clip: two times of the video.
        pair = torch.stack([clips.clips[0][:, :, 0], clips.clips[-1][:, :, -1]])
    else:
        pair = images.views
    # each picture is a clip of one frame
    anonymized = anonymize(
        networks.fa, pair.flatten(0, 1).unsqueeze(2), objective.recompute_chunk, through_fa
    )
    anonymized = anonymized.squeeze(2)
    first, second = networks.fb(anonymized).float().chunk(2)
    return nt_xent_loss(gather_rows(first), gather_rows(second), objective.temperature)


def anonymize(fa: nn.Module, clips: Tensor, recompute_chunk: int, with_gradient: bool) -> Tensor:
    """f_A on clips (B, 3, T, H, W), with or without gradient.

    Args:
        recompute_chunk: frames that f_A sees at a time, and with gradient computes again in the
            backward pass, at most; fewer where that makes the parts more equal. 0: all frames at
            once, and their activations are kept.
    """
    n_frames = clips.shape[0] * clips.shape[2]
    chunk = math.ceil(n_frames / math.ceil(n_frames / recompute_chunk)) if recompute_chunk else 0
    with contextlib.nullcontext() if with_gradient else torch.no_grad():
        return apply_per_frame(fa, clips, chunk=chunk, recompute=chunk > 0 and with_gradient)


def finite(losses: dict[str, Tensor], prefix: str) -> dict[str, float]:
    """The losses as numbers, under torchrun the means over the ranks, named with the prefix.

    Raises:
        NonFiniteLoss: one of them is NaN or infinite, on any rank; all ranks raise it.
    """
    means = mean_over_ranks(torch.stack([loss.detach().double() for loss in losses.values()]))
    values = {prefix + name: value for name, value in zip(losses, means.tolist(), strict=True)}
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteLoss(f"{name} is {value}")
    return values
