"""MGFN's benchmark runs and reports, and its plain network is the same network."""

import torch

from anomaly_detection_mgfn.mgfn import MGFN
from benchmarks import mgfn
from benchmarks.plain_mgfn import plain_forward


def test_runs_and_reports(report_of, monkeypatch):
    monkeypatch.setattr(mgfn, "MEDIAN_CLIPS", 10)
    ratios, figures = report_of(mgfn, "--scale 0.002 --rounds 1 --long_clips 300")
    assert {"epoch_with_evaluation", "loading", "metrics"} <= set(ratios)
    assert figures["epoch_plain_seconds"] > figures["score_plain_seconds"] > 0
    assert figures["long_video_gib_ours"] >= 0 and figures["loading_once_seconds"] > 0


@torch.no_grad()
def test_plain_network_gives_the_same_scores_and_features():
    torch.manual_seed(0)
    net = MGFN(feature_dim=12, dims=(16, 64, 128), depths=(1, 2, 1)).eval()
    bags = torch.rand(3, 2, 9, 13)
    scores, features = plain_forward(net, bags)
    torch.testing.assert_close(scores, net(bags).scores)
    torch.testing.assert_close(features, net(bags).features)
