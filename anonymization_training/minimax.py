"""The minimax training of TeD-SPAD: its two steps on a batch (paper, section 3 and Algorithm 1).

Step 1 updates the anonymizer f_A to minimise  w_T * L_T - w_B * L_B.
Step 2, with f_A frozen, lets the utility network f_T minimise L_T and the privacy (budget) network
f_B minimise L_B.

In both steps f_T and f_B see what f_A releases: its batch norms keep the statistics of its
initialisation (`--fa_batch_norm running`) and its output is rounded to 8 bits. So the frames of a
pass make no difference, and what is trained is what is validated, saved, attacked and extracted.

Under torchrun every rank takes its share of each batch, and R ranks do what one process does with
the whole batch: NT-Xent sees the rows of all ranks, with gradient, batch norms see the batches of
all ranks, and the gradients are averaged. (LLTC contrasts the clips of one video, and the other
losses are means over videos.)
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training.params_anonymization import TrainAnonymizerParams as Params
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code.batch_norm import keep_running_statistics
from aux_code.devices import autocast, in_full_precision
from aux_code.distributed import average_gradients, gather_rows, mean_over_ranks
from aux_code.layout import apply_per_frame
from aux_code.losses import temporal
from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.model_loaders import apply_anonymizer

Images = ImageBatch | None
"""None where the positives of NT-Xent are frames of the clips."""


class NonFiniteLoss(ArithmeticError):
    """A loss or its gradient became NaN or infinite; the message names it."""


@dataclass
class Networks:
    """The players. `teacher` is f_T before the training, for distillation; None without it."""

    fa: nn.Module
    ft: nn.Module
    fb: nn.Module
    teacher: nn.Module | None = None


def set_modes(networks: Networks, phase: str, params: Params) -> None:
    """Train mode (statistics of the batch, which the running ones follow) or eval mode of each.

    Args:
        phase: "step 1" (keeps the running statistics of f_T and f_B all the same), "step 2",
            "settling" or "validation".
    """
    own, others = params.fa_batch_norm, params.batch_norm == "batch"
    training = {  # f_A    f_T     f_B
        "step 1": (own != "running", others, others),
        "step 2": (own == "batch", True, True),
        "settling": (False, True, False),
        "validation": (False, False, False),
    }[phase]
    for network, mode in zip((networks.fa, networks.ft, networks.fb), training, strict=True):
        network.train(mode)


class Updater:
    """One network's Adam with autocast, gradient scaling and clipping (0: none).

    Under torchrun the gradients are averaged over the ranks.
    """

    def __init__(
        self,
        net: nn.Module,
        learning_rate: float,
        precision: str,
        device: torch.device,
        gradient_clip: float = 0.0,
    ):
        self.net, self.device, self.precision = net, device, precision
        self.gradient_clip, self.learning_rate, self.n_updates = gradient_clip, learning_rate, 0
        learning = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=learning_rate, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager:
        """What a loss is computed in."""
        return autocast(self.device, self.precision)

    def update(self, loss: Tensor) -> None:
        """Backward pass of a loss and one step of the optimizer; raises as `backward` does."""
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor) -> None:
        """The gradient: averaged over the ranks, unscaled, clipped.

        Raises:
            NonFiniteLoss: it is NaN or infinite; nothing was updated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        average_gradients(self.net.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip or math.inf)
        # the scaler itself leaves out a step whose gradients overflow, and tries a smaller scale
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise NonFiniteLoss(f"the gradient of {type(self.net).__name__} is {norm.item()}")

    def step(self) -> None:
        """The optimizer's, by the gradient."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.n_updates += 1

    def state_dict(self) -> dict:
        """Optimizer, scaler and count."""
        states = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return {**states, "n_updates": self.n_updates}

    def load_state_dict(self, state: dict) -> None:
        """See state_dict."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.n_updates = state["n_updates"]


class Updaters(NamedTuple):
    """One for each network, and a fresh one for f_T in the settling phase."""

    fa: Updater
    ft: Updater
    fb: Updater
    settle: Updater


