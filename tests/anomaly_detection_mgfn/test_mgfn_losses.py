"""MGFN's losses against golden values and slow, obvious versions."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_losses import (
    draw_candidates,
    magnitude_contrastive_loss,
    magnitude_contrastive_loss_release,
    mgfn_loss,
    select_top_segments,
    smoothness_loss,
    smoothness_loss_release,
    sparsity_loss,
    sparsity_loss_release,
)
from anomaly_detection_mgfn.params_mgfn import MINIATURE, PAPER, RELEASE, MgfnParams
from tests.fill import GOLDEN, bags, fill, relative_error


@pytest.fixture(scope="module")
def output():
    with torch.no_grad():
        return fill(MGFN())(torch.cat([bags("normal", 2, 32), bags("abnormal", 2, 32)]))


@pytest.fixture(scope="module")
def selections(output):
    return [
        select_top_segments(output.scores[part], output.features[part], 3)
        for part in (slice(2), slice(2, 4))
    ]


def test_golden_selection(selections):
    golden = np.load(GOLDEN / "mgfn.npz")
    for own, kind in zip(selections, ("normal", "abnormal"), strict=True):
        assert relative_error(own.scores[:, None], golden[f"mgfn_score_{kind}"]) < 1e-4
        norms = own.features.abs().sum(-1)[:, 0]
        assert relative_error(norms, golden[f"mgfn_{kind[:3]}_feat_norm1"]) < 1e-4


def test_golden_release_losses(output, selections):
    golden = np.load(GOLDEN / "mgfn.npz")
    parts = mgfn_loss(*selections, output.scores[2:], RELEASE)
    found = {"total": parts["classification"] + parts["contrastive"]}
    found |= {"sparse": parts["sparsity"], "smooth": parts["smoothness"]}
    for name, value in found.items():
        assert value.item() == pytest.approx(float(golden[f"mgfn_loss_{name}"]), rel=1e-4)


def test_selection_by_hand():
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]]).view(1, 1, 4, 2)
    selection = select_top_segments(torch.tensor([[0.1, 0.9, 0.3, 0.9]]), features, 2)
    assert selection.scores.item() == pytest.approx(0.2)
    assert selection.features[0, 0].tolist() == [[6.0, 8.0], [3.0, 4.0]]


def test_selection_averages_the_magnitude_over_crops():
    features = torch.tensor([[[1.0], [4.0], [5.0]], [[9.0], [4.0], [1.0]]])[None]
    selection = select_top_segments(torch.tensor([[0.1, 0.2, 0.3]]), features, 1)
    assert selection.scores.item() == pytest.approx(0.1)


def test_selection_of_short_bags_takes_all():
    selection = select_top_segments(torch.rand(2, 1), torch.rand(2, 1, 1, 4), 3)
    assert selection.features.shape == (2, 1, 1, 4)


@pytest.mark.parametrize("k, score", [(1, 2), (3, (0 + 2 + 3) / 3)])
def test_selection_among_candidates(k, score):
    features, scores = torch.tensor([0.0, 3.0, 2.0, 1.0]).view(1, 1, 4, 1), torch.arange(4.0)[None]
    candidates = torch.tensor([[True, False, True, True]])
    selection = select_top_segments(scores, features, k, candidates)
    assert selection.scores.item() == pytest.approx(score)


def test_candidates_are_drawn_with_their_share_and_are_always_enough():
    generator = torch.Generator().manual_seed(0)
    candidates = draw_candidates(2000, 32, 3, 0.7, generator)
    assert candidates.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert draw_candidates(5, 7, 3, 0.0).all()
    # of four segments the share of 0.7 often leaves less than three: such a bag keeps all
    counts = draw_candidates(500, 4, 3, 0.7, generator).sum(1)
    assert set(counts.tolist()) == {3, 4} and (counts == 4).float().mean() > 0.5


def test_smoothness_and_sparsity_are_per_video():
    """The release smooths across videos' borders, and takes one norm over the batch as sparsity."""
    scores = torch.tensor([[0.1, 0.1, 0.4], [0.9, 0.9, 0.9]])
    assert smoothness_loss(scores).item() == pytest.approx(0.3**2 / 4)
    assert sparsity_loss(scores).item() == pytest.approx(3.3 / 6)
    # two flat videos of different level: nothing to smooth but across the border (release)
    flat = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
    assert smoothness_loss(flat).item() == 0
    assert smoothness_loss_release(flat).item() == pytest.approx(0.8**2)
    assert sparsity_loss_release(flat).item() == pytest.approx(math.sqrt(2 * 0.01 + 2 * 0.81))


