"""Convolutions over time as products and sums, against nn.functional's convolution."""

import pytest
import torch
from torch.nn import functional as F

from anomaly_detection_mgfn.time_convolution import (
    ROWS_AT_ONCE,
    WIDE,
    ChannelConv,
    PairConv,
    RowLinear,
    TimeConv,
    channel_convolution,
    packed,
    pair_matrices,
    product,
    rows_filled_up,
    weights_prepared,
)
from tests.fill import relative_error


def assert_same_values_and_gradients(one, other, inputs):
    """Both outputs, and their gradients by all inputs, are equal."""
    weights = torch.randn_like(other)
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in (one, other)]
    for own, expected in zip((one, *gradients[0]), (other, *gradients[1]), strict=True):
        torch.testing.assert_close(own, expected)


def doubles(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("channels, taps", [((6, 9), 3), ((9, 6), 3), ((9, 6), 1), ((1, 4), 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_matrix_products_equal_the_convolution(channels, taps, bias):
    torch.manual_seed(0)
    layer = TimeConv(*channels, taps, padding=taps // 2, bias=bias)
    x = torch.randn(3, 7, channels[0], requires_grad=True)
    expected = torch.nn.Conv1d.forward(layer, x.transpose(1, 2)).transpose(1, 2)
    assert_same_values_and_gradients(layer(x), expected, [x, *layer.parameters()])


@pytest.mark.parametrize("n_times", [1, 2, 5, 8])
@pytest.mark.parametrize("has_bias", [True, False])
def test_pairs_of_times_equal_the_convolution(n_times, has_bias):
    x, weight, bias = doubles((3, n_times, 6), (5, 6, 3), 5)
    expected = F.conv1d(x.transpose(1, 2), weight, bias if has_bias else None, padding=1).transpose(
        1, 2
    )
    own = PairConv.apply(x, bias if has_bias else None, *pair_matrices(weight))
    assert_same_values_and_gradients(own, expected, [x, weight, bias][: 2 + has_bias])


@pytest.mark.parametrize("convolution", [ChannelConv.apply, channel_convolution])
@pytest.mark.parametrize("n_times", [1, 3, 9])
def test_convolution_of_each_channel(convolution, n_times):
    x, taps, bias = doubles((3, n_times, 4), (5, 4), 4)
    expected = F.conv1d(x.transpose(1, 2), taps.t()[:, None], bias, padding=2, groups=4).transpose(
        1, 2
    )
    assert_same_values_and_gradients(convolution(x, taps, bias), expected, [x, taps, bias])


@pytest.mark.parametrize("taps, n_matrices", [(1, 1), (3, 4)])
def test_wide_layers_in_bf16(taps, n_matrices):
    """Three taps go in pairs of times; prepared weights change nothing; all is as in fp32 but for
    rounding."""
    torch.manual_seed(0)
    layer, x = TimeConv(WIDE, WIDE, taps, padding=taps // 2), torch.randn(2, 9, WIDE)
    assert [len(matrix) for matrix in layer.operands(torch.bfloat16)[0]] == n_matrices * [WIDE]
    found = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = layer(x)
        output.float().square().sum().backward()
        found.append((output.detach().float(), layer.weight.grad.clone(), layer.bias.grad.clone()))
    for exact, rounded in zip(*found, strict=True):
        assert 0 < relative_error(rounded, exact.numpy()) < 0.02
    assert layer.weight.grad.is_contiguous()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), weights_prepared(layer):
        assert torch.equal(layer(x).float(), found[1][0])


@pytest.mark.parametrize("n_in, n_out", [(WIDE, 2 * WIDE), (WIDE + 8, WIDE), (WIDE, 8)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_round_once(n_in, n_out, has_bias):
    """Packed or not, the product in bf16 is the exact one, rounded: no error of 0.2 % (half of
    2**-8) is exceeded."""
    torch.manual_seed(0)
    x, matrix, bias = (
        torch.randn(shape).bfloat16() for shape in ((2, 9, n_in), (n_out, n_in), (n_out,))
    )
    exact = F.linear(x.double(), matrix.double(), bias.double() if has_bias else None)
    with torch.no_grad():
        for own in (
            product(x, form, bias if has_bias else None) for form in (matrix, packed(matrix))
        ):
            torch.testing.assert_close(own.double(), exact, rtol=2**-8, atol=1e-3)


def test_products_with_a_gradient():
    x, matrix = doubles((3, WIDE), (WIDE, WIDE))
    x, matrix = x.bfloat16(), matrix.bfloat16()
    (own,) = torch.autograd.grad(product(x, matrix).sum(), x)
    torch.testing.assert_close(own, matrix.sum(0).expand(3, -1), rtol=2**-6, atol=0.05)


@pytest.mark.parametrize("n_wanted", [0, 1, 31, 32, 33, 99])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_filled_up_in_bf16(n_wanted, dtype):
    wanted = torch.zeros(100, dtype=torch.bool)
    wanted[torch.randperm(100, generator=torch.Generator().manual_seed(0))[:n_wanted]] = True
    rows, step = rows_filled_up(wanted, dtype), ROWS_AT_ONCE if dtype == torch.bfloat16 else 1
    assert len(rows) == min(100, -(-n_wanted // step) * step)
    assert rows.equal(rows.unique()) and wanted[rows].sum() == n_wanted


@pytest.mark.parametrize("used", [[], [2], [0, 3, 7, 99], range(85), range(100)])
def test_gradients_leave_out_rows_without_one(used):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((100, 5), (40, 5), (40,))]
    gradient = torch.zeros(100, 40)
    gradient[list(used), 35:] = torch.randn(
        len(used), 5
    )  # behind the columns that are looked at first
    own = torch.autograd.grad(RowLinear.apply(*inputs), inputs, gradient)
    expected = torch.autograd.grad(F.linear(*inputs), inputs, gradient)
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_that_is_not_a_number_is_not_left_out():
    x, weight = torch.randn(100, 40, requires_grad=True), torch.randn(40, 40)
    gradient = torch.zeros(100, 40)
    gradient[7, 39] = torch.nan
    (own,) = torch.autograd.grad(RowLinear.apply(x, weight, None), x, gradient)
    assert own[7].isnan().all() and (own[8:] == 0).all()
