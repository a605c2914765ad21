"""f_T: published layout, golden values, one interface; convolutions over two frames."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aux_code.errors import UserError
from aux_code.model_loaders import load_ft_model
from aux_code.models.i3d import TwoFrameConv3d, mend_short_clips
from aux_code.models.utility import build_utility
from tests.fill import GOLDEN, fill, layout, picture, relative_error, shapes


@torch.no_grad()
def test_published_layout_and_golden_values():
    network = fill(load_ft_model())
    assert shapes(network) == layout("ft_largei3d_102")
    golden, clips = np.load(GOLDEN / "networks.npz"), picture("clips", 2, 3, 16, 64, 64)
    features = network.extract_features(clips)
    output = network.classify(features)
    assert relative_error(features, golden["ft_features"]) < 1e-4
    assert relative_error(output.logits, golden["ft_logits"]) < 1e-4
    assert relative_error(output.embedding, golden["ft_embedding"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("arch, shape, feature_dim, embedding_dim", [
    ("largei3d", (8, 32, 40), 2048, 128), ("r3d_18", (8, 32, 32), 512, 128),
    ("small", (8, 48, 48), 64, 32), ("small", (1, 20, 33), 64, 32),
    ("small", (5, 64, 48), 64, 32), ("small_wide", (8, 48, 48), 128, 32),
    ("small_narrow", (8, 48, 48), 32, 32), ("small_still", (8, 48, 48), 64, 32),
])  # fmt: skip
def test_one_interface(arch, shape, feature_dim, embedding_dim):
    network, clips = build_utility(arch, num_classes=5).eval(), torch.rand(1, 3, *shape)
    features = network.extract_features(clips)
    logits, embedding = network.classify(features)
    assert features.shape == (1, feature_dim) and network.feature_dim == feature_dim
    assert logits.shape == (1, 5) and embedding.shape == (1, embedding_dim)
    assert embedding.norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    whole = network(clips)
    assert torch.equal(whole.logits, logits) and torch.equal(whole.embedding, embedding)


def test_mvitv2_says_which_clips_it_takes():
    with torch.device("meta"):  # shapes alone: a real pass costs seconds
        network = build_utility("mvitv2", num_classes=5)
        clips = torch.zeros(2, 3, 16, 224, 224)
    assert network.extract_features(clips).shape == (2, network.feature_dim) == (2, 768)
    assert [tuple(part.shape) for part in network(clips)] == [(2, 5), (2, 128)]
    with pytest.raises(ValueError, match="16, 224, 224"):
        network(torch.zeros(1, 3, 8, 224, 224, device="meta"))


def test_torchvision_networks_normalise_inside():
    network = build_utility("r3d_18").eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(network.mean.expand(1, 3, 4, 16, 16))
    assert seen[0].abs().max() == 0


@pytest.mark.parametrize("arch", ["largei3d", "small"])
def test_frozen_batch_norm_is_frozen_entirely(arch):
    network = build_utility(arch, num_classes=3, freeze_bn=True).train()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    # the 57 of I3D-ResNet50 contain the 4 down-sampling ones; 2 more are the head's
    assert len(norms) == {"largei3d": 1 + 4 + 3 * 16 + 2, "small": 6}[arch]
    assert not any(norm.training for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert network.training


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_statistics_of_batch_norm_move_unless_it_is_frozen(freeze_bn):
    network = build_utility("small", num_classes=3, freeze_bn=freeze_bn).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.rand(2, 3, 4, 16, 16))
    after = dict(network.named_buffers())
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == (set() if freeze_bn else before.keys())


def test_small_network_sees_the_order_of_frames():
    torch.manual_seed(0)
    network, clips = build_utility("small").eval(), torch.rand(1, 3, 8, 32, 32)
    assert not torch.allclose(network(clips).logits, network(clips.flip(2)).logits, atol=1e-4)


def test_unknown_architecture_lists_the_known():
    with pytest.raises(UserError, match="'i3d'.*largei3d, r3d_18, mvitv2, small"):
        load_ft_model("i3d")


def test_only_the_still_small_network_tells_still_clips_apart():
    """Table 1 in miniature attacks features of still clips, which have no motion."""
    torch.manual_seed(0)
    clips = torch.rand(2, 3, 1, 32, 32).expand(-1, -1, 8, -1, -1)
    networks = (build_utility(arch).eval() for arch in ("small_still", "small"))
    still, moving = (network.extract_features(clips) for network in networks)
    assert (still[0] - still[1]).abs().max() > 1e-3
    torch.testing.assert_close(moving[0], moving[1])


def weight_gradient(conv, x, upstream, bf16=False):
    conv.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = conv(x)
    output.backward(upstream.to(output.dtype))
    return conv.weight.grad.clone()


@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_short_clips_are_convolved_as_ever(kernel, n_frames, memory_format):
    torch.manual_seed(0)
    plain = nn.Conv3d(16, 8, kernel, padding=tuple(k // 2 for k in kernel))
    mended = mend_short_clips(nn.Sequential(plain))[0]
    assert isinstance(mended, TwoFrameConv3d)
    x = torch.randn(2, 16, n_frames, 6, 6).to(memory_format=memory_format)
    upstream = torch.randn(2, 8, n_frames, 6, 6)
    torch.testing.assert_close(mended(x), plain(x))
    expected = weight_gradient(plain, x, upstream)
    torch.testing.assert_close(weight_gradient(mended, x, upstream), expected)
    in_bf16 = weight_gradient(mended, x, upstream, bf16=True)
    assert (in_bf16 - expected).norm() < 0.02 * expected.norm()


def test_every_time_convolution_of_the_utility_networks_is_mended():
    for arch in ("largei3d", "r3d_18", "small"):
        convolutions = [m for m in build_utility(arch).modules() if isinstance(m, nn.Conv3d)]
        over_time = [c for c in convolutions if c.kernel_size[0] == 3 and c.stride[0] == 1]
        assert over_time and all(isinstance(c, TwoFrameConv3d) for c in over_time), arch
