"""MGFN's losses against golden values and slow, obvious versions."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn import mgfn_losses
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_losses import mgfn_loss, select_top_segments
from anomaly_detection_mgfn.params_mgfn import MINIATURE, PAPER, RELEASE, MgfnParams
from tests.fill import GOLDEN, bags, fill, relative_error


def test_golden_selection_and_release_losses():
    golden, net = np.load(GOLDEN / "mgfn.npz"), fill(MGFN())
    with torch.no_grad():
        scores, features = net(torch.cat([bags("normal", 2, 32), bags("abnormal", 2, 32)]))
    selections = [select_top_segments(scores[i : i + 2], features[i : i + 2], 3) for i in (0, 2)]
    for own, kind in zip(selections, ("normal", "abnormal"), strict=True):
        assert relative_error(own.scores[:, None], golden[f"mgfn_score_{kind}"]) < 1e-4
        norms = own.features.abs().sum(-1)[:, 0]
        assert relative_error(norms, golden[f"mgfn_{kind[:3]}_feat_norm1"]) < 1e-4
    parts = mgfn_loss(*selections, scores[2:], RELEASE)
    found = {"total": parts["classification"] + parts["contrastive"]}
    found |= {"sparse": parts["sparsity"], "smooth": parts["smoothness"]}
    for name, value in found.items():
        assert value.item() == pytest.approx(float(golden[f"mgfn_loss_{name}"]), rel=1e-4)


SELECTIONS = [
    ([[5.0, 1.0, 10.0, 2.0]], 2, None, [2, 0]),
    ([[1.0, 4.0, 5.0], [9.0, 4.0, 1.0]], 1, None, [0]),
    ([[0.0, 3.0, 2.0, 1.0]], 1, [True, False, True, True], [2]),
    ([[0.0, 3.0, 2.0, 1.0]], 3, [True, False, True, True], [2, 3, 0]),
]  # fmt: skip
"""Magnitudes per crop and segment, k, candidates, segments with the highest mean magnitude."""


@pytest.mark.parametrize("magnitudes, k, candidates, selected", SELECTIONS)
def test_selection(magnitudes, k, candidates, selected):
    features = torch.tensor(magnitudes)[None, ..., None] * torch.tensor([0.6, 0.8])
    scores = torch.arange(features.shape[2])[None].float()
    among = None if candidates is None else torch.tensor([candidates])
    selection = select_top_segments(scores, features, k, among)
    assert selection.scores.item() == pytest.approx(np.mean(selected))
    assert torch.equal(selection.features, features[:, :, selected])


def test_candidates_are_drawn_with_their_share_and_are_always_enough():
    generator = torch.Generator().manual_seed(0)
    candidates = mgfn_losses.draw_candidates(2000, 32, 3, 0.7, generator)
    assert candidates.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert mgfn_losses.draw_candidates(5, 7, 3, 0.0).all()
    # of four segments the share of 0.7 often leaves less than three: such a bag keeps all
    counts = mgfn_losses.draw_candidates(500, 4, 3, 0.7, generator).sum(1)
    assert set(counts.tolist()) == {3, 4} and (counts == 4).float().mean() > 0.5


def test_smoothness_and_sparsity_are_per_video():
    """The release smooths across videos' borders, and takes one norm over the batch as sparsity."""
    scores = torch.tensor([[0.1, 0.1, 0.4], [0.9, 0.9, 0.9]])
    assert mgfn_losses.smoothness_loss(scores).item() == pytest.approx(0.3**2 / 4)
    assert mgfn_losses.sparsity_loss(scores).item() == pytest.approx(3.3 / 6)
    # two flat videos of different level: nothing to smooth but across the border (release)
    flat = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
    assert mgfn_losses.smoothness_loss_release(flat).item() == pytest.approx(0.8**2)
    expected = math.sqrt(2 * 0.01 + 2 * 0.81)
    assert mgfn_losses.sparsity_loss_release(flat).item() == pytest.approx(expected)
    one = select_top_segments(torch.rand(2, 2), torch.rand(2, 1, 2, 4), 1)
    parts = mgfn_loss(one, one, flat, PAPER)
    assert parts["smoothness"].item() == 0
    assert parts["sparsity"].item() == pytest.approx(PAPER.sparsity_weight * 0.5)
    assert (MgfnParams().loss, PAPER.loss, MINIATURE.loss) == ("paper", "paper", "paper")


def magnitudes(kind):
    """(bags, crops, segments, features) -> per bag the L1 norm of each segment, mean of crops."""
    return [
        [sum(sum(map(abs, crop[s])) for crop in bag) / len(bag) for s in range(len(bag[0]))]
        for bag in kind.tolist()
    ]


def obvious_contrastive(normal, anomalous, margin):
    n, a = magnitudes(normal), magnitudes(anomalous)
    within = [np.mean([math.dist(x, y) for x, y in combinations(kind, 2)]) for kind in (n, a)]
    between = [max(margin - math.dist(x, y), 0) for x in n for y in a]
    return sum(within) + np.mean(between)


def test_contrastive_equals_the_obvious_version():
    torch.manual_seed(0)
    normal, anomalous = torch.randn(4, 2, 3, 8), torch.randn(3, 2, 3, 8)
    found = mgfn_losses.magnitude_contrastive_loss(normal, anomalous, 5.0).item()
    assert found == pytest.approx(obvious_contrastive(normal, anomalous, 5.0), rel=1e-5)


def test_release_contrastive_by_hand():
    kinds = torch.tensor([[1.0, 2.0, 4.0], [3.0, 8.0, 9.0]])[..., None, None, None]
    between = ((5 - 2) ** 2 + 0 + 0) / 3
    expected = 0.001 * between + (2 - 1) ** 2 + (8 - 3) ** 2
    found = mgfn_losses.magnitude_contrastive_loss_release(*kinds, 5.0).item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("params", [PAPER, RELEASE])
def test_a_single_bag_of_each_kind(params):
    one = select_top_segments(torch.rand(1, 1), torch.rand(1, 1, 1, 4), 3)
    assert one.features.shape == (1, 1, 1, 4), "a short bag is taken whole"
    parts = mgfn_loss(one, one, torch.rand(1, 1), params)
    assert all(torch.isfinite(part) for part in parts.values())
