"""Bootstrap intervals against scores computed draw by draw."""

import numpy as np
import pytest

from aux_code.intervals import ScoredVideo, areas_of, bootstrap, cmap_of, limits, pooled_difference
from aux_code.metrics import attribute_metrics, ranking_metrics

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
