"""f_T: published layout, golden values, one interface for all architectures."""

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from aux_code.errors import UserError
from aux_code.model_loaders import load_ft_model
from aux_code.models.i3d import I3DResNet50
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
@pytest.mark.parametrize(
    ("arch", "shape", "feature_dim", "embedding_dim"),
    [
        ("largei3d", (8, 32, 40), 2048, 128),
        ("r3d_18", (8, 32, 32), 512, 128),
        ("small", (8, 48, 48), 64, 32),
        ("small", (1, 20, 33), 64, 32),
        ("small", (5, 64, 48), 64, 32),
        ("small_wide", (8, 48, 48), 128, 32),
        ("small_narrow", (8, 48, 48), 32, 32),
        ("small_still", (8, 48, 48), 64, 32),
    ],
)
def test_one_interface(arch, shape, feature_dim, embedding_dim):
    network, clips = build_utility(arch, num_classes=5).eval(), torch.rand(1, 3, *shape)
    features = network.extract_features(clips)
    logits, embedding = network.classify(features)
    assert features.shape == (1, feature_dim) and network.feature_dim == feature_dim
    assert logits.shape == (1, 5) and embedding.shape == (1, embedding_dim)
    assert embedding.norm(dim=1).item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_forward_is_classify_of_extract_features():
    network, clips = build_utility("small").eval(), torch.rand(2, 3, 8, 24, 24)
    for whole, part in zip(
        network(clips), network.classify(network.extract_features(clips)), strict=True
    ):
        assert torch.equal(whole, part)


def test_mvitv2_says_which_clips_it_takes():
    # shapes alone, on the meta device: a real pass costs seconds
    with torch.device("meta"):
        network = build_utility("mvitv2", num_classes=5)
    clips = torch.zeros(2, 3, 16, 224, 224, device="meta")
    assert network.extract_features(clips).shape == (2, network.feature_dim) == (2, 768)
    assert [tuple(part.shape) for part in network(clips)] == [(2, 5), (2, 128)]
    with pytest.raises(ValueError, match="16, 224, 224"):
        network(torch.zeros(1, 3, 8, 224, 224, device="meta"))


def test_torchvision_networks_normalise_inside():
    network = build_utility("r3d_18").eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    constant = network.mean.expand(1, 3, 4, 16, 16)
    network(constant)
    assert seen[0].abs().max() == 0


def test_i3d_halves_time_three_times():
    network, seen = I3DResNet50(4).eval(), []
    network.layer4.register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(output.shape))
    )
    with torch.no_grad():
        network(torch.rand(1, 3, 16, 64, 64))
    assert seen == [(1, 2048, 2, 2, 2)]


@pytest.mark.parametrize("arch", ["largei3d", "small"])
def test_frozen_batch_norm_is_frozen_entirely(arch):
    network = build_utility(arch, num_classes=3, freeze_bn=True).train()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    # the 57 of I3D-ResNet50 contain the 4 down-sampling ones; 2 more are the head's
    assert len(norms) == {"largei3d": 1 + 4 + 3 * 16 + 2, "small": 6}[arch]
    assert not any(norm.training for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    assert network.training and network.state_dict()
    if arch == "small":
        before = {
            k: v.clone()
            for k, v in network.state_dict().items()
            if "running" in k or "batches" in k
        }
        network(torch.rand(2, 3, 4, 16, 16))
        after = network.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())


def test_batch_norm_moves_when_it_is_not_frozen():
    network = build_utility("small", num_classes=3).train()
    before = network.layers[1].running_mean.clone()
    network(torch.rand(2, 3, 4, 16, 16))
    assert not torch.equal(network.layers[1].running_mean, before)


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
    with torch.no_grad():
        still, moving = (
            build_utility(arch).eval().extract_features(clips) for arch in ("small_still", "small")
        )
    assert (still[0] - still[1]).abs().max() > 1e-3
    torch.testing.assert_close(moving[0], moving[1])
