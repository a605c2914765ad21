"""A quick look at what the privacy network f_B can read from anonymized pictures while the
anonymizer trains.

A ridge regression from f_B's features to VISPR's private attributes, fitted on one part of the
*training* images and judged on another. It is watched in TensorBoard and nothing else: no weight,
no schedule and no choice of `best` depends on it, so the training stays without labels. A fresh
attacker (stage 2) reads more than this probe.
"""

import logging

import torch
from torch import Tensor, nn

from aux_code import config
from aux_code.datasets.decode import DecodedCache, UnreadableMedia
from aux_code.datasets.transforms import evaluation_images
from aux_code.datasets.vispr import Vispr
from aux_code.errors import UserError
from aux_code.metrics import attribute_metrics
from aux_code.runs import seeded_generator

log = logging.getLogger(__name__)

N_IMAGES = 1000
"""Training images that the probe looks at, at most; drawn once."""
HELD_OUT = 4
"""One image of so many judges the probe, the others fit it."""
RIDGE = 1.0
"""Penalty on the weights of standardised features, per fitted image."""


class PrivacyProbe:
    """The labelled images, found when first used; without annotations the probe is silent.

    Args:
        cache: decodes.
        size: height and width in pixels.
        device: where f_A and f_B are.
    """

    def __init__(self, cache: DecodedCache, size: int, device: torch.device):
        self.cache, self.size, self.device = cache, size, device
        self._data: tuple[Tensor, Tensor] | None = None
        self._missing = False

    @torch.no_grad()
    def cmap(self, fa: nn.Module, fb: nn.Module) -> float | None:
        """Mean average precision in [0, 1] on the held-out images; None without labels. The modes
        are restored."""
        data = self._images_and_labels()
        if data is None:
            return None
        images, labels = data
        modes = fa.training, fb.training
        fa.eval(), fb.eval()
        parts = [
            fb.extract_features(fa(part.to(self.device))).double().cpu()
            for part in images.split(64)
        ]
        fa.train(modes[0]), fb.train(modes[1])
        judged = torch.arange(len(images)) % HELD_OUT == 0
        scores = ridge_scores(torch.cat(parts), labels, judged)
        return attribute_metrics(scores.numpy(), labels[judged].numpy()).cmap

    def _images_and_labels(self) -> tuple[Tensor, Tensor] | None:
        """(N, 3, H, W) pictures at evaluation geometry and (N, n_attributes) labels."""
        if self._data is None and not self._missing:
            try:
                vispr = Vispr(config.VISPR_ROOT, "train")
                chosen = torch.randperm(len(vispr), generator=seeded_generator("privacy probe"))[
                    :N_IMAGES
                ].tolist()
                arrays = [self.cache.read_image(vispr[i]) for i in chosen]
                labels = torch.from_numpy(vispr.labels[chosen]).double()
                self._data = evaluation_images(arrays, self.size), labels
            except (UserError, UnreadableMedia) as error:
                log.warning("no privacy probe: %s", error)
                self._missing = True
        return self._data


def ridge_scores(features: Tensor, labels: Tensor, judged: Tensor) -> Tensor:
    """Scores (n_judged, n_attributes) of a ridge regression fitted on the rows that are not judged.

    Args:
        features: (N, F) float64.
        labels: (N, n_attributes) float64.
        judged: (N,) bool.
    """
    fitted = features[~judged]
    mean, deviation = fitted.mean(0), fitted.std(0).clamp_min(1e-8)
    x, y = (fitted - mean) / deviation, labels[~judged]
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(0)))
    return ((features[judged] - mean) / deviation) @ weights + y.mean(0)
