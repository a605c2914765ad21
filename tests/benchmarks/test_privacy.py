"""The benchmark of the privacy attack runs and reports, and both of its sides do the same work."""

import json

import pytest

from benchmarks import privacy


def test_runs_and_reports(capsys):
    assert privacy.main(["--images", "4", "--size", "32", "--rounds", "1", "--epochs", "10"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "privacy"
    figures, ratios = report["figures"], report["ratios"]
    expected = figures["plain_seconds"] / (figures["ours_seconds"] + figures["release_seconds"] / 10)
    assert ratios["epoch"] == pytest.approx(expected)
    assert ratios["epoch_without_release"] > ratios["epoch"] > ratios["first_epoch"] > 0


def test_both_sides_have_the_same_losses_in_fp32(tmp_path):
    """The first step's loss shows that f_A, the views and the labels agree; the second that the update does."""
    plain, ours = privacy.PlainLoop(6, 32), privacy.OurStage(6, 32, tmp_path, precision="fp32")
    ours.release()
    assert ours.train_epoch() == pytest.approx(plain.train_epoch(), rel=1e-4)
    assert ours.train_epoch() == pytest.approx(plain.train_epoch(), rel=2e-2)
