"""The temporal losses against slow, obvious versions."""

import math

import pytest
import torch
from torch.nn import functional as F

from aux_code.losses.temporal import (
    local_local_temporal_contrastive_loss,
    temporal_invariance_loss,
    temporally_distinct_loss,
)


def random_rows(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def obvious_triplet(anchor, positive, negative, margin):
    losses = []
    for a, p, n in zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True):
        near, far = math.dist(a, p), math.dist(a, n)
        losses.append(max(near - far + margin, 0.0))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.0])
def test_triplet_equals_the_obvious_version(margin):
    rows = [F.normalize(random_rows(9, 6, seed=seed), dim=1) for seed in range(3)]
    expected = obvious_triplet(*rows, margin)
    assert temporally_distinct_loss(*rows, margin).item() == pytest.approx(expected, rel=1e-12)


def test_triplet_by_hand():
    anchor = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    positive = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    negative = torch.tensor([[0.0, 2.0], [0.0, 9.0]])
    # max(5 - 2 + 1, 0) = 4 and max(1 - 9 + 1, 0) = 0
    assert temporally_distinct_loss(anchor, positive, negative, 1.0).item() == 2.0


def test_triplet_pulls_the_positive_and_pushes_the_negative():
    anchor = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[0.8, 0.6]], requires_grad=True)
    negative = torch.tensor([[0.6, 0.8]], requires_grad=True)
    temporally_distinct_loss(anchor, positive, negative, 1.0).backward()
    assert ((positive - anchor) * positive.grad).sum() > 0
    assert ((negative - anchor) * negative.grad).sum() < 0


def test_triplet_has_a_finite_gradient_where_embeddings_coincide():
    same = torch.ones(2, 4, requires_grad=True)
    temporally_distinct_loss(same, same * 1.0, same * 1.0, 1.0).backward()
    assert torch.isfinite(same.grad).all()


def test_triplet_wrong_shapes():
    with pytest.raises(ValueError, match="share one shape"):
        temporally_distinct_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3), 1.0)


def obvious_lltc(first, second, temperature):
    """TCLR's local-local loss: clips of other times of the same video, in both views, are the
    negatives."""
    losses = []
    for one, two in zip(first, second, strict=True):
        for own, other in ((one, two), (two, one)):
            for p in range(len(own)):
                positive = math.exp(float(own[p] @ other[p]) / temperature)
                rest = sum(
                    math.exp(float(own[p] @ own[q]) / temperature)
                    for q in range(len(own))
                    if q != p
                )
                rest += sum(
                    math.exp(float(own[p] @ other[q]) / temperature)
                    for q in range(len(own))
                    if q != p
                )
                losses.append(-math.log(positive / (positive + rest)))
    return sum(losses) / len(losses)


def test_lltc_equals_the_obvious_version():
    first, second = (F.normalize(random_rows(3, 4, 8, seed=seed), dim=-1) for seed in (5, 6))
    expected = obvious_lltc(first, second, 0.1)
    assert local_local_temporal_contrastive_loss(first, second, 0.1).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_lltc_ignores_other_videos():
    first, second = (F.normalize(random_rows(2, 4, 8, seed=seed), dim=-1) for seed in (5, 6))
    apart = [
        local_local_temporal_contrastive_loss(first[i : i + 1], second[i : i + 1], 0.1)
        for i in range(2)
    ]
    together = local_local_temporal_contrastive_loss(first, second, 0.1)
    assert together.item() == pytest.approx(sum(apart).item() / 2)


def test_lltc_wrong_shapes():
    with pytest.raises(ValueError, match="at least two clips"):
        local_local_temporal_contrastive_loss(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3), 0.1)
    with pytest.raises(ValueError, match="two views"):
        local_local_temporal_contrastive_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0.1)


def test_invariance_compares_directions_only():
    a, b = random_rows(5, 8, seed=7), random_rows(5, 8, seed=8)
    rows = [row / row.norm() for row in torch.cat([a, b])]
    losses = []
    for i, row in enumerate(rows):
        scores = [math.exp(float(row @ other) / 0.1) for j, other in enumerate(rows) if j != i]
        losses.append(-math.log(math.exp(float(row @ rows[(i + 5) % 10]) / 0.1) / sum(scores)))
    assert temporal_invariance_loss(a, b, 0.1).item() == pytest.approx(sum(losses) / 10, rel=1e-9)
    assert temporal_invariance_loss(3 * a, b, 0.1).item() == pytest.approx(
        sum(losses) / 10, rel=1e-9
    )
