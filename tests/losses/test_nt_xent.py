"""NT-Xent against the golden value and a slow, obvious version."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aux_code.losses.nt_xent import nt_xent_loss
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


def test_wrong_arguments():
    for n_rows, temperature, match in ((3, 0.1, "equal shape"), (2, 0.0, "temperature")):
        with pytest.raises(ValueError, match=match):
            nt_xent_loss(torch.zeros(2, 3), torch.zeros(n_rows, 3), temperature)
