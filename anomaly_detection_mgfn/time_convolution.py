"""MGFN's convolutions over time as matrix products and sums that a CPU does fast, with exact
gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeConv(nn.Conv1d):
    """Convolution over time of (B, T, C_in) -> (B, T, C_out), with the weights and names of
    nn.Conv1d.

    It is one matrix product over all times: twice as fast as a convolution on a CPU, its gradients
    in bf16 even more.
    """

    prepared: tuple[tuple[Tensor, ...], Tensor | None] | None = None
    """What `operands` gives, while `weights_prepared` holds it."""

    def operands(self, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The matrix, or the four of `PairConv`, and the bias, in the number format of the
        products."""
        weight = self.weight.to(dtype)
        if weight.requires_grad and weight is not self.weight:
            # in the weight's order before it is converted: in fp32 it would be put in order at a
            # fifth of the speed
            weight.register_hook(Tensor.contiguous)
        bias = None if self.bias is None else self.bias.to(dtype)
        if self._goes_in_pairs(dtype):
            return pair_matrices(weight), bias
        if self.out_channels >= self.in_channels:
            return (weight.transpose(1, 2).flatten(1),), bias
        return (weight.permute(2, 0, 1).flatten(0, 1),), bias

    def _goes_in_pairs(self, dtype: torch.dtype) -> bool:
        is_wide = min(self.in_channels, self.out_channels) >= WIDE
        return (
            is_wide
            and self.kernel_size[0] == 3
            and dtype == torch.bfloat16
            and self.weight.device.type == "cpu"
        )

    def forward(self, x: Tensor) -> Tensor:
        (matrix, *others), bias = self.prepared or self.operands(product_dtype(self.weight))
        x, taps = x.to(matrix.dtype), self.kernel_size[0]
        if taps == 1:
            return linear(x, matrix, bias)
        if others:
            return PairConv.apply(x, bias, matrix, *others)
        if self.out_channels >= self.in_channels:
            return linear(torch.cat(shifted(x, taps), dim=-1), matrix, bias)
        # a product for each tap first, then moved: windows of the wide input are never made
        products = linear(x, matrix, None).unflatten(-1, (taps, -1))
        moved = (shifted(products[..., tap, :], taps)[tap] for tap in range(taps))
        return sum(moved, start=bias if bias is not None else 0)


@contextmanager
def weights_prepared(net: nn.Module) -> Iterator[None]:
    """For several passes without gradients: the weights, which may not change meanwhile, are
    converted only once."""
    layers = [module for module in net.modules() if isinstance(module, TimeConv)]
    with torch.no_grad():
        for layer in layers:
            matrices, bias = layer.operands(product_dtype(layer.weight))
            layer.prepared = tuple(map(packed, matrices)), bias
    try:
        yield
    finally:
        for layer in layers:
            layer.prepared = None


def packed(matrix: Tensor) -> Tensor:
    """A matrix in the order in which oneDNN reads it fastest, where `product` hands it over: 4 to
    12 % less time."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix) if _is_for_onednn(matrix) else matrix


def product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, also with a matrix that is `packed`; without a gradient, wide ones in bf16 go to
    oneDNN at once.

    On the way of F.linear it would copy the bias over the whole output first.
    """
    if torch.is_grad_enabled() or not _is_for_onednn(matrix):
        return F.linear(x, matrix, bias)
    return torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")


def _is_for_onednn(matrix: Tensor) -> bool:
    is_wide = (
        matrix.device.type == "cpu" and matrix.dtype == torch.bfloat16 and min(matrix.shape) >= WIDE
    )
    return is_wide and _onednn_has_bf16()


@cache
def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def product_dtype(weight: Tensor) -> torch.dtype:
    """Number format of the products with a weight: autocast's where it is on."""
    return torch.get_autocast_dtype(weight.device.type) if autocasts(weight) else weight.dtype