def build_updaters(networks: Networks, params: Params, device: torch.device) -> Updaters:
    """Adam for each network; only f_A's gradient is clipped."""

    def updater(net: nn.Module, factor: float, gradient_clip: float = 0.0) -> Updater:
        return Updater(net, params.learning_rate * factor, params.precision, device, gradient_clip)

    fa = updater(networks.fa, params.fa_learning_rate_factor, params.gradient_clip)
    ft, settle = (updater(networks.ft, params.ft_learning_rate_factor) for _ in range(2))
    return Updaters(fa, ft, updater(networks.fb, params.fb_learning_rate_factor), settle)


@contextlib.contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """No gradient of these networks' parameters inside; gradients still pass through them."""
    parameters = [p for net in nets for p in net.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def minimax_step(
    networks: Networks,
    clips: ClipBatch,
    images: Images,
    params: Params,
    updaters: Updaters,
) -> dict[str, float]:
    """Both steps on one batch (Algorithm 1), or one of them in turn (release)."""
    both = params.alternate == "steps"
    fa_turn = updaters.ft.n_updates >= updaters.fa.n_updates
    losses = {}
    if both or fa_turn:
        losses |= step_anonymizer(networks, clips, images, params, updaters.fa)
    if both or not fa_turn:
        losses |= step_adversaries(networks, clips, images, params, updaters)
    return losses


def step_anonymizer(
    networks: Networks,
    clips: ClipBatch,
    images: Images,
    params: Params,
    updater: Updater,
) -> dict[str, float]:
    """Step 1: one update of f_A; f_T and f_B stay as they are, down to their running statistics.

    Returns:
        The named losses; `step1/total` is what was minimised.

    Raises:
        NonFiniteLoss: before any weight was updated.
    """
    set_modes(networks, "step 1", params)
    others = (networks.ft, networks.fb)
    for net in others:
        net.zero_grad(set_to_none=True)  # step 2 left a third of the weights' memory
    with frozen(*others), keep_running_statistics(*others):
        with updater.autocast():
            total, parts = anonymizer_loss(networks, clips, images, params)
        losses = finite({"total": total} | parts, "step1/")
        updater.update(total)
    return losses


def step_adversaries(
    networks: Networks,
    clips: ClipBatch,
    images: Images,
    params: Params,
    updaters: Updaters,
) -> dict[str, float]:
    """Step 2: one update of f_T and one of f_B on f_A's output; f_A runs without gradient.

    Returns:
        The named losses.

    Raises:
        NonFiniteLoss: before any weight was updated.
    """
    set_modes(networks, "step 2", params)
    networks.fa.zero_grad(set_to_none=True)
    with updaters.ft.autocast():
        utility, parts = utility_loss(networks, clips, params, through_fa=False)
        budget = budget_loss(networks, clips, images, params, through_fa=False)
    losses = finite({"utility": utility, "budget": budget} | parts, "step2/")
    updaters.ft.backward(utility)
    updaters.fb.backward(budget)
    updaters.ft.step()
    updaters.fb.step()
    return losses


def step_utility(
    networks: Networks, clips: ClipBatch, params: Params, updater: Updater
) -> dict[str, float]:
    """Settling after the minimax: f_T's part of step 2, with f_A as it is released."""
    set_modes(networks, "settling", params)
    with updater.autocast():
        utility, parts = utility_loss(networks, clips, params, through_fa=False)
    losses = finite({"utility": utility} | parts, "settle/")
    updater.update(utility)
    return losses


def anonymizer_loss(
    networks: Networks, clips: ClipBatch, images: Images, params: Params
) -> tuple[Tensor, dict[str, Tensor]]:
    """w_T * L_T - w_B * L_B, which step 1 minimises, and its named parts."""
    utility, parts = utility_loss(networks, clips, params)
    budget = budget_loss(networks, clips, images, params)
    total = params.utility_weight * utility - params.budget_weight * budget
    return total, {"utility": utility, "budget": budget} | parts


def utility_loss(
    networks: Networks, batch: ClipBatch, params: Params, through_fa: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_T on anonymized clips: cross-entropy + omega * the term of `utility_loss` + distillation.

    With `joint_views` all clips pass f_T together: its batch statistics are the same whichever loss
    is on.

    Args:
        through_fa: let the gradient reach f_A.

    Returns:
        The loss and its named parts.
    """
    n_views, n_videos = batch.clips.shape[:2]
    clips = batch.clips.flatten(0, 1)  # (K*B, 3, T, H, W)
    anonymized = anonymize(networks.fa, clips, params.recompute_chunk, through_fa)
    passes = anonymized.chunk(1 if params.joint_views else n_views)
    pooled = [networks.ft.extract_features(part) for part in passes]
    read = [networks.ft.classify(part) for part in pooled]
    features = torch.cat(pooled)  # (K*B, F)
    logits, embedding = map(torch.cat, zip(*read, strict=True))  # (K*B, n_classes), (K*B, D)
    n_counted = n_views if params.ce_on_all_clips else 1
    labels = batch.labels.repeat(n_counted)  # (K*B,) or, of the anchors alone, (B,)
    total = cross_entropy = F.cross_entropy(logits[: len(labels)], labels)
    parts = {"cross_entropy": cross_entropy}
    if params.utility_loss != "ce":
        views = in_full_precision(embedding).unflatten(0, (n_views, n_videos))  # (K, B, D)
        parts[params.utility_loss] = temporal_term(views, params)
        total = total + params.omega * parts[params.utility_loss]
    if networks.teacher is not None and params.distillation_weight > 0:
        with torch.no_grad():
            target = networks.teacher.extract_features(clips)
        cosine = F.cosine_similarity(*map(in_full_precision, (features, target)), dim=1)  # (K*B,)
        parts["distillation"] = 1 - cosine.mean()
        total = total + params.distillation_weight * parts["distillation"]
    return total, parts


def temporal_term(embedding: Tensor, params: Params) -> Tensor:
    """The term beside the cross-entropy, of embeddings (K, B, D) of K clips of each video."""
    if params.utility_loss == "triplet":
        anchor, positive, negative = embedding
        return temporal.temporally_distinct_loss(anchor, positive, negative, params.margin)
    if params.utility_loss == "invariance":
        return temporal.temporal_invariance_loss(*map(gather_rows, embedding), params.temperature)
    first, second = embedding.transpose(0, 1).chunk(2, dim=1)  # (B, K / 2, D) each
    return temporal.local_local_temporal_contrastive_loss(first, second, params.temperature)


def budget_loss(
    networks: Networks,
    clips: ClipBatch,
    images: Images,
    params: Params,
    through_fa: bool = True,
) -> Tensor:
    """L_B: NT-Xent of f_B on two anonymized views of an image, or two frames of a video."""
    if params.budget_positives == "frames":
        # First frame of the first clip and last frame of the last clip: two times of the video.
        pair = torch.stack([clips.clips[0][:, :, 0], clips.clips[-1][:, :, -1]])  # (2, B, 3, H, W)
    else:
        pair = images.views  # (2, N, 3, H, W)
    clips_of_one = pair.flatten(0, 1).unsqueeze(2)  # (2*N, 3, 1, H, W)
    passes = clips_of_one.chunk(1 if params.joint_views else 2)
    anonymized = [anonymize(networks.fa, p, params.recompute_chunk, through_fa) for p in passes]
    embedding = torch.cat([networks.fb(frames.squeeze(2)) for frames in anonymized])  # (2*N, D)
    first, second = in_full_precision(embedding).chunk(2)
    return nt_xent_loss(gather_rows(first), gather_rows(second), params.temperature)


def anonymize(fa: nn.Module, clips: Tensor, recompute_chunk: int, with_gradient: bool) -> Tensor:
    """What f_A releases of clips (B, 3, T, H, W), with or without gradient.

    Args:
        recompute_chunk: frames that f_A sees at a time, and with gradient computes again in the
            backward pass, at most; fewer where that makes the parts more equal. 0: all frames at
            once, and their activations are kept.
    """
    n_frames = clips.shape[0] * clips.shape[2]
    chunk = math.ceil(n_frames / math.ceil(n_frames / recompute_chunk)) if recompute_chunk else 0
    with torch.set_grad_enabled(with_gradient and torch.is_grad_enabled()):
        release = partial(apply_anonymizer, fa)
        return apply_per_frame(release, clips, chunk=chunk, recompute=chunk > 0 and with_gradient)


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
