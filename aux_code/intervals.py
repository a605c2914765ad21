"""Bootstrap intervals over test items (images, videos), paired where rows saw the same items.

An interval speaks of the choice of test items alone: the networks stay as they were trained.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from aux_code.metrics import weighted_areas

_DRAWS_AT_ONCE = 100
"""Draws per pass; bounds the memory."""

Counts = np.ndarray
"""(m, n): how often each of n items counts in each of m draws."""


def bootstrap(
    n_items: int, n_draws: int, seed: int, score: Callable[[Counts], np.ndarray]
) -> np.ndarray:
    """A score (..., n_draws) of items drawn with replacement; `score`: counts (m, n) -> (..., m).

    Equal arguments draw equal items, which makes the difference of two results a paired one.
    """
    generator, parts = np.random.default_rng(seed), []
    for start in range(0, n_draws, _DRAWS_AT_ONCE):
        n_now = min(_DRAWS_AT_ONCE, n_draws - start)
        parts.append(score(generator.multinomial(n_items, np.full(n_items, 1 / n_items), n_now)))
    return np.concatenate(parts, axis=-1)


def limits(draws: np.ndarray) -> list[float]:
    """The 95 % interval [low, high] of draws (m,); those without a value do not count."""
    known = draws[np.isfinite(draws)]
    return [float(limit) for limit in np.quantile(known, [0.025, 0.975])] if len(known) else []


def cmap_of(probabilities: np.ndarray, labels: np.ndarray) -> Callable[[Counts], np.ndarray]:
    """cMAP of images, (n, n_attributes) each, over the attributes that any of them has.

    A draw without an image of one of these has no such cMAP: NaN.
    """
    present = labels.any(axis=0)
    columns = list(zip(probabilities.T[present], labels.T[present], strict=True))

    def score(counts: Counts) -> np.ndarray:
        areas = [weighted_areas(p, counts * y, counts * (1 - y)) for p, y in columns]
        return np.mean([own.average_precision for own in areas], axis=0)

    return score


class ScoredVideo(NamedTuple):
    """A test video; arrays (n_clips,)."""

    scores: np.ndarray
    positives: np.ndarray
    """Anomalous frames that a clip's score stands for."""
    negatives: np.ndarray


def areas_of(videos: Sequence[ScoredVideo]) -> Callable[[Counts], np.ndarray]:
    """Frame-level ROC AUC and PR area, (2, m); NaN where a draw lacks one of the classes."""
    scores, positives, negatives = (np.concatenate(parts) for parts in zip(*videos, strict=True))
    owner = np.repeat(np.arange(len(videos)), [len(video.scores) for video in videos])

    def score(counts: Counts) -> np.ndarray:
        weights = counts[:, owner]  # (m, n_clips)
        return np.stack(weighted_areas(scores, weights * positives, weights * negatives)[:2])

    return score


def pooled_difference(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """95 % interval of the mean over seeds of (first - second), draws (m,) of the same items each;
    the seeds have items of their own, drawn independently of each other. [] without a pair."""
    differences = [first - second for first, second in pairs]
    return limits(np.mean(differences, axis=0)) if differences else []
