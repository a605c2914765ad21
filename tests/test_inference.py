"""Prepared networks give the same outputs, without batch norms."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aux_code import inference
from aux_code.inference import (
    OneDnnConv3d,
    fold_batch_norms,
    keep_prepared_products,
    prepare_anonymizer,
    prepare_for_inference,
    prepare_utility,
    supports_bf16,
    use_onednn_conv3d,
)
from aux_code.model_loaders import load_anonymizer, load_fa_model, load_fb_model, load_ft_model
from aux_code.models.anonymizers import set_noise_generator
from aux_code.openvino_networks import OpenVinoNetwork


def settled(network):
    """Batch-norm statistics and weights away from their initial values."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (
                module.weight.data,
                module.bias.data,
                module.running_mean,
                module.running_var,
            ):
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


def n_norms(network):
    return sum(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in network.modules())


CASES = [
    (lambda: load_fa_model("unet++"), (1, 3, 32, 32)),
    (lambda: load_fa_model("small"), (2, 3, 30, 44)),
    (lambda: load_ft_model("largei3d"), (1, 3, 8, 32, 32)),
    (lambda: load_ft_model("small"), (2, 3, 8, 24, 24)),
    (lambda: load_fb_model("r50"), (1, 3, 32, 32)),
    (lambda: load_fb_model("small", ssl=True), (2, 3, 24, 24)),
]


@torch.no_grad()
@pytest.mark.parametrize(("build", "shape"), CASES)
def test_prepared_networks_are_equal_and_have_no_batch_norm_left(build, shape):
    torch.manual_seed(0)
    network, x = settled(build()), torch.rand(shape)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    prepared = prepare_for_inference(network, x)
    # depth 4 leaves the 5 norms of the encoder's last layer unused in unet++
    assert n_norms(network) > 3 and n_norms(prepared) == (
        5 if hasattr(network, "segmentation_head") else 0
    )
    other = torch.rand(shape)
    expected, output = network(other), prepared(other)
    if isinstance(expected, torch.Tensor):
        expected, output = (expected,), (output,)
    for own, theirs in zip(output, expected, strict=True):
        assert ((own - theirs).norm() / theirs.norm()).item() < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@torch.no_grad()
def test_bf16_features_within_a_percent():
    torch.manual_seed(0)
    network, x = settled(load_ft_model("small")), torch.rand(2, 3, 8, 24, 24)
    prepared = prepare_for_inference(network, x, precision="bf16")
    expected, features = network.extract_features(x), prepared.extract_features(x)
    assert features.dtype == torch.float32
    assert ((features - expected).norm() / expected.norm()).item() < 0.01
    assert supports_bf16("cpu") == (
        not torch.equal(features, expected) and prepared.dtype == torch.bfloat16
    )


def test_without_bf16_it_says_so_and_computes_in_fp32(monkeypatch, caplog):
    monkeypatch.setattr(inference, "supports_bf16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        prepared = prepare_for_inference(
            load_fb_model("small"), torch.rand(1, 3, 16, 16), precision="bf16"
        )
    assert prepared.dtype == torch.float32 and "fp32" in caplog.text


@torch.no_grad()
def test_noise_of_a_narrow_output_stays_and_can_be_seeded():
    network, frames = (
        load_fa_model("small", output_channels=1, output_noise=0.1).eval(),
        torch.rand(2, 3, 16, 16),
    )
    set_noise_generator(network, torch.Generator().manual_seed(3))
    prepared, outputs = prepare_for_inference(network, frames), []
    assert n_norms(prepared) == 0
    for net in (network, prepared, prepared):
        set_noise_generator(net, torch.Generator().manual_seed(5))
        outputs.append(net(frames))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs[1], outputs[2])


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_onednn_convolution_of_clips(groups, batch):
    conv = nn.Conv3d(
        4, 8, (3, 5, 1), stride=(1, 2, 1), padding=(1, 2, 0), dilation=(2, 1, 1), groups=groups
    )
    x = torch.rand(batch, 4, 7, 9, 6)
    torch.testing.assert_close(OneDnnConv3d(conv)(x), conv(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_convolutions_that_onednn_can_do_alike_are_replaced():
    plain, same, circular = (
        nn.Conv3d(3, 3, 1),
        nn.Conv3d(3, 3, 3, padding="same"),
        nn.Conv3d(3, 3, 3, padding=1),
    )
    circular.padding_mode = "circular"
    network = nn.Sequential(plain, same, nn.Sequential(nn.Conv2d(3, 3, 1)), circular)
    assert use_onednn_conv3d(network) == 1
    assert isinstance(network[0], OneDnnConv3d) and network[1] is same and network[3] is circular


@torch.no_grad()
@pytest.mark.parametrize("arch", ["small", "largei3d", "r3d_18"])
def test_utility_networks_take_clips_of_other_lengths_and_sizes_than_the_example(arch):
    network = settled(load_ft_model(arch))
    prepared = prepare_utility(network, torch.device("cpu"))
    clips = torch.rand(2, 3, 9, 40, 48)
    features = prepared.extract_features(clips)
    inner = (
        prepared.network.network
        if isinstance(prepared.network, OpenVinoNetwork)
        else prepared.network
    )
    assert prepared.feature_dim == features.shape[1] and n_norms(inner.mlp) == 0
    torch.testing.assert_close(features, network.extract_features(clips), rtol=1e-4, atol=1e-5)


def test_an_anonymizer_without_weights_stays_itself():
    for name in ("raw", "blacken"):
        network = load_anonymizer(name)
        assert prepare_anonymizer(network, torch.device("cpu"), "bf16") is network


def test_unknown_precision():
    with pytest.raises(ValueError, match="fp16"):
        prepare_for_inference(load_fb_model("small"), torch.rand(1, 3, 16, 16), precision="fp16")


class Shared(nn.Module):
    """One convolution that serves twice, with a batch norm each time, and a norm without a
    convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.conv, self.a = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.a(self.conv(self.a(self.conv(self.first(x)))))


@torch.no_grad()
def test_what_cannot_be_folded_stays():
    network, x = settled(Shared()), torch.rand(2, 3, 4, 4)
    expected = network(x)
    assert fold_batch_norms(network, x) == 0
    assert torch.equal(network(x), expected)


class Forked(nn.Module):
    """A convolution whose output is also used without the batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


@torch.no_grad()
def test_a_convolution_with_a_second_reader_is_not_folded():
    network, x = settled(Forked()), torch.rand(2, 3, 4, 4)
    expected = network(x)
    assert fold_batch_norms(network, x) == 0
    assert torch.equal(network(x), expected)


TWO_PASSES = """
import torch
from aux_code.inference import keep_prepared_products
torch.set_num_threads(2)
{call}
for _ in range(2):
    for size in range(1, 1101):
        torch.nn.functional.conv2d(torch.zeros(2, 8, 1, size), torch.zeros(8, 8, 1, 1))
"""


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
@pytest.mark.parametrize("call, n_preparations", [("keep_prepared_products()", 1100), ("", 2200)])
def test_more_sizes_than_onednn_keeps_by_itself(call, n_preparations):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")
    }
    process = subprocess.run(
        [sys.executable, "-c", TWO_PASSES.format(call=call)],
        env={**environment, "ONEDNN_VERBOSE": "profile_create"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.count("create:cache_miss,cpu,convolution") == n_preparations


def test_number_of_kept_products_can_be_set(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    keep_prepared_products()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
