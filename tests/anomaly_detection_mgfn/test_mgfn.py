"""MGFN against the published layout and golden values."""

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn.mgfn import MGFN, ChannelNorm, Glance
from tests.fill import GOLDEN, bags, fill, layout, relative_error, shapes


@pytest.fixture(scope="module")
def published():
    return fill(MGFN())


def small(**arguments):
    torch.manual_seed(0)
    return MGFN(feature_dim=8, dims=(16, 24, 32), depths=(1, 1, 1), **arguments)


def test_layout(published):
    assert shapes(published) == layout("mgfn_2048")
    assert sum(p.numel() for p in published.parameters()) == 28_652_773


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


def test_magnitude_channel_counts():
    net, x = small().eval(), torch.rand(1, 1, 4, 9)
    louder = x + torch.tensor([0.0] * 8 + [5.0])
    assert not torch.allclose(net(x).scores, net(louder).scores)
    net.magnitude_ratio = 0.0
    assert torch.allclose(net(x).scores, net(louder).scores)


def test_dropout_acts_in_training_only():
    net, x = small(dropout=0.7).eval(), torch.rand(1, 1, 4, 9)
    assert torch.equal(net(x).scores, net(x).scores)
    net.train()
    assert not torch.equal(net(x).scores, net(x).scores)


def test_constant_input_has_a_finite_gradient():
    norm, x = ChannelNorm(4), torch.ones(1, 3, 4, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@torch.no_grad()
def test_channel_norm_divides_by_the_deviation_and_eps():
    torch.manual_seed(0)
    norm, x = ChannelNorm(5, eps=0.1), torch.randn(2, 3, 5) * torch.tensor([[1e-2], [1.0], [30.0]])
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    deviation, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
    expected = (x - mean) / (deviation + 0.1) * norm.g.flatten() + norm.b.flatten()
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 1, 4, 8), (1, 1, 0, 9)])
def test_wrong_bags(shape):
    with pytest.raises(ValueError, match="bags must be"):
        small()(torch.zeros(shape))
