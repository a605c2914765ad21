"""Learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Sequence
from itertools import accumulate


def learning_rate_factor(
    step: int, n_steps: int, warmup_steps: int, kind: str, floor: float = 0.0
) -> float:
    """Factor in [floor, 1] on the base learning rate.

    Args:
        step: 0-based step of optimisation.
        n_steps: steps of the whole training; later steps keep the last value.
        warmup_steps: the factor rises linearly from 1 / warmup_steps to 1 over these.
        kind: "constant", "linear" or "cosine": how it falls from 1 to `floor` afterwards.
        floor: the last value of linear and cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, n_steps - warmup_steps))
    if kind == "linear":
        return 1.0 + (floor - 1.0) * progress
    if kind == "cosine":
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule '{kind}': constant, linear or cosine")


def plateau_divisions(losses: Sequence[float]) -> int:
    """How often the plateau schedule has divided the rate (release): after each epoch whose loss is
    no lower than the lowest before it."""
    lowest = accumulate(losses, min)
    return sum(loss >= before for loss, before in zip(losses[1:], lowest, strict=False))


def set_learning_rate(optimizer, base: float, factor: float) -> None:
    """Sets base * factor in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = base * factor
