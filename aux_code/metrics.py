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
    areas = weighted_areas(scores, positives[None], negatives[None])
    return RankingMetrics(*(float(area[0]) for area in areas))


def weighted_areas(
    scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> RankingMetrics:
    """`ranking_metrics` under many weightings at once, such as the counts of bootstrap draws.

    Scores (n,); `positives`, `negatives` (m, n): how often each counts -> three times (m,); NaN
    where a weighting has no positive, for the ROC AUC also where it has no negative.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(positives[:, order], axis=1, dtype=np.float64)[:, last]
    false = np.cumsum(negatives[:, order], axis=1, dtype=np.float64)[:, last]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, alarms = true / true[:, -1:], false / false[:, -1:]
        # scikit-learn's curve begins at (recall 0, precision 1); so do clips that do not count
        precision = np.where(true + false > 0, true / (true + false), 1.0)
    step = (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)
    recall, alarms = (np.pad(curve, ((0, 0), (1, 0))) for curve in (recall, alarms))
    precision = np.pad(precision, ((0, 0), (1, 0)), constant_values=1.0)
    roc_auc, pr_auc = np.trapezoid(recall, alarms, axis=1), np.trapezoid(precision, recall, axis=1)
    return RankingMetrics(roc_auc, pr_auc, step)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Step-wise AP of scores (n,) against labels (n,) in {0, 1}; NaN without a positive."""
    return float(weighted_areas(scores, labels[None], 1.0 - labels[None]).average_precision[0])


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
