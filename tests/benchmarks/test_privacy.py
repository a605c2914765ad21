"""The benchmark of the privacy attack runs and reports, and both of its sides do the same work."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from benchmarks import privacy


def test_runs_and_reports(report_of):
    ratios, figures = report_of(privacy, "--images 4 --size 32 --rounds 1 --epochs 10")
    ours = figures["ours_seconds"] + figures["release_seconds"] / 10
    assert ratios["epoch"] == pytest.approx(figures["plain_seconds"] / ours)
    assert ratios["epoch_without_release"] > ratios["epoch"] > ratios["first_epoch"]


def test_both_sides_see_the_same_views_of_what_f_a_releases(tmp_path, monkeypatch):
    """At a rate that changes nothing, so that rounding does not grow from step to step."""
    parameters = privacy.parameters

    def without_learning(precision="auto"):
        return replace(parameters(precision), image_learning_rate=1e-9)

    monkeypatch.setattr(privacy, "parameters", without_learning)
    plain, ours = privacy.PlainLoop(6, 32), privacy.OurStage(6, 32, tmp_path, precision="fp32")
    ours.release()
    for _ in range(3):
        assert ours.train_epoch() == pytest.approx(plain.train_epoch(), rel=1e-3)


def weights_of(net):
    return parameters_to_vector(weight.contiguous() for weight in net.parameters()).clone()


def test_both_sides_learn_the_same(tmp_path):
    plain, ours = privacy.PlainLoop(6, 32), privacy.OurStage(6, 32, tmp_path, precision="fp32")
    ours.release()
    changes = []
    for side, net in ((plain, plain.net), (ours, ours.attack.net)):
        before = weights_of(net)
        side.train_epoch()
        changes.append(weights_of(net) - before)
    assert 0.99 < changes[0].norm() / changes[1].norm() < 1.01
    # Adam's first step is the gradient's sign, which rounding turns where it is next to nothing
    assert torch.cosine_similarity(*changes, dim=0) > 0.9
