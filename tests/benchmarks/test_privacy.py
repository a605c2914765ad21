"""The benchmark of the privacy attack runs and reports, and both of its sides do the same work."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from benchmarks import privacy


def test_runs_and_reports(capsys):
    assert privacy.main(["--images", "4", "--size", "32", "--rounds", "1", "--epochs", "10"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "privacy"
    figures, ratios = report["figures"], report["ratios"]
    expected = figures["plain_seconds"] / (
        figures["ours_seconds"] + figures["release_seconds"] / 10
    )
    assert ratios["epoch"] == pytest.approx(expected)
    assert ratios["epoch_without_release"] > ratios["epoch"] > ratios["first_epoch"] > 0


def without_learning(parameters):
    return lambda precision="auto": replace(parameters(precision), image_learning_rate=1e-9)


def test_both_sides_see_the_same_views_of_what_f_a_releases(tmp_path, monkeypatch):
    """At a rate that changes nothing, so that rounding does not grow from step to step."""
    monkeypatch.setattr(privacy, "parameters", without_learning(privacy.parameters))
    plain, ours = privacy.PlainLoop(6, 32), privacy.OurStage(6, 32, tmp_path, precision="fp32")
    ours.release()
    for _ in range(3):
        assert ours.train_epoch() == pytest.approx(plain.train_epoch(), rel=1e-3)


def test_both_sides_learn_the_same(tmp_path):
    plain, ours = privacy.PlainLoop(6, 32), privacy.OurStage(6, 32, tmp_path, precision="fp32")
    ours.release()
    changes = []
    for side, net in ((plain, plain.net), (ours, ours.attack.net)):
        before = parameters_to_vector(weight.contiguous() for weight in net.parameters()).clone()
        side.train_epoch()
        changes.append(
            parameters_to_vector(weight.contiguous() for weight in net.parameters()) - before
        )
    assert 0.99 < changes[0].norm() / changes[1].norm() < 1.01
    # Adam's first step is the gradient's sign, which rounding turns where the gradient is next to
    # nothing
    assert torch.cosine_similarity(*changes, dim=0) > 0.9