def shifted(x: Tensor, taps: int) -> list[Tensor]:
    """Views of (B, T, C), moved by -(taps // 2) to taps // 2 in time; zeros come in from
    outside."""
    padded = F.pad(x, (0, 0, taps // 2, taps // 2))
    return [padded[:, k : k + x.shape[1]] for k in range(taps)]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of (B, T, C_in) whose gradients on a CPU leave out the times that have none (see
    `RowLinear`)."""
    is_small = weight.dtype == torch.bfloat16 and weight.numel() <= SMALL_LAYER
    if x.device.type != "cpu" or not torch.is_grad_enabled() or is_small:
        return product(x, weight, bias)
    return RowLinear.apply(x.flatten(0, 1), weight, bias).view(*x.shape[:2], -1)


class RowLinear(torch.autograd.Function):
    """F.linear of rows (R, C_in); the backward pass computes with those rows only whose gradient is
    not zero.

    Exact: a zero row adds nothing. A normal bag is trained by its few selected segments, so that in
    the last layers nearly half of the rows have no gradient.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        d_bias = gradient.sum(0) if of_bias else None
        used = _rows_with_gradient(gradient)
        d_rows = None
        if used is None:
            d_rows = gradient @ weight if of_rows else None
        else:
            # index_select copies whole rows; indexing in brackets goes element by element
            gradient, rows = gradient.index_select(0, used), rows.index_select(0, used)
            if of_rows:
                d_rows = weight.new_zeros(ctx.saved_tensors[0].shape).index_copy_(
                    0, used, gradient @ weight
                )
        return d_rows, gradient.t() @ rows if of_weight else None, d_bias


SMALL_LAYER = 2**17
"""Weights up to which looking for rows without a gradient takes longer than products with them do
in bf16."""

LEFT_OUT_SHARE, LEFT_OUT_ROWS = 0.2, 64
"""Leaving rows without a gradient out gains something from this share of them or from this number
on."""

PROBED_COLUMNS = 32
"""Columns in which nearly every row that has a gradient shows it."""


def _rows_with_gradient(gradient: Tensor) -> Tensor | None:
    """Indices of the rows of (R, C) that have a gradient; None where leaving the others out gains
    nothing."""
    fewest = min(LEFT_OUT_SHARE * len(gradient), LEFT_OUT_ROWS)
    for part in (gradient[:, :PROBED_COLUMNS], gradient):
        used = rows_filled_up(part.abs().sum(1) != 0, gradient.dtype)
        if len(gradient) - len(used) < fewest:
            return None
    return used


ROWS_AT_ONCE = 32
"""Numbers of rows that are multiples of this keep the number of different bf16 products small:
oneDNN prepares each size once, which takes a millisecond, and odd sizes are slower."""


def rows_filled_up(wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """Indices of the rows that are wanted (R,), in order, for products in bf16 with others up to
    ROWS_AT_ONCE."""
    if dtype != torch.bfloat16:
        return wanted.nonzero().squeeze(1)
    count = -(-int(wanted.sum()) // ROWS_AT_ONCE) * ROWS_AT_ONCE
    return wanted.logical_not().argsort(stable=True)[:count].sort().values


WIDE = 512
"""Channels from which fewer passes over tensors save more than they cost to prepare."""


def is_fused(x: Tensor) -> bool:
    """Whether operations on (B, T, C) have gradients of their own here, which pass over the tensors
    less often.

    Those of narrow networks in fp32, as the miniature is, stay as torch derives them: its published
    results hang on the last digit.
    """
    return x.shape[-1] >= WIDE or autocasts(x)


def pair_matrices(weight: Tensor) -> tuple[Tensor, ...]:
    """The four matrices (C_out, C_in) of `PairConv` from a convolution's weight (C_out, C_in, 3).

    The two in the middle are twice what Winograd has; their products are halved instead.
    """
    first, second, third = weight.permute(2, 0, 1).contiguous().unbind()
    outer = first + third
    return first, outer + second, outer - second, third


class PairConv(torch.autograd.Function):
    """Three-tap convolution of (B, T, C_in) by Winograd's F(2, 3): four products for two times
    instead of six.

    Exact but for rounding. In bf16, sums of inputs and of taps are rounded once more, so that the
    result's error grows from 0.3 to 0.55 %.
    """

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor | None, *matrices: Tensor) -> Tensor:
        n_times = x.shape[1]
        padded = F.pad(x, (0, 0, 1, 1 + n_times % 2))
        one, two, three, four = (
            padded[:, :-2:2],
            padded[:, 1:-2:2],
            padded[:, 2::2],
            padded[:, 3::2],
        )
        pieces = one - three, two + three, three - two, two - four
        first, second, third, fourth = map(product, pieces, matrices)
        even, odd = (
            torch.add(first, second + third, alpha=0.5),
            torch.sub((second - third).mul_(0.5), fourth),
        )
        y = torch.stack([even, odd], dim=2).flatten(1, 2)[:, :n_times]
        ctx.save_for_backward(*matrices, *pieces)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrices, pieces = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        n_times = gradient.shape[1]
        pairs = F.pad(gradient, (0, 0, 0, n_times % 2)).unflatten(1, (-1, 2))
        even, odd = pairs.unbind(2)
        of_products = even, (even + odd).mul_(0.5), (even - odd).mul_(0.5), -odd
        one, two, three, four = (
            of_product @ matrix for of_product, matrix in zip(of_products, matrices, strict=True)
        )
        d_x = gradient.new_zeros(len(gradient), 2 * pairs.shape[1] + 2, matrices[0].shape[1])
        d_x[:, 1:-2:2], d_x[:, 2::2] = two - three + four, two + three - one
        d_x[:, :-2:2] += one
        d_x[:, 3::2] -= four
        d_matrices = (
            a.flatten(0, 1).t() @ b.flatten(0, 1) for a, b in zip(of_products, pieces, strict=True)
        )
        d_bias = gradient.sum((0, 1)) if ctx.needs_input_grad[1] else None
        return d_x[:, 1 : 1 + n_times], d_bias, *d_matrices


def channel_convolution(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """Convolution over time of each channel of (B, T, C) with taps (K, C) of its own, K odd, and a
    bias (C,)."""
    if is_fused(x):
        dtype = product_dtype(taps)
        return ChannelConv.apply(x.to(dtype), taps.to(dtype), bias.to(dtype))
    mixed = bias
    for neighbours, weights in zip(shifted(x, len(taps)), taps, strict=True):
        mixed = torch.addcmul(mixed, neighbours, weights)
    return mixed


class ChannelConv(torch.autograd.Function):
    """`channel_convolution` with one pass over the tensors, its gradient with few."""

    @staticmethod
    def forward(ctx, x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        return _convolved(x, taps, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        d_taps = []
        for later in range(-(len(taps) // 2), len(taps) // 2 + 1):
            start = max(0, -later)
            end = max(start, x.shape[1] - max(0, later))
            d_taps.append((gradient[:, start:end] * x[:, start + later : end + later]).sum((0, 1)))
        return _convolved(gradient, taps.flip(0), None), torch.stack(d_taps), gradient.sum((0, 1))


def _convolved(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """As a picture one pixel high whose channels are its fastest index: oneDNN has a kernel for
    that."""
    picture, kernel = x.transpose(1, 2).unsqueeze(2), taps.t()[:, None, None]
    return (
        F.conv2d(picture, kernel, bias, padding=(0, len(taps) // 2), groups=len(kernel))
        .squeeze(2)
        .transpose(1, 2)
    )
