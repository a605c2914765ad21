"""NT-Xent and the temporal losses against a golden value and slow, obvious versions."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.losses.temporal import local_local_temporal_contrastive_loss as lltc_loss
from aux_code.losses.temporal import temporal_invariance_loss, temporally_distinct_loss
from tests.fill import GOLDEN


def obvious_nt_xent(a, b, temperature):
    rows = [*a.tolist(), *b.tolist()]
    total = 0.0
    for i, row in enumerate(rows):
        products = [sum(x * y for x, y in zip(row, other)) for other in rows]
        similarity = [math.exp(product / temperature) for product in products]
        partner = (i + len(a)) % len(rows)
        others = sum(s for j, s in enumerate(similarity) if j != i)
        total -= math.log(similarity[partner] / others)
    return total / len(rows)


def unit_rows(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_golden_value():
    golden = np.load(GOLDEN / "networks.npz")
    a, b = (torch.from_numpy(golden[name]) for name in ("ntxent_a", "ntxent_b"))
    assert nt_xent_loss(a, b, 0.1).item() == pytest.approx(float(golden["ntxent_t01"]), rel=1e-5)


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.1), (2, 0.1), (7, 0.5), (5, 1.0)])
def test_equals_the_obvious_version(n, temperature):
    a, b = unit_rows(n, 8, seed=1), unit_rows(n, 8, seed=2)
    expected = obvious_nt_xent(a, b, temperature)
    assert nt_xent_loss(a, b, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_half_precision_is_computed_in_float32():
    a, b = unit_rows(6, 16, seed=3).bfloat16(), unit_rows(6, 16, seed=4).bfloat16()
    loss = nt_xent_loss(a, b, 0.02)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(obvious_nt_xent(a.double(), b.double(), 0.02), rel=1e-4)


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


def test_wrong_arguments():
    rows, fewer, clips = torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2, 1, 3)
    for words, loss, arguments in (
        ("equal shape", nt_xent_loss, (rows, fewer, 0.1)),
        ("temperature", nt_xent_loss, (rows, rows, 0.0)),
        ("share one shape", temporally_distinct_loss, (rows, rows, fewer, 1.0)),
        ("at least two clips", lltc_loss, (clips, clips, 0.1)),
        ("views", lltc_loss, (rows, rows, 0.1)),
    ):
        with pytest.raises(ValueError, match=words):
            loss(*arguments)
