"""MGFN against the published layout and golden values."""

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn.mgfn import MGFN, ChannelNorm, Focus, Glance, TimeConv
from tests.fill import GOLDEN, bags, fill, layout, relative_error, shapes


@pytest.fixture(scope="module")
def published():
    return fill(MGFN())


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "mgfn.npz")


def small(**arguments):
    torch.manual_seed(0)
    return MGFN(feature_dim=8, dims=(16, 24, 32), depths=(1, 1, 1), **arguments)


def test_layout(published):
    assert shapes(published) == layout("mgfn_2048")
    assert sum(p.numel() for p in published.parameters()) == 28_652_773


@torch.no_grad()
def test_golden_scores(published, golden):
    both = torch.cat([bags("normal", 2, 32), bags("abnormal", 2, 32)])
    assert relative_error(published(both).scores[..., None], golden["mgfn_scores"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("n_clips", [7, 40])
def test_golden_scores_of_whole_videos(published, golden, n_clips):
    output = published(bags(f"video{n_clips}", 1, n_clips))
    assert relative_error(output.scores[..., None], golden[f"mgfn_scores_t{n_clips}"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("n_clips", [1, 2, 5, 33])
def test_any_length(n_clips):
    output = small().eval()(torch.rand(3, 2, n_clips, 9))
    assert output.scores.shape == (3, n_clips)
    assert output.features.shape == (3, 2, n_clips, 32)
    assert ((output.scores > 0) & (output.scores < 1)).all()


@torch.no_grad()
def test_scores_are_the_mean_over_crops_and_bags_do_not_mix():
    net, x = small().eval(), torch.rand(2, 3, 6, 9)
    each = torch.stack([net(x[:, i : i + 1]).scores for i in range(3)]).mean(0)
    torch.testing.assert_close(net(x).scores, each)
    torch.testing.assert_close(net(x[1:]).scores, net(x).scores[1:])


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
def test_focus_equals_a_grouped_convolution():
    torch.manual_seed(0)
    focus, x = Focus(16, heads=2, head_dim=8).eval(), torch.rand(3, 11, 16)
    values = focus.to_v(focus.norm(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
    mixed = focus.rel_pos(values.reshape(-1, 2, 11)).view_as(values)
    torch.testing.assert_close(focus(x), focus.to_out(mixed.transpose(1, 2)))


@torch.no_grad()
def test_focus_sees_two_clips_to_each_side():
    torch.manual_seed(0)
    focus, x = Focus(16, heads=2, head_dim=8).eval(), torch.rand(1, 11, 16)
    changed = x.clone()
    changed[:, 5] += 1
    touched = (focus(x) - focus(changed)).abs().sum((0, 2)) > 1e-6
    assert touched.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@torch.no_grad()
def test_padding_changes_no_score(published):
    """What stands in the padding does not matter either."""
    lengths = torch.tensor([40, 37, 3])
    bag = bags("padded", 3, 40)
    output = published(bag, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = published(bag[i : i + 1, :, :length])
        torch.testing.assert_close(output.scores[i, :length], alone.scores[0], atol=1e-5, rtol=0)
        features = output.features[i, :, :length]
        torch.testing.assert_close(features, alone.features[0], atol=1e-4, rtol=1e-4)


def test_bf16_gives_nearly_the_same_scores_and_gradients():
    torch.manual_seed(0)
    net, bag = MGFN(feature_dim=64, dims=(32, 64, 64), depths=(2, 1, 1)), torch.rand(4, 2, 16, 65)
    found = {}
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = net(bag)
        assert output.scores.dtype == output.features.dtype == torch.float32
        output.scores.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        found[enabled] = output.scores.detach(), output.features.detach(), gradient
    for exact, rounded in zip(found[False], found[True]):
        assert 0 < relative_error(rounded, exact.numpy()) < 0.03


def test_magnitude_channel_counts():
    net = small().eval()
    x = torch.rand(1, 1, 4, 9)
    louder = x.clone()
    louder[..., -1] += 5
    assert not torch.allclose(net(x).scores, net(louder).scores)
    net.magnitude_ratio = 0.0
    assert torch.allclose(net(x).scores, net(louder).scores)


def test_dropout_acts_in_training_only():
    x = torch.rand(1, 1, 4, 9)
    net = small(dropout=0.7).eval()
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


@pytest.mark.parametrize("channels, taps", [((6, 9), 3), ((9, 6), 3), ((9, 6), 1), ((1, 4), 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_over_time_are_those_of_torch(channels, taps, bias):
    torch.manual_seed(0)
    layer = TimeConv(*channels, taps, padding=taps // 2, bias=bias)
    x = torch.randn(3, 7, channels[0])
    expected = torch.nn.Conv1d.forward(layer, x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 1, 4, 8), (1, 1, 0, 9)])
def test_wrong_bags(shape):
    with pytest.raises(ValueError, match="bags must be"):
        small()(torch.zeros(shape))