def test_the_default_loss_is_per_video():
    one = select_top_segments(torch.rand(2, 2), torch.rand(2, 1, 2, 4), 1)
    flat = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
    parts = mgfn_loss(one, one, flat, PAPER)
    assert parts["smoothness"].item() == 0
    assert parts["sparsity"].item() == pytest.approx(PAPER.sparsity_weight * 0.5)
    assert (MgfnParams().loss, PAPER.loss, MINIATURE.loss) == ("paper", "paper", "paper")


def magnitudes(kind):
    """Per bag the L1 norm of each segment, mean of the crops."""
    norms = [
        [[sum(map(abs, segment)) for segment in crop] for crop in bag] for bag in kind.tolist()
    ]
    return [[sum(column) / len(bag) for column in zip(*bag)] for bag in norms]


def obvious_contrastive(normal, anomalous, margin):
    n, a = magnitudes(normal), magnitudes(anomalous)
    within = [
        sum(math.dist(x, y) for x, y in combinations(kind, 2)) / math.comb(len(kind), 2)
        for kind in (n, a)
    ]
    between = [max(margin - math.dist(x, y), 0) for x in n for y in a]
    return sum(within) + sum(between) / len(between)


def test_contrastive_equals_the_obvious_version():
    torch.manual_seed(0)
    normal, anomalous = torch.randn(4, 2, 3, 8), torch.randn(3, 2, 3, 8)
    found = magnitude_contrastive_loss(normal, anomalous, 5.0).item()
    assert found == pytest.approx(obvious_contrastive(normal, anomalous, 5.0), rel=1e-5)


def test_release_contrastive_by_hand():
    normal = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
    anomalous = torch.tensor([3.0, 8.0, 9.0]).view(3, 1, 1, 1)
    between = ((5 - 2) ** 2 + 0 + 0) / 3
    expected = 0.001 * between + (2 - 1) ** 2 + (8 - 3) ** 2
    found = magnitude_contrastive_loss_release(normal, anomalous, 5.0).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_paper_loss_learns_to_tell_bags_apart():
    torch.manual_seed(0)
    net = MGFN(feature_dim=8, dims=(16, 16, 16), depths=(1, 1, 1))
    normal, anomalous = 0.1 * torch.rand(8, 1, 6, 9), 0.1 * torch.rand(8, 1, 6, 9)
    anomalous[:, :, 2:4] += 1
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        scores, features = net(torch.cat([normal, anomalous]))
        kinds = slice(8), slice(8, 16)
        parts = [select_top_segments(scores[kind], features[kind], 2) for kind in kinds]
        loss = sum(mgfn_loss(*parts, scores[8:], PAPER).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    assert net(anomalous).scores.amax(1).min() > net(normal).scores.amax(1).max() + 0.2


@pytest.mark.parametrize("params", [PAPER, RELEASE], ids=["paper", "release"])
def test_a_single_bag_of_each_kind(params):
    one = select_top_segments(torch.rand(1, 1), torch.rand(1, 1, 1, 4), 3)
    parts = mgfn_loss(one, one, torch.rand(1, 1), params)
    assert all(torch.isfinite(part) for part in parts.values())
