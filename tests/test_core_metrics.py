"""Ranking and attribute metrics against scikit-learn and by hand; means over seeds."""

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.metrics import average_precision_score

from aux_code import metrics as ours
from aux_code.metrics import attribute_metrics, ranking_metrics
from aux_code.series import in_words, mean_and_deviation, over_seeds


@pytest.mark.parametrize("seed", range(6))
def test_weighted_clips_equal_scikit_learn_on_frame_vectors_with_ties(seed: int):
    generator = np.random.default_rng(seed)
    n_clips = int(generator.integers(2, 60))
    scores = generator.integers(0, 7, n_clips) / 7  # many ties
    positives, negatives = generator.integers(0, 33, n_clips), generator.integers(0, 33, n_clips)
    positives[0], negatives[-1] = 5, 3
    frame_scores = np.repeat(scores, positives + negatives)
    labels = np.concatenate([[1] * p + [0] * n for p, n in zip(positives, negatives, strict=True)])
    metrics = ranking_metrics(scores, positives, negatives)
    precision, recall, _ = sklearn.precision_recall_curve(labels, frame_scores)
    assert metrics.roc_auc == pytest.approx(sklearn.roc_auc_score(labels, frame_scores), abs=1e-12)
    assert metrics.pr_auc == pytest.approx(sklearn.auc(recall, precision), abs=1e-12)
    precision = average_precision_score(labels, frame_scores)
    assert metrics.average_precision == pytest.approx(precision, abs=1e-12)


def test_extremes():
    ones, zeros = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert ranking_metrics(np.array([2.0, 1.0]), ones, zeros) == (1.0, 1.0, 1.0)
    assert ranking_metrics(np.array([1.0, 2.0]), ones, zeros).roc_auc == 0.0
    assert ranking_metrics(np.array([1.0, 1.0]), ones, zeros).roc_auc == 0.5  # one constant score
    assert np.isnan(ours.average_precision(np.array([0.1, 0.9]), np.zeros(2)))
    assert ours.average_precision(np.array([0.1, 0.9]), np.ones(2)) == 1.0


@pytest.mark.parametrize("positives, negatives", [([0, 0], [1, 1]), ([1, 1], [0, 0]), ([], [])])
def test_one_class_alone_cannot_be_ranked(positives: list, negatives: list):
    scores = np.arange(len(positives), dtype=float)
    with pytest.raises(ValueError, match="positive and negative"):
        ranking_metrics(scores, np.array(positives), np.array(negatives))


def test_attribute_metrics_equal_scikit_learn_and_leave_absent_attributes_out():
    generator = np.random.default_rng(3)
    labels = (generator.random((200, 7)) < 0.3).astype(np.int64)
    labels[:, 5] = 0
    probabilities = np.round(generator.random((200, 7)), 1)
    metrics = attribute_metrics(probabilities, labels)
    present = [k for k in range(7) if k != 5]
    expected = [average_precision_score(labels[:, k], probabilities[:, k]) for k in present]
    np.testing.assert_allclose(metrics.per_attribute[present], expected, atol=1e-12)
    assert np.isnan(metrics.per_attribute[5])
    assert metrics.cmap == pytest.approx(np.mean(expected), abs=1e-12)
    predicted = (probabilities >= 0.5).astype(int)[:, present]
    f1 = sklearn.f1_score(labels[:, present], predicted, average="macro", zero_division=0)
    assert metrics.f1 == pytest.approx(f1, abs=1e-12)


def test_chance_is_the_prevalence_and_leakage_removed_is_one_there_and_zero_at_raw():
    labels = np.zeros((100, 3))
    labels[:40, 0] = labels[:10, 1] = 1
    assert ours.chance_cmap(labels) == pytest.approx(0.25)
    assert attribute_metrics(np.full((100, 3), 0.5), labels).cmap == pytest.approx(0.25)
    removed = [ours.leakage_removed(raw=0.6, anonymized=value, chance=0.2) for value in (0.6, 0.2)]
    assert removed == [0, 1]
    assert ours.leakage_removed(raw=0.6, anonymized=0.5, chance=0.2) == pytest.approx(0.25)


def test_mean_and_deviation_over_what_is_known():
    assert mean_and_deviation([1.0, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert mean_and_deviation([]) == {"mean": None, "deviation": None}
    assert in_words(mean_and_deviation([0.5])) == "0.5000"
    assert in_words(mean_and_deviation([1.0, 3.0]), 1) == "2.0 +- 1.4"
    results = [{"last": {"auc": 0.5, "ap": None}}, {"last": {"auc": 0.7, "ap": 0.25}}]
    over = over_seeds(results)["last"]
    assert over["auc"]["mean"] == pytest.approx(0.6)
    assert over["ap"] == {"mean": 0.25, "deviation": None}
