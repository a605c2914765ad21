"""Learning-rate schedules as a table."""

import pytest
import torch

from aux_code.schedules import learning_rate_factor, plateau_divisions, set_learning_rate

TABLE = [
    # kind, n_steps, warm-up, floor, {step: factor}
    ("constant", 10, 0, 0.0, {0: 1, 9: 1, 50: 1}),
    ("constant", 10, 4, 0.0, {0: 0.25, 1: 0.5, 3: 1, 4: 1}),
    ("linear", 10, 0, 0.0, {0: 1, 5: 0.5, 9: 0.1, 10: 0, 99: 0}),
    ("linear", 12, 2, 0.1, {0: 0.5, 1: 1, 2: 1, 7: 0.55, 12: 0.1, 99: 0.1}),
    ("cosine", 10, 0, 0.0, {0: 1, 5: 0.5, 10: 0}),
    ("cosine", 14, 4, 0.2, {3: 1, 4: 1, 9: 0.6, 14: 0.2, 99: 0.2}),
    ("linear", 2, 5, 0.0, {0: 0.2, 1: 0.4}),  # the training ends in the warm-up
]


@pytest.mark.parametrize("kind, n_steps, warmup, floor, factors", TABLE)
def test_table(kind: str, n_steps: int, warmup: int, floor: float, factors: dict):
    found = {step: learning_rate_factor(step, n_steps, warmup, kind, floor) for step in factors}
    assert found == pytest.approx(factors)


def test_the_plateau_compares_with_the_lowest_loss_so_far():
    losses = [1.0, 0.9, 0.95, 0.94, 0.9, 0.8]
    assert [plateau_divisions(losses[:n]) for n in range(7)] == [0, 0, 0, 1, 2, 3, 3]


def test_every_group_gets_base_times_factor_and_an_unknown_schedule_is_an_error():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 7.0}]
    optimizer = torch.optim.Adam(groups, lr=1.0)
    set_learning_rate(optimizer, 0.01, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005]
    with pytest.raises(ValueError, match="wobble"):
        learning_rate_factor(5, 10, 0, "wobble")
