"""Training of MGFN by multiple-instance learning: pairs of bags, epochs, choice of the epoch."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_detection_mgfn.feature_bags import VideoFeatures
from anomaly_detection_mgfn.ground_truth import VideoTruth
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_losses import draw_candidates, mgfn_loss, select_top_segments
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.scoring import score_bags, score_videos, video_score, weighted_scores
from aux_code.artefacts import Recipe
from aux_code.devices import autocast, keep_freed_memory, to_device
from aux_code.errors import UserError
from aux_code.metrics import ranking_metrics
from aux_code.progress import progress
from aux_code.runs import InterruptRequest, Run, derived_seed, seeded_generator
from aux_code.schedules import learning_rate_factor, set_learning_rate
from aux_code.training_state import TrainingState, detached_copy

log = logging.getLogger(__name__)

STATE = "state.pth"
"""File of an unfinished training, in the folder of the run's data set."""

LAST_COSINE_FACTOR = 0.02
"""Where the cosine schedule ends, as a share of the learning rate (ours)."""


def split_validation(
    labels: list[int], categories: list[str], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Holds out a share of each class, spread over the categories, drawn with the seed: indices of
    the videos to train on, and of those to validate with; with a fraction of 0 there are none.

    Raises:
        UserError: a class has no video, or one where some are held out.
    """
    held_out: set[int] = set()
    for label, kind in enumerate(("normal", "anomalous")):
        members = [i for i, own in enumerate(labels) if own == label]
        if len(members) < (2 if fraction else 1):
            needed = "validation needs one of two" if fraction else "one is needed"
            raise UserError(f"{len(members)} {kind} training videos; {needed}")
        if not fraction:
            continue
        generator = seeded_generator(seed, "validation", label)
        order = torch.randperm(len(members), generator=generator).tolist()
        shuffled = sorted((members[i] for i in order), key=lambda i: categories[i])
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out.update(shuffled[int((k + 0.5) * len(members) / count)] for k in range(count))
    return [i for i in range(len(labels)) if i not in held_out], sorted(held_out)


def pair_batches(
    n_normal: int, n_anomalous: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled pairs of bags; every video occurs in each epoch, the smaller class repeatedly.

    Yields (indices of normal videos, indices of anomalous videos), each (batch_size,), or as many
    as the larger class has. The generator is that of the epoch.
    """
    largest = max(n_normal, n_anomalous)
    batch_size = min(batch_size, largest)
    needed = math.ceil(largest / batch_size) * batch_size
    streams = [
        torch.cat([torch.randperm(n, generator=generator) for _ in range(math.ceil(needed / n))])
        for n in (n_normal, n_anomalous)
    ]
    for start in range(0, needed, batch_size):
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
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the choice of an interrupted run."""
        vars(self).update(state)


@dataclass(frozen=True)
class TrainingData:
    """Training videos as bags (V, n_crops, S, F + 1) on the device, test videos whole."""

    normal: Tensor
    anomalous: Tensor
    validation: Tensor | None
    """Bags of the videos that are held out to choose the epoch; None: no video is."""
    validation_labels: np.ndarray
    test: VideoFeatures
    truths: list[VideoTruth]
    by_precision: bool
    """XD-Violence: the test epoch is chosen by the PR area instead of the ROC AUC (paper)."""


def validation_criterion(scores: Tensor, labels: np.ndarray, top_k: int) -> tuple[float, float]:
    """(ROC AUC of videos, minus their cross-entropy, which breaks ties) of scores (V, S)."""
    of_videos = np.array([video_score(own, top_k) for own in scores.numpy()], dtype=np.float64)
    auc = ranking_metrics(of_videos, labels.astype(np.float64), 1.0 - labels).roc_auc
    chance = np.clip(np.where(labels == 1, of_videos, 1 - of_videos), 1e-7, 1.0)
    return auc, float(np.log(chance).mean())


def with_noise(bags: Tensor, share: float) -> Tensor:
    """Adds Gaussian noise of `share` standard deviations of each feature to bags (B, n_crops, S,
    F + 1), and makes their magnitudes anew; else few videos are learned by heart."""
    if share == 0:
        return bags
    features = bags[..., :-1].float()
    spread = features.std(dim=(0, 1, 2), keepdim=True)
    noisy = features + share * spread * torch.randn_like(features)
    return torch.cat([noisy, torch.linalg.vector_norm(noisy, dim=-1, keepdim=True)], dim=-1)


def training_losses(
    net: MGFN, normal: Tensor, anomalous: Tensor, params: MgfnParams
) -> dict[str, Tensor]:
    """The weighted parts of the loss on bags (B, n_crops, S, F + 1) of each class, to be summed.

    Raises:
        UserError: a score is not finite any more.
    """
    n_normal, bags = len(normal), torch.cat([normal, anomalous])
    shape = len(bags), bags.shape[2]
    drawn = draw_candidates(*shape, params.top_k, params.candidate_dropout)
    candidates = to_device(drawn, bags.device)
    output = net(with_noise(bags, params.feature_noise))
    if not torch.isfinite(output.scores).all():
        raise UserError(f"the training diverged: scores are not finite; lower --lr {params.lr}")
    # CUDA refuses a cross-entropy of probabilities under autocast; magnitudes need float32 anyway
    with torch.autocast(bags.device.type, enabled=False):
        scores, features = output.scores.float(), output.features.float()
        selections = [
            select_top_segments(scores[part], features[part], params.top_k, candidates[part])
            for part in (slice(0, n_normal), slice(n_normal, None))
        ]
        return mgfn_loss(*selections, scores[n_normal:], params)


class MilTraining:
    """One training run: network, optimizer, epoch, best epochs; saved and restored exactly."""

    def __init__(self, params: MgfnParams, net: MGFN, run: Run, folder: Path, made_of: Recipe):
        self.params, self.net, self.run, self.folder = params, net, run, folder
        if run.device.type == "cpu":
            keep_freed_memory()
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=params.lr, weight_decay=params.weight_decay, fused=True
        )
        chosen_on = ["validation"] if params.validation_fraction else []
        self.choices = {name: Choice() for name in (*chosen_on, "best_on_test")}
        stateful = {"net": net, "optimizer": self.optimizer, **self.choices}
        minutes = params.minutes_between_saves
        self.state = TrainingState(folder / STATE, made_of, stateful, minutes)
        self.epoch = 0

    def train(self, data: TrainingData) -> None:
        """All epochs that are left, with --resume from the saved state on; Ctrl-C and SIGTERM end
        it, saved, after the current one."""
        if position := self.state.restore(self.params.resume):
            self.epoch = position["epoch"]
            log.info("going on after epoch %d", self.epoch)
        n_epochs = self.params.epochs
        bar = progress(range(self.epoch, n_epochs), "mgfn", initial=self.epoch, total=n_epochs)
        with InterruptRequest() as interrupt:
            for epoch in bar:
                found = self.train_epoch(data, epoch)
                self.epoch = epoch + 1
                if self.epoch == n_epochs or self.epoch % self.params.evaluate_every == 0:
                    found |= self.evaluate_epoch(data)
                    shown = ("total", "validation_auc")
                    shown = {key: f"{found[key]:.3f}" for key in shown if key in found}
                    bar.set_postfix(shown, refresh=False)
                for key, value in found.items():
                    self.run.writer.add_scalar(f"{self.folder.name}/{key}", value, self.epoch)
                if interrupt.requested is not None:
                    self.state.save({"epoch": self.epoch})
                    interrupt.honour()
                self.state.save_if_due({"epoch": self.epoch})
        self.state.save({"epoch": self.epoch})

    def train_epoch(self, data: TrainingData, epoch: int) -> dict[str, float]:
        """One pass over all videos; returns the mean of each named part of the loss."""
        params, device = self.params, data.normal.device
        torch.manual_seed(derived_seed(params.seed, "mgfn dropout", epoch))
        schedule = epoch, params.epochs, 0, params.lr_schedule, LAST_COSINE_FACTOR
        set_learning_rate(self.optimizer, params.lr, learning_rate_factor(*schedule))
        self.net.train()
        generator = seeded_generator(params.seed, "mgfn pairs", epoch)
        counts = len(data.normal), len(data.anomalous), params.batch_size
        parts = [
            # index_select copies whole bags; indexing in brackets goes element by element
            self.step(
                data.normal.index_select(0, to_device(normal, device)),
                data.anomalous.index_select(0, to_device(anomalous, device)),
            )
            for normal, anomalous in pair_batches(*counts, generator)
        ]
        return {key: sum(own[key] for own in parts) / len(parts) for key in parts[0]}

    def step(self, normal: Tensor, anomalous: Tensor) -> dict[str, float]:
        """One update on bags (B, n_crops, S, F + 1) of each class; the parts of the loss."""
        with autocast(self.run.device, self.params.precision):
            parts = training_losses(self.net, normal, anomalous, self.params)
        total = sum(parts.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        values = torch.stack([total, *parts.values()]).tolist()  # one wait for the device
        return dict(zip(("total", *parts), values, strict=True))

    def evaluate_epoch(self, data: TrainingData) -> dict[str, float]:
        """Scores validation bags, if any, and test videos; keeps the best weights by each."""
        device, limit, found = self.run.device, self.params.clips_per_pass, {}
        with autocast(device, self.params.precision):
            if data.validation is not None:
                scores = score_bags(self.net, data.validation, limit)
                labels, top_k = data.validation_labels, self.params.top_k
                criterion = validation_criterion(scores, labels, top_k)
                self.choices["validation"].offer(criterion, self.epoch, self.net)
                found["validation_auc"] = criterion[0]
            test_scores = score_videos(self.net, data.test, device, limit)
        metrics = weighted_scores(test_scores, data.truths).metrics()
        chosen_by = metrics.pr_auc if data.by_precision else metrics.roc_auc
        self.choices["best_on_test"].offer((chosen_by,), self.epoch, self.net)
        return {**found, "test_auc": metrics.roc_auc, "test_ap": metrics.pr_auc}
