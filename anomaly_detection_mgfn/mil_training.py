"""Training of MGFN by multiple-instance learning: pairs of normal and anomalous bags, epochs,
choice of the epoch."""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_detection_mgfn.feature_bags import VideoFeatures
from anomaly_detection_mgfn.ground_truth import VideoTruth
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_losses import (
    LossWeights,
    draw_candidates,
    mgfn_loss,
    select_top_segments,
)
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.scoring import score_videos, video_score, weighted_scores
from aux_code.checkpoints import load_checkpoint
from aux_code.devices import keep_freed_memory, supports_bf16
from aux_code.errors import UserError
from aux_code.metrics import ranking_metrics
from aux_code.progress import progress
from aux_code.runs import InterruptRequest, Run, derived_seed, seeded_generator
from aux_code.schedules import learning_rate_factor, set_learning_rate
from aux_code.training_state import TrainingState, detached_copy

log = logging.getLogger(__name__)

FREE_PARAMETERS = (
    "features",
    "output",
    "clips_per_pass",
    "memory_limit_gib",
    "minutes_between_saves",
)
"""Parameters that may differ between a run and its continuation, since no weight depends on
them."""

LAST_COSINE_FACTOR = 0.02
"""Where the cosine schedule ends, as a share of the learning rate (ours)."""


def trains_in_bf16(params: MgfnParams, device: torch.device) -> bool:
    """Whether training and the evaluation after an epoch compute in bf16."""
    return params.precision == "bf16" or (params.precision == "auto" and supports_bf16(device))


class Split(NamedTuple):
    """Indices into the training list."""

    train: list[int]
    validation: list[int]


def split_validation(labels: list[int], categories: list[str], fraction: float, seed: int) -> Split:
    """Holds out a share of each class, spread over the categories, drawn with the seed.

    Raises:
        UserError: the fraction is not in (0, 1) or a class has fewer than two videos.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"--validation_fraction {fraction}: give a share between 0 and 1, both excluded"
        )
    held_out = set()
    for label in (0, 1):
        members = [i for i, own in enumerate(labels) if own == label]
        if len(members) < 2:
            kind = ("normal", "anomalous")[label]
            raise UserError(
                f"{len(members)} {kind} training videos; two are needed, one of them for validation"
            )
        order = torch.randperm(
            len(members), generator=seeded_generator(seed, "validation", label)
        ).tolist()
        shuffled = sorted((members[i] for i in order), key=lambda i: categories[i])
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.update(shuffled[int((k + 0.5) * len(members) / count)] for k in range(count))
    return Split([i for i in range(len(labels)) if i not in held_out], sorted(held_out))


def pair_batches(
    n_normal: int, n_anomalous: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled pairs of normal and anomalous bags; every video occurs in each epoch, the smaller
    class repeatedly.

    Args:
        n_normal, n_anomalous: videos of each class, at least 1.
        batch_size: bags of each class per batch; never more than the larger class has.
        generator: of this epoch.

    Yields:
        (indices of normal videos, indices of anomalous videos), each (batch_size,).
    """
    largest = max(n_normal, n_anomalous)
    batch_size = min(batch_size, largest)
    n_batches = math.ceil(largest / batch_size)
    streams = []
    for count in (n_normal, n_anomalous):
        rounds = math.ceil(n_batches * batch_size / count)
        streams.append(
            torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
        )
    for start in range(0, n_batches * batch_size, batch_size):
        yield streams[0][start : start + batch_size], streams[1][start : start + batch_size]


