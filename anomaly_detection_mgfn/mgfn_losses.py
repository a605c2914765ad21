"""MGFN's training losses: pure functions of the network's output on normal and anomalous bags."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Selection(NamedTuple):
    """The k segments of largest feature magnitude of each of B bags."""

    scores: Tensor
    """(B,) mean score of the segments."""
    features: Tensor
    """(B, n_crops, k, F) their features."""


def draw_candidates(
    n_bags: int, n_segments: int, k: int, dropout: float, generator: torch.Generator | None = None
) -> Tensor:
    """Segments that may be selected, so that not always the same ones learn (paper: in training 0.7
    are passed over).

    Args:
        n_bags, n_segments: B and T.
        k: segments that will be selected; a bag that would keep fewer keeps all (the release takes
            any).
        dropout: probability of passing over a segment, in [0, 1).
        generator: of the CPU; None: the global one.

    Returns:
        (B, T) bool, on the CPU.
    """
    if dropout == 0:
        return torch.ones(n_bags, n_segments, dtype=torch.bool)
    kept = torch.rand(n_bags, n_segments, generator=generator) >= dropout
    return kept | (kept.sum(1, keepdim=True) < k)


def select_top_segments(
    scores: Tensor, features: Tensor, k: int, candidates: Tensor | None = None
) -> Selection:
    """Selects the segments that stand for a bag (paper: k = 3).

    Args:
        scores: (B, T) in [0, 1].
        features: (B, n_crops, T, F); the magnitude is their L2 norm, averaged over the crops.
        k: segments to select, all of them where T < k.
        candidates: (B, T) bool, those to select from; None: all.
    """
    magnitudes = torch.linalg.vector_norm(features, dim=-1).mean(1)
    if candidates is not None:
        magnitudes = magnitudes.masked_fill(~candidates, -1)
    chosen = magnitudes.topk(min(k, magnitudes.shape[1]), dim=1).indices
    n_crops, _, width = features.shape[1:]
    index = chosen[:, None, :, None].expand(-1, n_crops, -1, width)
    return Selection(scores.gather(1, chosen).mean(1), features.gather(2, index))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts beside the cross-entropy."""

    smoothness: float
    """Of the difference of neighbouring scores of anomalous bags."""
    sparsity: float
    """Of the size of the scores of anomalous bags."""
    contrastive: float
    """Of the magnitude-contrastive part."""
    margin: float = 200.0
    """Distance of magnitudes that normal and anomalous bags shall keep, for 1024-d features (the L1
    norm grows with their number)."""


PAPER_WEIGHTS = LossWeights(smoothness=1.0, sparsity=1.0, contrastive=0.001)
RELEASE_WEIGHTS = LossWeights(smoothness=8e-4, sparsity=8e-3, contrastive=0.001)


def mgfn_loss(
    normal: Selection,
    anomalous: Selection,
    anomalous_scores: Tensor,
    weights: LossWeights,
    form: str = "paper",
) -> dict[str, Tensor]:
    """The weighted parts of the loss; their sum is minimised.

    Args:
        normal: of B_n normal bags.
        anomalous: of B_a anomalous bags.
        anomalous_scores: (B_a, T), all scores of the anomalous bags.
        weights: PAPER_WEIGHTS, RELEASE_WEIGHTS or others.
        form: "paper" takes smoothness and sparsity per video, and the contrastive distance itself
            over all pairs; "release" lets smoothness run across video borders, takes one norm over
            the batch, and squares the contrastive distance of bags at equal places.

    Returns:
        "classification", "smoothness", "sparsity", "contrastive", each ().

    Raises:
        ValueError: unknown form.
    """
    if form not in ("paper", "release"):
        raise ValueError(f"form must be 'paper' or 'release', got '{form}'")
    release = form == "release"
    scores = torch.cat([normal.scores, anomalous.scores]).float()
    labels = torch.cat([torch.zeros_like(normal.scores), torch.ones_like(anomalous.scores)]).float()
    smoothness = (
        smoothness_loss_release(anomalous_scores) if release else smoothness_loss(anomalous_scores)
    )
    sparsity = (
        sparsity_loss_release(anomalous_scores) if release else sparsity_loss(anomalous_scores)
    )
    contrast = magnitude_contrastive_loss_release if release else magnitude_contrastive_loss
    contrastive = contrast(normal.features, anomalous.features, weights.margin)
    return {
        "classification": F.binary_cross_entropy(scores, labels),
        "smoothness": weights.smoothness * smoothness,
        "sparsity": weights.sparsity * sparsity,
        "contrastive": weights.contrastive * contrastive,
    }


