"""The baseline of benchmarks/mgfn.py: MGFN's epoch as a plain loop, fp32, default allocator."""

import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import auc, precision_recall_curve, roc_curve
from torch import Tensor
from torch.nn import functional as F

from anomaly_detection_mgfn.mgfn import MGFN, Backbone, Focus
from anomaly_detection_mgfn.mgfn_losses import draw_candidates, mgfn_loss, select_top_segments
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from benchmarks.machine import seconds_of


def _conv(layer: torch.nn.Conv1d, x: Tensor) -> Tensor:
    return F.conv1d(x, layer.weight, layer.bias, padding=layer.padding)


def _norm(layer, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    return (x - mean) / (variance.clamp_min(1e-12).sqrt() + layer.eps) * layer.g + layer.b


def _mix(layer, x: Tensor) -> Tensor:
    """Glance, with its whole T x T matrix, or focus."""
    if isinstance(layer, Focus):
        values = _conv(layer.to_v, layer.norm(x))
        return _conv(
            layer.to_out,
            layer.rel_pos(values.reshape(-1, layer.heads, x.shape[-1])).view_as(values),
        )
    q, k, v = _conv(layer.to_qkv, _norm(layer.norm, x)).unflatten(1, (3, layer.heads, -1)).unbind(1)
    attention = (q.transpose(-1, -2) @ k / q.shape[2] ** 0.5).softmax(-1)
    return _conv(layer.to_out, (v @ attention.transpose(-1, -2)).flatten(1, 2))


def plain_forward(net: MGFN, bags: Tensor) -> tuple[Tensor, Tensor]:
    """(scores (B, T), features (B, n_crops, T, C)) of bags, computed as one-dimensional
    convolutions of (B, C, T)."""
    x = bags.flatten(0, 1).transpose(1, 2)
    x = _conv(net.to_tokens, x[:, :-1]) + net.magnitude_ratio * _conv(net.to_mag, x[:, -1:])
    for part in (part for stage in net.stages for part in stage):
        if not isinstance(part, Backbone):
            x = _conv(part[1], _norm(part[0], x))
            continue
        for shortcut, attention, (norm, widen, gelu, _, narrow) in part.layers:
            x = _conv(shortcut, x) + x
            x = _mix(attention, x) + x
            x = _conv(narrow, gelu(_conv(widen, _norm(norm, x)))) + x
    features = net.to_logits(x.transpose(1, 2))
    scores = net.fc(features).squeeze(-1).sigmoid()
    return scores.unflatten(0, bags.shape[:2]).mean(1), features.unflatten(0, bags.shape[:2])


class PlainEpoch:
    """One epoch at a time: every file is read and pooled, 16 + 16 bags a step, every fifth bag is
    scored as held out, then one test video per pass."""

    def __init__(
        self,
        params: MgfnParams,
        kinds: tuple[list[Path], list[Path]],
        test: list[Path],
        labels: list[np.ndarray],
    ):
        torch.manual_seed(0)
        self.params, self.kinds, self.test, self.labels = params, kinds, test, labels
        self.cpu_seconds: list[float] = []
        self.net = MGFN()
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=params.lr, weight_decay=params.weight_decay
        )

    def load(self) -> list[list[np.ndarray]]:
        """Bags (S, F + 1) of the normal and of the anomalous videos."""
        return [[self._pooled(np.load(path)) for path in paths] for paths in self.kinds]

    def _pooled(self, features: np.ndarray) -> np.ndarray:
        borders = np.linspace(0, len(features), self.params.n_segments + 1, dtype=int)
        rows = [
            features[start:end].mean(0) if start < end else features[start]
            for start, end in zip(borders[:-1], borders[1:], strict=True)
        ]
        return self._with_magnitude(np.stack(rows))

    @staticmethod
    def _with_magnitude(features: np.ndarray) -> np.ndarray:
        return np.concatenate([features, np.linalg.norm(features, axis=1, keepdims=True)], axis=1)

    def train(self, bags: list[list[np.ndarray]]) -> None:
        """The steps of an epoch."""
        params, size = self.params, self.params.batch_size
        self.net.train()
        for start in range(0, max(map(len, bags)), size):
            batch = [kind[(start + i) % len(kind)] for kind in bags for i in range(size)]
            scores, features = plain_forward(self.net, torch.from_numpy(np.stack(batch)[:, None]))
            candidates = draw_candidates(*scores.shape, params.top_k, params.candidate_dropout)
            selections = [
                select_top_segments(scores[part], features[part], params.top_k, candidates[part])
                for part in (slice(0, size), slice(size, None))
            ]
            loss = sum(mgfn_loss(*selections, scores[size:], params).values())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def validate(self, bags: list[list[np.ndarray]]) -> None:
        """Scores every fifth bag."""
        self.net.eval()
        for bag in (bag for kind in bags for bag in kind[::5]):
            plain_forward(self.net, torch.from_numpy(bag[None, None]))

    @torch.no_grad()
    def score(self) -> list[np.ndarray]:
        """Clip scores of each test video."""
        self.net.eval()
        videos = (self._with_magnitude(np.load(path)) for path in self.test)
        return [
            plain_forward(self.net, torch.from_numpy(v[None, None]))[0][0].numpy() for v in videos
        ]

    def epoch(self) -> float:
        """Seconds of one epoch with its evaluation."""
        started = time.process_time()

        def run() -> None:
            bags = self.load()
            self.train(bags)
            self.validate(bags)
            list_metrics(self.score(), self.labels)

        seconds = seconds_of(run)
        self.cpu_seconds.append(time.process_time() - started)
        return seconds


def list_metrics(clip_scores: list[np.ndarray], labels: list[np.ndarray]) -> tuple[float, float]:
    """(ROC AUC, PR area) of frame lists: each score 32 times, cut to the video's frames."""
    scores: list[float] = []
    truth: list[int] = []
    for own, frames in zip(clip_scores, labels, strict=True):
        scores.extend(np.repeat(own, 32)[: len(frames)])
        truth.extend(frames)
    false, true, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    return auc(false, true), auc(recall, precision)
