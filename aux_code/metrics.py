"""Metrics of detection and of leakage, on plain arrays."""

from typing import NamedTuple

import numpy as np


class RankingMetrics(NamedTuple):
    """Frame-level metrics, each in [0, 1]."""

    roc_auc: float
    pr_auc: float
    """Trapezoidal area under the precision-recall curve: what the paper calls AP."""
    average_precision: float
    """Step-wise average precision."""


def ranking_metrics(
    scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> RankingMetrics:
    """ROC AUC, PR area and average precision of clips, whose score stands for all their frames.

    Scores (n,), finite; `positives`, `negatives` (n,): numbers of frames with each. The result is
    that of the frame vectors, which are not built. A ValueError without positive or negative.
    """
    if not np.any(positives) or not np.any(negatives):
        raise ValueError("ranking metrics need positive and negative frames")
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(positives[order], dtype=np.float64)[last]
    false = np.cumsum(negatives[order], dtype=np.float64)[last]
    recall = true / true[-1]
    precision = true / (true + false)
    roc_auc = np.trapezoid(np.append(0.0, recall), np.append(0.0, false / false[-1]))
    # scikit-learn's curve begins at (recall 0, precision 1); both areas follow it.
    pr_auc = np.trapezoid(np.append(1.0, precision), np.append(0.0, recall))
    step = float(np.sum(np.diff(np.append(0.0, recall)) * precision))
    return RankingMetrics(float(roc_auc), float(pr_auc), step)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Step-wise AP of scores (n,) against labels (n,) in {0, 1}; NaN without a positive."""
    positives = labels.astype(np.float64)
    if positives.sum() == 0:
        return float("nan")
    if positives.sum() == len(positives):
        return 1.0
    return ranking_metrics(scores, positives, 1.0 - positives).average_precision


def weighted_average_precision(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """`average_precision` under many weightings at once, such as the counts of bootstrap draws.

    Scores (n,), labels (n,) in {0, 1}, weights (m, n), how often each item counts -> (m,) in
    [0, 1]; NaN where no positive counts.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ordered = weights[:, order].astype(np.float64)
    true = np.cumsum(ordered * labels[order], axis=1)[:, last]
    precision = true / np.maximum(np.cumsum(ordered, axis=1)[:, last], 1e-12)
    gains = np.diff(true, axis=1, prepend=0.0)
    positives = true[:, -1]
    means = (gains * precision).sum(1) / np.maximum(positives, 1e-12)
    return np.where(positives > 0, means, np.nan)


class AttributeMetrics(NamedTuple):
    """Leakage of private attributes."""

    cmap: float
    """Mean average precision over the classes that occur."""
    f1: float
    """Macro F1 over the same classes, probabilities thresholded at 0.5."""
    per_attribute: np.ndarray
    """(n_attributes,) average precision, NaN where a class does not occur."""


def attribute_metrics(probabilities: np.ndarray, labels: np.ndarray) -> AttributeMetrics:
    """Of probabilities (n, n_attributes) in [0, 1] against labels (n, n_attributes) in {0, 1}."""
    columns = zip(probabilities.T, labels.T, strict=True)
    per_attribute = np.array([average_precision(p, y) for p, y in columns])
    predicted, actual = probabilities >= 0.5, labels >= 0.5
    hits = (predicted & actual).sum(0)
    f1 = 2 * hits / np.maximum(predicted.sum(0) + actual.sum(0), 1)
    present = actual.any(0)
    cmap, macro_f1 = float(np.nanmean(per_attribute)), float(f1[present].mean())
    return AttributeMetrics(cmap, macro_f1, per_attribute)


def chance_cmap(labels: np.ndarray) -> float:
    """cMAP of a guess without any information: the mean prevalence of the classes that occur."""
    prevalence = labels.mean(0)
    return float(prevalence[prevalence > 0].mean())


def f1_always_yes(labels: np.ndarray) -> float:
    """Macro F1 of always yes, 2p / (1 + p): the most that a guess gets."""
    prevalence = labels.mean(0)
    present = prevalence[prevalence > 0]
    return float((2 * present / (1 + present)).mean())


def leakage_removed(raw: float, anonymized: float, chance: float) -> float:
    """Share of the removable leakage that is gone: 1 is chance level, 0 is raw."""
    return (raw - anonymized) / (raw - chance)
