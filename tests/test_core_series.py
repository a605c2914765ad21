"""Mean and deviation over seeds, of numbers and of nested reports."""

import pytest

from aux_code.series import in_words, mean_and_deviation, over_seeds


def test_mean_and_deviation_over_what_is_known():
    assert mean_and_deviation([1.0, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert mean_and_deviation([]) == {"mean": None, "deviation": None}
    assert in_words(mean_and_deviation([0.5])) == "0.5000"
    assert in_words(mean_and_deviation([1.0, 3.0]), 1) == "2.0 +- 1.4"
    results = [{"last": {"auc": 0.5, "ap": None}}, {"last": {"auc": 0.7, "ap": 0.25}}]
    over = over_seeds(results)["last"]
    assert over["auc"]["mean"] == pytest.approx(0.6)
    assert over["ap"] == {"mean": 0.25, "deviation": None}
