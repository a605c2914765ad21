"""Metrics against scikit-learn and by hand, bootstrap intervals draw by draw, means over seeds."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from aux_code import metrics as ours
from aux_code.intervals import ScoredVideo, areas_of, bootstrap, cmap_of, limits, pooled_difference
from aux_code.metrics import attribute_metrics, ranking_metrics
from aux_code.series import in_words, mean_and_deviation, over_seeds


def test_extremes():
    """What lies between is compared with scikit-learn on frames in test_scoring.py of stage 4."""
    ones, zeros = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert ranking_metrics(np.array([2.0, 1.0]), ones, zeros) == (1.0, 1.0, 1.0)
    assert ranking_metrics(np.array([1.0, 2.0]), ones, zeros).roc_auc == 0.0
    assert ranking_metrics(np.array([1.0, 1.0]), ones, zeros).roc_auc == 0.5  # one constant score
    assert np.isnan(ours.average_precision(np.array([0.1, 0.9]), np.zeros(2)))
    assert ours.average_precision(np.array([0.1, 0.9]), np.ones(2)) == 1.0
    for positives, negatives in (([0, 0], [1, 1]), ([1, 1], [0, 0]), ([], [])):
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
    f1 = f1_score(labels[:, present], predicted, average="macro", zero_division=0)
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


GENERATOR = np.random.default_rng(3)


def _images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties and labels, of which one attribute is rare and one always there."""
    labels = (GENERATOR.random((n, 3)) < (0.4, 0.04, 1.0)).astype(np.float32)
    return np.round(0.3 * labels + 0.7 * GENERATOR.random((n, 3)), 1), labels


def _videos(n: int, quality: float) -> list[ScoredVideo]:
    videos = []
    for k, n_clips in enumerate(np.random.default_rng(5).integers(3, 9, n)):
        positives = np.where(np.arange(n_clips) < 2, 20, 0) * (k % 2)
        scores = quality * (positives > 0) + np.random.default_rng([6, k]).random(n_clips)
        videos.append(ScoredVideo(np.round(scores, 1), positives, 32 - positives))
    return videos


def test_draws_of_images_are_the_cmaps_of_the_drawn_images():
    probabilities, labels = _images(40)
    counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 60)
    found, drawn = cmap_of(probabilities, labels)(counts), [np.repeat(range(40), c) for c in counts]
    for cmap, own in zip(found, drawn, strict=True):
        if labels[own].any(0).all():
            assert cmap == pytest.approx(attribute_metrics(probabilities[own], labels[own]).cmap)
        else:
            assert np.isnan(cmap)  # without the rare attribute it would be another mean
    assert 10 < np.isfinite(found).sum() < 60


def test_draws_of_videos_are_the_areas_of_the_drawn_videos():
    videos = _videos(9, 0.4)
    counts = np.random.default_rng(0).multinomial(9, np.full(9, 1 / 9), 60)
    found = areas_of(videos)(counts)  # (2, 60)
    for area, own in zip(found.T, counts, strict=True):
        drawn = [video for video, count in zip(videos, own, strict=True) for _ in range(count)]
        arrays = [np.concatenate(parts) for parts in zip(*drawn, strict=True)]
        if arrays[1].any():
            assert area == pytest.approx(ranking_metrics(*arrays)[:2])
        else:
            assert np.isnan(area).all()


def test_intervals_cover_the_score_and_narrow_with_more_items():
    widths = []
    for n in (60, 960):
        probabilities, labels = _images(n)
        low, high = limits(bootstrap(n, 230, 0, cmap_of(probabilities, labels)))
        widths.append(high - low)
        assert low < attribute_metrics(probabilities, labels).cmap < high
    assert widths[1] < 0.5 * widths[0]


def test_a_paired_difference_is_known_better_than_either_score():
    good, fair = (bootstrap(80, 400, 0, areas_of(_videos(80, q)))[0] for q in (0.5, 0.4))
    other = bootstrap(80, 400, 1, areas_of(_videos(80, 0.4)))[0]
    low, high = pooled_difference([(good, fair)])
    assert 0 < low < good.mean() - fair.mean() < high
    unpaired = pooled_difference([(good, other)])
    assert high - low < 0.6 * (unpaired[1] - unpaired[0])
    pooled = pooled_difference([(good, fair), (other, other)])
    assert np.mean(pooled) == pytest.approx((low + high) / 4, abs=0.01)
    assert pooled_difference([(good, good)]) == [0, 0] and pooled_difference([]) == []
