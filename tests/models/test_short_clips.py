"""Convolutions over two frames, whose weight gradient in bf16 on a CPU needs explicit padding."""

import pytest
import torch
from torch import nn

from aux_code.models.i3d import Bottleneck, TwoFrameConv3d, mend_short_clips
from aux_code.models.utility import build_utility


def weight_gradient(
    conv: nn.Conv3d, x: torch.Tensor, upstream: torch.Tensor, bf16: bool
) -> torch.Tensor:
    conv.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = conv(x)
    output.backward(upstream.to(output.dtype))
    return conv.weight.grad.clone()


@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize("n_frames", [1, 2, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_bf16_weight_gradient_is_the_fp32_one_up_to_rounding(kernel, n_frames, memory_format):
    torch.manual_seed(0)
    conv = TwoFrameConv3d(16, 8, kernel, padding=tuple(k // 2 for k in kernel), bias=False)
    x = torch.randn(2, 16, n_frames, 6, 6).to(memory_format=memory_format)
    upstream = torch.randn(2, 8, n_frames, 6, 6)
    expected = weight_gradient(conv, x, upstream, bf16=False)
    error = (weight_gradient(conv, x, upstream, bf16=True) - expected).norm() / expected.norm()
    assert error < 0.02


def test_values_and_gradients_equal_the_plain_convolution():
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 5, 3, padding=1)
    mended = mend_short_clips(nn.Sequential(plain))[0]
    x, upstream = torch.randn(2, 4, 2, 5, 5), torch.randn(2, 5, 2, 5, 5)
    assert isinstance(mended, TwoFrameConv3d)
    torch.testing.assert_close(mended(x), plain(x))
    torch.testing.assert_close(
        weight_gradient(mended, x, upstream, bf16=False),
        weight_gradient(plain, x, upstream, bf16=False),
    )


def test_every_time_convolution_of_the_utility_networks_is_mended():
    for arch in ("largei3d", "r3d_18", "small"):
        convolutions = [m for m in build_utility(arch).modules() if isinstance(m, nn.Conv3d)]
        over_time = [c for c in convolutions if c.kernel_size[0] == 3 and c.stride[0] == 1]
        assert over_time and all(isinstance(c, TwoFrameConv3d) for c in over_time), arch


def test_a_block_of_i3d_keeps_its_names():
    names = {name for name, _ in Bottleneck(8, 4, 1, temporal=True).named_parameters()}
    assert {"conv1.weight", "conv2.weight", "conv3.weight"} <= names
