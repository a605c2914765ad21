"""MGFN, the magnitude-contrastive glance-and-focus network (AAAI 2023): feature bags -> anomaly scores."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MGFNOutput(NamedTuple):
    """What MGFN says of B bags of T clips or segments."""

    scores: Tensor
    """(B, T) anomaly scores in [0, 1], averaged over the crops."""
    features: Tensor
    """(B, n_crops, T, dims[-1]) normalised features whose magnitude selects the segments in training."""


class TimeConv(nn.Conv1d):
    """Convolution over time of (B, T, C_in) -> (B, T, C_out), with the weights and names of nn.Conv1d.

    It is one matrix product over all times: twice as fast as a convolution on a CPU, its gradients in bf16 even more.
    """

    prepared: tuple[Tensor, Tensor | None] | None = None
    """What `operands` gives, while `weights_prepared` holds it."""

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The matrix and the bias in the number format of the products."""
        weight = self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.out_channels >= self.in_channels:
            return weight.transpose(1, 2).flatten(1), bias
        return weight.permute(2, 0, 1).flatten(0, 1), bias

    def forward(self, x: Tensor) -> Tensor:
        matrix, bias = self.prepared or self.operands(_product_dtype(self.weight))
        x, taps = x.to(matrix.dtype), self.kernel_size[0]
        if taps == 1:
            return linear(x, matrix, bias)
        if self.out_channels >= self.in_channels:
            return linear(torch.cat(shifted(x, taps), dim=-1), matrix, bias)
        # a product for each tap first, then moved: windows of the wide input are never made
        products = linear(x, matrix, None).unflatten(-1, (taps, -1))
        moved = (shifted(products[..., tap, :], taps)[tap] for tap in range(taps))
        return sum(moved, start=bias if bias is not None else 0)


@contextmanager
def weights_prepared(net: nn.Module) -> Iterator[None]:
    """For several passes of a network that does not change meanwhile: its weights are converted once, not in each."""
    layers = [module for module in net.modules() if isinstance(module, TimeConv)]
    with torch.no_grad():
        for layer in layers:
            layer.prepared = layer.operands(_product_dtype(layer.weight))
    try:
        yield
    finally:
        for layer in layers:
            layer.prepared = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of (B, T, C_in) whose gradients on a CPU leave out the times that have none (see `RowLinear`)."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return RowLinear.apply(x.flatten(0, 1), weight, bias).view(*x.shape[:2], -1)