def smoothness_loss(scores: Tensor) -> Tensor:
    """Mean over videos and neighbours of the squared difference of scores (B, T); never across a
    video's border.

    The mean (ours; the paper gives no formula) makes the weight independent of T and of the batch.
    T = 1 gives 0.
    """
    return scores.diff(dim=1).square().mean() if scores.shape[1] > 1 else scores.sum() * 0


def sparsity_loss(scores: Tensor) -> Tensor:
    """Mean over videos and segments of the scores (B, T), which are >= 0: most of an anomalous
    video is normal."""
    return scores.mean()


def smoothness_loss_release(scores: Tensor) -> Tensor:
    """The release's: sum of squared differences over the flattened batch (B, T), across the borders
    of videos."""
    return scores.flatten().diff().square().sum()


def sparsity_loss_release(scores: Tensor) -> Tensor:
    """The release's: one L2 norm over all scores (B, T) of the batch."""
    return torch.linalg.vector_norm(scores)


def magnitude_contrastive_loss(normal: Tensor, anomalous: Tensor, margin: float) -> Tensor:
    """Magnitudes of one kind close together, of the two kinds at least `margin` apart (MGFN, L_mc).

    Args:
        normal: (B_n, n_crops, k, F) features of the selected segments.
        anomalous: (B_a, n_crops, k, F).
        margin: >= 0, in units of the L1 norm of a feature.

    Returns:
        () mean over pairs of normal bags of the distance D, plus that of anomalous bags, plus the
        mean over mixed pairs of max(margin - D, 0). D: Euclidean distance of the bags' L1 norms of
        k segments, mean of the crops.
    """
    normal, anomalous = (features.abs().sum(-1).mean(1) for features in (normal, anomalous))
    between = F.relu(margin - torch.cdist(normal, anomalous)).mean()
    return between + _mean_distance(normal) + _mean_distance(anomalous)


def _mean_distance(magnitudes: Tensor) -> Tensor:
    """Mean Euclidean distance of the B (B - 1) / 2 pairs of rows (B, k); 0 for one row."""
    return F.pdist(magnitudes).mean() if len(magnitudes) > 1 else magnitudes.sum() * 0


def magnitude_contrastive_loss_release(normal: Tensor, anomalous: Tensor, margin: float) -> Tensor:
    """The release's form: squared, bags at equal places only; 0.001 * between + within normal +
    within anomalous.

    Within a kind the first half of the rows (bag and crop) meets the second; an odd last row is
    left out. Arguments as for `magnitude_contrastive_loss`, with as many normal as anomalous bags;
    the shorter length counts.
    """
    rows = [features.abs().sum(-1).flatten(0, 1) for features in (normal, anomalous)]
    length = min(len(rows[0]), len(rows[1]))
    apart = F.relu(margin - F.pairwise_distance(rows[1][:length], rows[0][:length]))
    loss = 0.001 * apart.square().mean()
    for magnitudes in rows:
        half = len(magnitudes) // 2
        if half:
            loss = (
                loss
                + F.pairwise_distance(magnitudes[half : 2 * half], magnitudes[:half])
                .square()
                .mean()
            )
    return loss
