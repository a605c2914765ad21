"""MGFN and its losses against the published layout, golden values and slow, obvious versions."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn import mgfn_losses
from anomaly_detection_mgfn.mgfn import MGFN, ChannelNorm, Glance
from anomaly_detection_mgfn.mgfn_losses import mgfn_loss, select_top_segments
from anomaly_detection_mgfn.params_mgfn import MINIATURE, PAPER, RELEASE, MgfnParams
from tests.fill import GOLDEN, bags, fill, layout, relative_error, shapes


@pytest.fixture(scope="module")
def published():
    return fill(MGFN())


def small(**arguments):
    torch.manual_seed(0)
    return MGFN(feature_dim=8, dims=(16, 24, 32), depths=(1, 1, 1), **arguments)


def test_layout(published):
    assert shapes(published) == layout("mgfn_2048")


@torch.no_grad()
@pytest.mark.parametrize("n_clips", [0, 7, 40])
def test_golden_scores(published, n_clips):
    """Of two normal and two anomalous bags of 32 segments, and of whole videos."""
    bag = torch.cat([bags("normal", 2, 32), bags("abnormal", 2, 32)])
    bag = bags(f"video{n_clips}", 1, n_clips) if n_clips else bag
    expected = np.load(GOLDEN / "mgfn.npz")[f"mgfn_scores_t{n_clips}" if n_clips else "mgfn_scores"]
    assert relative_error(published(bag).scores[..., None], expected) < 1e-4


@torch.no_grad()
def test_scores_are_the_mean_over_crops_and_bags_do_not_mix():
    net, x = small().eval(), torch.rand(2, 3, 6, 9)
    output, each = net(x), torch.stack([net(x[:, i : i + 1]).scores for i in range(3)]).mean(0)
    torch.testing.assert_close(output.scores, each)
    torch.testing.assert_close(net(x[1:]).scores, output.scores[1:])
    assert output.scores.shape == (2, 6) and output.features.shape == (2, 3, 6, 32)


@torch.no_grad()
def test_glance_equals_plain_attention():
    torch.manual_seed(0)
    glance, x = Glance(128, heads=2, head_dim=64), torch.rand(2, 5, 128)
    q, k, v = glance.to_qkv(glance.norm(x)).chunk(3, dim=-1)
    mixed = torch.empty_like(q)
    for head in range(2):
        part = slice(64 * head, 64 * (head + 1))
        attention = (q[..., part] @ k[..., part].transpose(1, 2) / 8).softmax(-1)
        mixed[..., part] = attention @ v[..., part]
    torch.testing.assert_close(glance(x), glance.to_out(mixed))


@torch.no_grad()
def test_padding_and_what_stands_in_it_change_no_score(published):
    lengths, bag = torch.tensor([40, 37, 3]), bags("padded", 3, 40)
    output = published(bag, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = published(bag[i : i + 1, :, :length])
        torch.testing.assert_close(output.scores[i, :length], alone.scores[0], atol=1e-5, rtol=0)
        features = output.features[i, :, :length]
        torch.testing.assert_close(features, alone.features[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bf16_gives_nearly_the_same_scores_and_features():
    torch.manual_seed(0)
    net, bag = MGFN(feature_dim=64, dims=(32, 64, 64), depths=(2, 1, 1)), torch.rand(4, 2, 16, 65)
    exact = net(bag)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(bag)
    for own, other in zip(rounded, exact):
        assert own.dtype == torch.float32
        assert 0 < relative_error(own, other.numpy()) < 0.03


def test_magnitude_channel_counts_and_dropout_acts_in_training_only():
    net, x = small(dropout=0.7).eval(), torch.rand(1, 1, 4, 9)
    louder = x + torch.tensor([0.0] * 8 + [5.0])
    assert not torch.allclose(net(x).scores, net(louder).scores)
    net.magnitude_ratio = 0.0
    assert torch.allclose(net(x).scores, net(louder).scores)
    assert torch.equal(net(x).scores, net(x).scores)
    net.train()
    assert not torch.equal(net(x).scores, net(x).scores)


def test_channel_norm_divides_by_the_deviation_and_eps_so_that_a_constant_has_a_gradient():
    torch.manual_seed(0)
    norm, x = ChannelNorm(5, eps=0.1), torch.randn(2, 3, 5) * torch.tensor([[1e-2], [1.0], [30.0]])
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    deviation, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
    expected = (x - mean) / (deviation + 0.1) * norm.g.flatten() + norm.b.flatten()
    torch.testing.assert_close(norm(x), expected)
    constant = torch.ones(1, 3, 5, requires_grad=True)
    ChannelNorm(5)(constant).sum().backward()
    assert torch.isfinite(constant.grad).all()


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 1, 4, 8), (1, 1, 0, 9)])
def test_wrong_bags(shape):
    with pytest.raises(ValueError, match="bags must be"):
        small()(torch.zeros(shape))


@torch.no_grad()
def test_golden_selection_and_release_losses(published):
    golden = np.load(GOLDEN / "mgfn.npz")
    scores, features = published(torch.cat([bags("normal", 2, 32), bags("abnormal", 2, 32)]))
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


def test_contrastive_equals_the_obvious_version_and_the_releases_is_as_by_hand():
    torch.manual_seed(0)
    normal, anomalous = torch.randn(4, 2, 3, 8), torch.randn(3, 2, 3, 8)
    found = mgfn_losses.magnitude_contrastive_loss(normal, anomalous, 5.0).item()
    assert found == pytest.approx(obvious_contrastive(normal, anomalous, 5.0), rel=1e-5)
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