class RowLinear(torch.autograd.Function):
    """F.linear of rows (R, C_in); the backward pass computes with those rows only whose gradient is not zero.

    Exact: a zero row adds nothing. A normal bag is trained by its few selected segments, so that in the last layers
    nearly half of the rows have no gradient.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return F.linear(rows, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        d_bias = gradient.sum(0) if of_bias else None
        used = gradient.abs().sum(1).nonzero().squeeze(1)
        d_rows = None
        if len(used) > DENSE_SHARE * len(rows):
            d_rows = gradient @ weight if of_rows else None
        else:
            # index_select copies whole rows; indexing in brackets goes element by element
            gradient, rows = gradient.index_select(0, used), rows.index_select(0, used)
            if of_rows:
                d_rows = weight.new_zeros(ctx.saved_tensors[0].shape).index_copy_(0, used, gradient @ weight)
        return d_rows, gradient.t() @ rows if of_weight else None, d_bias


DENSE_SHARE = 0.8
"""Above this share of rows with a gradient, leaving the others out gains nothing."""


def _product_dtype(weight: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(weight.device.type) if _autocasts(weight) else weight.dtype


def _autocasts(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def shifted(x: Tensor, taps: int) -> list[Tensor]:
    """Views of (B, T, C), moved by -(taps // 2) to taps // 2 in time; zeros come in from outside."""
    padded = F.pad(x, (0, 0, taps // 2, taps // 2))
    return [padded[:, k : k + x.shape[1]] for k in range(taps)]


class ChannelNorm(nn.Module):
    """Normalises (B, T, C) over the channels, each time on its own; divides by std + eps, as the release does."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, channels, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        # several times faster than torch.var_mean over the last axis on a CPU
        variance = centred.square().mean(-1, keepdim=True)
        # the lower bound keeps the root's gradient finite where all channels are equal
        scale = (variance.clamp_min(1e-12).sqrt() + self.eps).reciprocal()
        return torch.addcmul(self.b.flatten(), centred * scale, self.g.flatten())


class Glance(nn.Module):
    """Self-attention over all T: the view of the whole video."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(channels)
        self.to_qkv = TimeConv(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = TimeConv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        # never holds a T x T matrix where the device has a fused kernel: T is thousands for a long test video
        if valid is None:
            mixed = F.scaled_dot_product_attention(*qkv)
        else:
            mixed = _attention_without_padding(qkv, valid[..., 0].sum(1))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


def _attention_without_padding(qkv: Tensor, lengths: Tensor) -> Tensor:
    """Attention of each bag to its own times (3, B, heads, T, C) -> (B, heads, T, C), zeros behind the end.

    Bags of one length go together and none has a mask, so that the result is that of the bag alone to the last bit: in
    bf16 the smallest difference could be rounded up to one of 1e-3.
    """
    mixed = torch.zeros_like(qkv[0])
    sizes, counts = (part.tolist() for part in lengths.unique_consecutive(return_counts=True))
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        own = slice(start, start + count)
        mixed[own, :, :size] = F.scaled_dot_product_attention(*qkv[:, own, :, :size])
        start += count
    return mixed


class Focus(nn.Module):
    """Local aggregation: each head mixes 5 neighbouring times with weights of its own, shared by its channels."""

    def __init__(self, channels: int, heads: int, head_dim: int, kernel: int = 5):
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm1d(channels)
        self.to_v = TimeConv(channels, heads * head_dim, 1, bias=False)
        self.rel_pos = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads)
        self.to_out = TimeConv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        values = _zero_outside(self.to_v(self.norm(x.flatten(0, 1)).view(x.shape)), valid).to(x.dtype)
        # the head is the fastest index of the channels in the published weights; a weight for every channel instead of
        # one for every head keeps the products long
        n_repeats = values.shape[-1] // self.heads
        taps = self.rel_pos.weight[:, 0].t().repeat(1, n_repeats)
        mixed = self.rel_pos.bias.repeat(n_repeats)
        for neighbours, weights in zip(shifted(values, len(taps)), taps, strict=True):
            mixed = torch.addcmul(mixed, neighbours, weights)
        return self.to_out(mixed)


def _zero_outside(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeros where a padded bag has ended, as a convolution finds them behind a video's last clip."""
    return x if valid is None else x * valid


def _feed_forward(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        ChannelNorm(channels),
        TimeConv(channels, 4 * channels, 1),
        nn.GELU(),
        nn.Dropout(dropout),
        TimeConv(4 * channels, channels, 1),
    )


class Backbone(nn.Module):
    """`depth` times: short-cut convolution, glance or focus, feed-forward, each with a residual."""

    def __init__(self, channels: int, depth: int, kind: type[nn.Module], dropout: float):
        super().__init__()
        head_dim = min(64, channels)
        heads = channels // head_dim
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    TimeConv(channels, channels, 3, padding=1),
                    kind(channels, heads, head_dim),
                    _feed_forward(channels, dropout),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        for shortcut, attention, feed_forward in self.layers:
            x = shortcut(_zero_outside(x, valid)) + x
            x = attention(x, valid) + x
            x = feed_forward(x) + x
        return x


class MGFN(nn.Module):
    """Bags (B, n_crops, T, feature_dim + 1) -> scores and features; any T >= 1.

    The last channel of a bag is the L2 magnitude of its features. The first part glances, the others focus.
    28.65 M parameters with the defaults (paper section 4, release); smaller `dims` and `depths` give the miniature's.

    Args:
        feature_dim: F, width of the features, without the magnitude.
        dims: channels of the parts; above 64, multiples of 64.
        depths: blocks of the parts.
        magnitude_ratio: weight of the magnitude's tokens; 0.1.
        dropout: share of the normalised features that is dropped before the score in training (ours; 0 in the
            release, whose 0.7 drops *candidates*: see `mgfn_losses.select_top_segments`).
        feed_forward_dropout: inside the feed-forward parts; 0 in the release.
    """

    def __init__(
        self,
        feature_dim: int = 2048,
        dims: tuple[int, ...] = (64, 128, 1024),
        depths: tuple[int, ...] = (3, 3, 2),
        magnitude_ratio: float = 0.1,
        dropout: float = 0.0,
        feed_forward_dropout: float = 0.0,
    ):
        super().__init__()
        if len(dims) != len(depths):
            raise ValueError(f"dims {dims} and depths {depths} must have one entry for each part")
        self.feature_dim, self.magnitude_ratio = feature_dim, magnitude_ratio
        self.to_tokens = TimeConv(feature_dim, dims[0], 3, padding=1)
        self.to_mag = TimeConv(1, dims[0], 3, padding=1)
        self.stages = nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            parts = [Backbone(channels, depth, Glance if i == 0 else Focus, feed_forward_dropout)]
            if i + 1 < len(dims):
                parts.append(nn.Sequential(ChannelNorm(channels), TimeConv(channels, dims[i + 1], 1)))
            self.stages.append(nn.ModuleList(parts))
        self.to_logits = nn.Sequential(nn.LayerNorm(dims[-1]))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dims[-1], 1)

    def forward(self, bags: Tensor, lengths: Tensor | None = None) -> MGFNOutput:
        """Scores bags; the residual sums and the head stay in float32 under autocast.

        Args:
            bags: (B, n_crops, T, feature_dim + 1).
            lengths: (B,) valid times of each bag, the rest being padding that changes no score before it; None: all
                are. For inference only: batch statistics would count the padding.

        Raises:
            ValueError: the bags are not (B, n_crops, T >= 1, feature_dim + 1).
        """
        if bags.dim() != 4 or bags.shape[-1] != self.feature_dim + 1 or bags.shape[2] < 1:
            raise ValueError(f"bags must be (B, n_crops, T, {self.feature_dim + 1}), got {tuple(bags.shape)}")
        valid = None
        if lengths is not None:
            inside = torch.arange(bags.shape[2], device=bags.device) < lengths[:, None]
            valid = inside.repeat_interleave(bags.shape[1], dim=0)[..., None]
        x = _zero_outside(bags.flatten(0, 1), valid)
        features, magnitude = x[..., : self.feature_dim], x[..., self.feature_dim :]
        dtype = self.fc.weight.dtype
        x = (self.to_tokens(features) + self.magnitude_ratio * self.to_mag(magnitude)).to(dtype)
        for backbone, *transition in self.stages:
            x = backbone(x, valid)
            for part in transition:
                x = part(x).to(dtype)
        # the meta device, on which costs are counted, knows no autocast
        with torch.autocast(bags.device.type, enabled=False) if _autocasts(bags) else nullcontext():
            features = self.to_logits(x)
            scores = self.fc(self.dropout(features)).squeeze(-1).sigmoid()
        return MGFNOutput(scores.unflatten(0, bags.shape[:2]).mean(1), features.unflatten(0, bags.shape[:2]))