class Choice:
    """The best epoch so far by one criterion; larger tuples are better."""

    def __init__(self) -> None:
        self.criterion: tuple[float, ...] = (-math.inf,)
        self.epoch = 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, criterion: tuple[float, ...], epoch: int, net: nn.Module) -> None:
        """Takes the epoch if it beats the best so far (a tie keeps the earlier one)."""
        if criterion > self.criterion:
            self.criterion, self.epoch, self.weights = criterion, epoch, detached_copy(net)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"criterion": self.criterion, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the choice of an interrupted run."""
        self.criterion, self.epoch, self.weights = (
            tuple(state["criterion"]),
            state["epoch"],
            state["weights"],
        )


@dataclass(frozen=True)
class HeldOut:
    """What is scored after an epoch."""

    validation: VideoFeatures
    validation_labels: np.ndarray
    test: VideoFeatures
    truths: list[VideoTruth]
    by_precision: bool
    """XD-Violence: the test epoch is chosen by the PR area instead of the ROC AUC (paper)."""


def validation_criterion(
    clip_scores: list[np.ndarray], labels: np.ndarray, top_k: int
) -> tuple[float, float]:
    """(video-level ROC AUC, minus the cross-entropy of the video scores): the second breaks ties of
    the first."""
    scores = np.array([video_score(s, top_k) for s in clip_scores], dtype=np.float64)
    auc = ranking_metrics(scores, labels.astype(np.float64), 1.0 - labels).roc_auc
    chance = np.clip(np.where(labels == 1, scores, 1 - scores), 1e-7, 1.0)
    return auc, float(np.log(chance).mean())


@dataclass(frozen=True)
class TrainingBags:
    """Segments of the training videos, on the device, in the format of the training."""

    data: Tensor
    """(V, n_crops, S, F + 1), the normal videos first."""
    n_normal: int

    @property
    def n_anomalous(self) -> int:
        """Number of anomalous videos."""
        return len(self.data) - self.n_normal

    def take(self, normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
        """The bags at these indices of each kind, counted from its first, (B, n_crops, S, F + 1)
        each.

        One call copies both, segment by segment: whole bags would be copied one after the other by
        all threads, in twice the time (and indexing in brackets goes element by element).
        """
        _, n_crops, n_segments, width = self.data.shape
        n_rows = n_crops * n_segments
        videos = torch.cat([normal, anomalous + self.n_normal])
        rows = (videos[:, None] * n_rows + torch.arange(n_rows)).flatten().to(self.data.device)
        bags = self.data.view(-1, width).index_select(0, rows).view(-1, n_crops, n_segments, width)
        return bags[: len(normal)], bags[len(normal) :]


def with_noise(bags: Tensor, share: float) -> Tensor:
    """Adds Gaussian noise of `share` standard deviations of each feature to bags (B, n_crops, S, F
    + 1).

    The magnitude, the last channel, is that of the noisy features. Few videos are learned by heart
    otherwise.
    """
    if share == 0:
        return bags
    features = bags[..., :-1].float()
    spread = features.std(dim=(0, 1, 2), keepdim=True)
    noisy = features + share * spread * torch.randn_like(features)
    return torch.cat([noisy, torch.linalg.vector_norm(noisy, dim=-1, keepdim=True)], dim=-1)


def training_losses(
    net: MGFN, normal: Tensor, anomalous: Tensor, params: MgfnParams
) -> dict[str, Tensor]:
    """The weighted parts of the loss on bags (B, n_crops, S, F + 1) of each class; their sum is
    minimised.

    Raises:
        UserError: the scores are not finite any more.
    """
    n_normal, bags = len(normal), torch.cat([normal, anomalous])
    candidates = draw_candidates(
        len(bags), bags.shape[2], params.top_k, params.candidate_dropout
    ).to(bags.device)
    wanted = candidates.clone()
    wanted[n_normal:] = True  # smoothness and sparsity take every score of an anomalous bag
    output = net(with_noise(bags, params.feature_noise), wanted=None if wanted.all() else wanted)
    if not torch.isfinite(output.scores).all():
        raise UserError(f"the training diverged: scores are not finite; lower --lr {params.lr}")
    weights = LossWeights(
        params.smoothness_weight, params.sparsity_weight, params.contrastive_weight, params.margin
    )
    # CUDA refuses a cross-entropy of probabilities under autocast; magnitudes need float32 anyway
    with torch.autocast(bags.device.type, enabled=False):
        scores, features = output.scores.float(), output.features.float()
        selections = [
            select_top_segments(scores[part], features[part], params.top_k, candidates[part])
            for part in (slice(0, n_normal), slice(n_normal, None))
        ]
        return mgfn_loss(*selections, scores[n_normal:], weights, params.loss)


class MilTraining:
    """The state of one training run: network, optimizer, epoch, best epochs; saved and restored
    exactly."""

    def __init__(self, params: MgfnParams, net: MGFN, run: Run, folder: Path):
        self.params, self.net, self.run, self.folder = params, net, run, folder
        if run.device.type == "cpu":
            keep_freed_memory()
        self.bf16 = trains_in_bf16(params, run.device)
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=params.lr, weight_decay=params.weight_decay, fused=True
        )
        self.epoch = 0
        self.choices = {"validation": Choice(), "best_on_test": Choice()}
        free = {*FREE_PARAMETERS, *(("epochs",) if params.lr_schedule == "constant" else ())}
        fingerprint = {key: value for key, value in asdict(params).items() if key not in free}
        stateful = {"net": net, "optimizer": self.optimizer, **self.choices}
        self.state = TrainingState(
            folder / "state.pth", fingerprint, stateful, params.minutes_between_saves
        )

    def restore(self) -> None:
        """Goes on from the saved state where there is one and --resume is given."""
        position = self.state.restore(self.params.resume)
        if position is not None:
            self.epoch = position["epoch"]
            log.info("going on after epoch %d", self.epoch)

    def is_complete(self) -> bool:
        """Whether --resume finds a finished run.

        Raises:
            UserError: it was finished with other parameters, or after fewer epochs than are wanted
                now.
        """
        last = self.folder / "last.pth"
        if not self.state.is_complete(last, self.params.resume):
            return False
        n_epochs = load_checkpoint(last)["epoch"]
        if n_epochs != self.params.epochs:
            raise UserError(
                f"{last} was finished after {n_epochs} epochs; train {self.params.epochs} anew with another --run_id"
            )
        return True

    def train(self, bags: TrainingBags, held_out: HeldOut) -> None:
        """All epochs that are left. Ctrl-C and SIGTERM end it after the current one, with its state
        saved."""
        epochs = range(self.epoch, self.params.epochs)
        bar = progress(epochs, "mgfn", initial=self.epoch, total=self.params.epochs)
        with InterruptRequest() as interrupt:
            for epoch in bar:
                losses = self.train_epoch(bags, epoch)
                self.epoch = epoch + 1
                self.log_scalars(losses)
                if self.epoch == self.params.epochs or self.epoch % self.params.evaluate_every == 0:
                    found = self.evaluate_epoch(held_out)
                    self.log_scalars(found)
                    shown = {
                        "loss": f"{losses['total']:.3f}",
                        "validation": f"{found['validation_auc']:.3f}",
                    }
                    bar.set_postfix(shown, refresh=False)
                if interrupt.requested is not None:
                    self.state.save({"epoch": self.epoch})
                    interrupt.honour()
                self.state.save_if_due({"epoch": self.epoch})
        self.state.save({"epoch": self.epoch})

    def train_epoch(self, bags: TrainingBags, epoch: int) -> dict[str, float]:
        """One pass over all videos; returns the mean of each named part of the loss."""
        seed = self.params.seed
        torch.manual_seed(derived_seed(seed, "mgfn dropout", epoch))
        factor = learning_rate_factor(
            epoch, self.params.epochs, 0, self.params.lr_schedule, LAST_COSINE_FACTOR
        )
        set_learning_rate(self.optimizer, self.params.lr, factor)
        self.net.train()
        generator = seeded_generator(seed, "mgfn pairs", epoch)
        sums: dict[str, float] = {}
        n_batches = 0
        for normal, anomalous in pair_batches(
            bags.n_normal, bags.n_anomalous, self.params.batch_size, generator
        ):
            parts = self.step(*bags.take(normal, anomalous))
            n_batches += 1
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value
        return {key: value / n_batches for key, value in sums.items()}

    def step(self, normal: Tensor, anomalous: Tensor) -> dict[str, float]:
        """One update on bags (B, n_crops, S, F + 1) of each class; returns the parts of the
        loss."""
        with self.autocast():
            parts = training_losses(self.net, normal, anomalous, self.params)
        total = sum(parts.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {"total": total.item(), **{key: value.item() for key, value in parts.items()}}

    def autocast(self) -> torch.autocast:
        """The context of this run's number format."""
        return torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.bf16)

    def evaluate_epoch(self, held_out: HeldOut) -> dict[str, float]:
        """Scores validation and test videos and keeps the weights of the epoch that each criterion
        likes best."""
        device, limit = self.run.device, self.params.clips_per_pass
        with self.autocast():
            scores = score_videos(self.net, held_out.validation, device, limit)
            test_scores = score_videos(self.net, held_out.test, device, limit)
        criterion = validation_criterion(scores, held_out.validation_labels, self.params.top_k)
        self.choices["validation"].offer(criterion, self.epoch, self.net)
        metrics = weighted_scores(test_scores, held_out.truths).metrics()
        chosen_by = metrics.pr_auc if held_out.by_precision else metrics.roc_auc
        self.choices["best_on_test"].offer((chosen_by,), self.epoch, self.net)
        return {
            "validation_auc": criterion[0],
            "test_auc": metrics.roc_auc,
            "test_ap": metrics.pr_auc,
        }

    def log_scalars(self, values: dict[str, float]) -> None:
        """Writes TensorBoard scalars of this epoch."""
        for key, value in values.items():
            self.run.writer.add_scalar(f"{self.folder.name}/{key}", value, self.epoch)
