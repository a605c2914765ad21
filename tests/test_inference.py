"""Prepared networks give the same outputs, without batch norms."""

import importlib.util

import pytest
import torch
from torch import nn

from aux_code import devices, inference
from aux_code.devices import supports_bf16
from aux_code.inference import prepare_anonymizer, prepare_for_inference, prepare_utility
from aux_code.model_loaders import (
    apply_anonymizer,
    load_anonymizer,
    load_fa_model,
    load_fb_model,
    load_ft_model,
    noise_keys,
)
from aux_code.openvino_networks import OpenVinoNetwork
from tests.fill import relative_error as relative

CPU = torch.device("cpu")


def settled(network):
    """Batch-norm statistics and weights away from their initial values."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            trained = (module.weight.data, module.bias.data)
            for tensor in (*trained, module.running_mean, module.running_var):
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


def n_norms(network):
    return sum(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in network.modules())


CASES = [
    (load_fa_model, "unet++", {}, (1, 3, 32, 32)), (load_fa_model, "small", {}, (2, 3, 30, 44)),
    (load_ft_model, "largei3d", {}, (1, 3, 8, 32, 32)), (load_fb_model, "r50", {}, (1, 3, 32, 32)),
    (load_ft_model, "small", {}, (2, 3, 8, 24, 24)), (load_fa_model, "unet", {}, (1, 3, 32, 32)),
    (load_fb_model, "small", {"ssl": True}, (2, 3, 24, 24)),
    (load_ft_model, "r3d_18", {}, (1, 3, 8, 32, 32)),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("load", "arch", "options", "shape"), CASES)
def test_prepared_networks_are_equal_and_small_ones_have_no_norm_left(load, arch, options, shape):
    torch.manual_seed(0)
    network, x = settled(load(arch, **options)), torch.rand(shape)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    prepared = prepare_for_inference(network, x)
    assert n_norms(network) > 3
    assert isinstance(prepared.network, OpenVinoNetwork) or n_norms(prepared) == 0
    other = torch.rand(shape)
    expected, output = network(other), prepared(other)
    if isinstance(expected, torch.Tensor):
        expected, output = (expected,), (output,)
    assert all(relative(own, theirs) < 1e-5 for own, theirs in zip(output, expected, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@torch.no_grad()
def test_bf16_features_within_a_percent():
    torch.manual_seed(0)
    network, x = settled(load_ft_model("small")), torch.rand(2, 3, 8, 24, 24)
    prepared = prepare_for_inference(network, x, precision="bf16")
    expected, features = network.extract_features(x), prepared.extract_features(x)
    assert features.dtype == torch.float32 and relative(features, expected) < 0.01
    is_bf16 = not torch.equal(features, expected) and prepared.dtype == torch.bfloat16
    assert supports_bf16("cpu") == is_bf16


def test_without_bf16_it_says_so_and_other_precisions_are_refused(monkeypatch, caplog):
    monkeypatch.setattr(devices, "supports_bf16", lambda device: False)
    network, images = load_fb_model("small"), torch.rand(1, 3, 16, 16)
    for precision in ("bf16", "fp16", "tf32"):
        prepared = prepare_for_inference(network, images, precision=precision)
        assert prepared.dtype == torch.float32
        assert f"cpu has no fast {precision}; computing in fp32" in caplog.text
    with pytest.raises(ValueError, match="fp64"):
        prepare_for_inference(network, images, precision="fp64")


@torch.no_grad()
@pytest.mark.parametrize("arch", ["small", "unet++"])
def test_noise_of_a_narrow_output_stays_and_can_be_seeded(arch):
    network = load_fa_model(arch, output_channels=1, output_scale=0.5, output_noise=0.1).eval()
    frames = torch.rand(2, 3, 32, 32)
    prepared = prepare_anonymizer(network, CPU)
    by_openvino = isinstance(prepared.network.network, OpenVinoNetwork)
    assert by_openvino == bool(arch == "unet++" and importlib.util.find_spec("openvino"))
    assert by_openvino or n_norms(prepared) == 0
    plain, fast, again = (
        apply_anonymizer(net, frames, noise=noise_keys(5, "v", (0, 1)))
        for net in (network, prepared, prepared)
    )
    assert (plain - fast).abs().max() < 1.01 / 255 and torch.equal(fast, again)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["small", "largei3d", "r3d_18"])
def test_utility_networks_take_clips_of_other_lengths_and_sizes_than_the_example(arch):
    network = settled(load_ft_model(arch))
    prepared = prepare_utility(network, CPU)
    clips = torch.rand(2, 3, 9, 40, 48)
    features = prepared.extract_features(clips)
    inner = prepared.network
    inner = inner.network if isinstance(inner, OpenVinoNetwork) else inner
    assert prepared.feature_dim == features.shape[1] and n_norms(inner.mlp) == 0
    torch.testing.assert_close(features, network.extract_features(clips), rtol=1e-4, atol=1e-5)
    # by oneDNN where torch's own loop takes one clip in three times the seconds
    kinds = {type(m) for m in prepared.modules() if isinstance(m, nn.Conv3d)}
    assert arch != "small" or kinds == {inference.OneDnnConv3d}
    assert not any(isinstance(m, inference.OneDnnConv3d) for m in network.modules())
    for name in ("raw", "blacken"):
        network = load_anonymizer(name)
        assert prepare_anonymizer(network, CPU, "bf16") is network


class Forked(nn.Module):
    """A convolution whose output is also used without the batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Reversed(Forked):
    """The batch norm comes first, though it is registered behind the convolution."""

    def forward(self, x):
        return self.conv(self.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("kind", [Forked, Reversed])
def test_what_cannot_be_folded_stays(kind, caplog):
    network, x = settled(kind()), torch.rand(2, 3, 4, 4)
    prepared = prepare_for_inference(network, x)
    assert n_norms(prepared) == 1 and f"{kind.__name__} runs with" in caplog.text
    torch.testing.assert_close(prepared(x), network(x), rtol=1e-5, atol=1e-6)
