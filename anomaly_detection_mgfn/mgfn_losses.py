"""MGFN's training losses: pure functions of the network's output on normal and anomalous bags."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_detection_mgfn.params_mgfn import MgfnParams


class Selection(NamedTuple):
    """The k segments of largest feature magnitude of each of B bags."""

    scores: Tensor
    """(B,) mean score of the segments."""
    features: Tensor
    """(B, n_crops, k, F)."""


def draw_candidates(
    n_bags: int, n_segments: int, k: int, dropout: float, generator: torch.Generator | None = None
) -> Tensor:
    """Segments that may be selected, so that not always the same ones learn (paper: 0.7 are passed
    over in training).

    Args:
        n_bags, n_segments: B and T.
        k: segments to select; a bag that would keep fewer keeps all (the release takes any).
        dropout: probability of passing over a segment, in [0, 1).
        generator: of the CPU, where the result (B, T) bool is; None: the global one.
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


def mgfn_loss(
    normal: Selection, anomalous: Selection, anomalous_scores: Tensor, params: MgfnParams
) -> dict[str, Tensor]:
    """The weighted parts of the loss, to be summed: classification, smoothness, sparsity and
    contrastive, each ().

    Form "paper" takes smoothness and sparsity per video, and the contrastive distance itself over
    all pairs; "release" lets smoothness run across video borders, takes one norm over the batch,
    and squares the contrastive distance of bags at equal places.

    Args:
        normal: of B_n normal bags.
        anomalous: of B_a anomalous bags.
        anomalous_scores: (B_a, T), all scores of the anomalous bags.
        params: weights, margin and form.
    """
    smoothness, sparsity, contrastive = FORMS[params.loss]
    scores = torch.cat([normal.scores, anomalous.scores])
    labels = torch.cat([torch.zeros_like(normal.scores), torch.ones_like(anomalous.scores)])
    contrast = contrastive(normal.features, anomalous.features, params.margin)
    return {
        "classification": F.binary_cross_entropy(scores, labels),
        "smoothness": params.smoothness_weight * smoothness(anomalous_scores),
        "sparsity": params.sparsity_weight * sparsity(anomalous_scores),
        "contrastive": params.contrastive_weight * contrast,
    }


def smoothness_loss(scores: Tensor) -> Tensor:
    """Mean over videos and neighbours of the squared difference of scores (B, T); 0 for T = 1.

    The mean (ours; the paper gives no formula) makes the weight independent of T and of the batch.
    """
    return scores.diff(dim=1).square().mean() if scores.shape[1] > 1 else scores.sum() * 0


def sparsity_loss(scores: Tensor) -> Tensor:
    """Mean of the scores (B, T), which are >= 0: most of an anomalous video is normal."""
    return scores.mean()


def smoothness_loss_release(scores: Tensor) -> Tensor:
    """The release's: sum of squared differences over the flattened (B, T), across videos."""
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
        mean over mixed pairs of max(margin - D, 0). D: Euclidean, of the k segments' L1 norms,
        means of the crops.
    """
    normal, anomalous = (features.abs().sum(-1).mean(1) for features in (normal, anomalous))
    between = F.relu(margin - torch.cdist(normal, anomalous)).mean()
    return between + _mean_distance(normal) + _mean_distance(anomalous)


def _mean_distance(magnitudes: Tensor) -> Tensor:
    """Mean Euclidean distance of the B (B - 1) / 2 pairs of rows (B, k); 0 for one row."""
    return F.pdist(magnitudes).mean() if len(magnitudes) > 1 else magnitudes.sum() * 0


def magnitude_contrastive_loss_release(normal: Tensor, anomalous: Tensor, margin: float) -> Tensor:
    """The release's: squared, bags at equal places; 0.001 * between + within each kind.

    Within a kind the first half of the rows (bag and crop) meets the second, without an odd last
    row. Arguments as for `magnitude_contrastive_loss`; the shorter of the two kinds counts.
    """
    # each (B * n_crops, k)
    rows = [features.abs().sum(-1).flatten(0, 1) for features in (normal, anomalous)]
    length = min(len(rows[0]), len(rows[1]))
    apart = F.relu(margin - F.pairwise_distance(rows[1][:length], rows[0][:length]))
    loss = 0.001 * apart.square().mean()
    for magnitudes in rows:
        half = len(magnitudes) // 2
        if half:
            distance = F.pairwise_distance(magnitudes[half : 2 * half], magnitudes[:half])
            loss = loss + distance.square().mean()
    return loss


FORMS = {
    "paper": (smoothness_loss, sparsity_loss, magnitude_contrastive_loss),
    "release": (smoothness_loss_release, sparsity_loss_release, magnitude_contrastive_loss_release),
}
"""Form -> its functions for smoothness, sparsity and the contrastive part."""
