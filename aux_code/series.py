"""Several seeds of one run: mean and deviation of what they report."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def mean_and_deviation(values: Iterable[float | None]) -> dict[str, float | None]:
    """{"mean", "deviation"} (n - 1) of the values but None; None where there are too few."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def over_seeds(results: Sequence[Any]) -> Any:
    """Nested dictionaries of numbers, one per seed -> keys of the first with mean and deviation."""
    if isinstance(results[0], dict):
        return {key: over_seeds([own.get(key) for own in results]) for key in results[0]}
    return mean_and_deviation(results)


def in_words(value: dict[str, float | None], digits: int = 4) -> str:
    """mean, or mean +- deviation, as text."""
    deviation = value["deviation"]
    spread = "" if deviation is None else f" +- {deviation:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"
