"""The temporal losses against slow, obvious versions."""

import math

import pytest
import torch

from aux_code.losses.temporal import local_local_temporal_contrastive_loss as lltc_loss
from aux_code.losses.temporal import temporal_invariance_loss, temporally_distinct_loss
from tests.losses.test_nt_xent import obvious_nt_xent, unit_rows


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.0])
def test_triplet_and_its_gradient_equal_the_obvious_version(margin):
    rows = [unit_rows(9, 6, seed=seed) for seed in range(3)]
    losses = [max(math.dist(a, p) - math.dist(a, n) + margin, 0.0) for a, p, n in zip(*rows)]
    expected = sum(losses) / 9
    assert temporally_distinct_loss(*rows, margin).item() == pytest.approx(expected, rel=1e-12)
    leaves = [row.requires_grad_() for row in rows]
    assert torch.autograd.gradcheck(lambda *x: temporally_distinct_loss(*x, margin), leaves)


def test_triplet_has_a_finite_gradient_where_embeddings_coincide():
    same = torch.ones(2, 4, requires_grad=True)
    temporally_distinct_loss(same, same * 1.0, same * 1.0, 1.0).backward()
    assert torch.isfinite(same.grad).all()


def test_lltc_is_nt_xent_among_the_clips_of_each_video():
    """TCLR's local-local loss: the negatives are other times of the same video, in both views."""
    first, second = (unit_rows(3, 4, 8, seed=seed) for seed in (5, 6))
    videos = [obvious_nt_xent(*video, 0.1) for video in zip(first, second, strict=True)]
    assert lltc_loss(first, second, 0.1).item() == pytest.approx(sum(videos) / 3, rel=1e-9)


def test_invariance_compares_directions_only():
    a, b = unit_rows(5, 8, seed=7), unit_rows(5, 8, seed=8)
    expected = pytest.approx(obvious_nt_xent(a, b, 0.1), rel=1e-9)
    assert temporal_invariance_loss(3 * a, 2 * b, 0.1).item() == expected


def test_wrong_shapes():
    with pytest.raises(ValueError, match="share one shape"):
        temporally_distinct_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3), 1.0)
    for shape, match in (((2, 1, 3), "at least two clips"), ((2, 3), "views")):
        with pytest.raises(ValueError, match=match):
            lltc_loss(torch.zeros(shape), torch.zeros(shape), 0.1)
