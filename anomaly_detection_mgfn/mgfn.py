"""MGFN, the magnitude-contrastive glance-and-focus network (AAAI 2023): feature bags -> anomaly
scores."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_detection_mgfn.time_convolution import (
    TimeConv,
    autocasts,
    channel_convolution,
    is_fused,
    product_dtype,
    rows_filled_up,
)


class MGFNOutput(NamedTuple):
    """What MGFN says of B bags of T clips or segments."""

    scores: Tensor
    """(B, T) anomaly scores in [0, 1], averaged over the crops."""
    features: Tensor
    """(B, n_crops, T, dims[-1]) normalised features whose magnitude selects the segments in
    training."""


class ChannelNorm(nn.Module):
    """Normalises (B, T, C) over the channels, each time on its own; divides by std + eps, as the
    release does."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, channels, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        if is_fused(x):
            return FusedChannelNorm.apply(x, self.g.flatten(), self.b.flatten(), self.eps)
        normalised, _, _ = _normalised(x, self.eps)
        return torch.addcmul(self.b.flatten(), normalised, self.g.flatten())


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x without its mean over the channels, times the scale 1 / (std + eps); the scale and the std,
    (B, T, 1) each."""
    centred = x - x.mean(-1, keepdim=True)
    # several times faster than torch.var_mean over the last axis on a CPU; the lower bound keeps
    # the root's gradient finite where all channels are equal
    std = centred.square().mean(-1, keepdim=True).clamp_min(SMALLEST_STD**2).sqrt()
    scale = (std + eps).reciprocal()
    return centred * scale, scale, std


SMALLEST_STD = 1e-6


class FusedChannelNorm(torch.autograd.Function):
    """`ChannelNorm` of (B, T, C) with (C,), (C,), eps, whose gradient takes two thirds of the
    time."""

    @staticmethod
    def forward(ctx, x: Tensor, g: Tensor, b: Tensor, eps: float) -> Tensor:
        normalised, scale, std = _normalised(x, eps)
        ctx.save_for_backward(normalised, scale, std, g)
        return torch.addcmul(b, normalised, g)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normalised, scale, std, g = ctx.saved_tensors
        d_g, d_b = (gradient * normalised).sum((0, 1)), gradient.sum((0, 1))
        d_normalised = gradient * g
        through_std = (
            (d_normalised * normalised).mean(-1, keepdim=True)
            / (scale * std)
            * (std > SMALLEST_STD)
        )
        d_x = torch.addcmul(d_normalised, normalised, through_std, value=-1).mul_(scale)
        return d_x.sub_(d_x.mean(-1, keepdim=True)), d_g, d_b, None


class Glance(nn.Module):
    """Self-attention over all T: the view of the whole video."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(channels)
        self.to_qkv = TimeConv(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = TimeConv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        qkv = (
            self.to_qkv(self.norm(x))
            .unflatten(-1, (3, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
            .contiguous()
        )
        mixed = (
            _attention(*qkv)
            if valid is None
            else _attention_without_padding(qkv, valid[..., 0].sum(1))
        )
        return self.to_out(_at(rows, mixed.transpose(1, 2).flatten(2)))


SHORT_BAG = 128
"""Times up to which the gradient of the fused attention takes a CPU twice as long in bf16 as that
of products."""


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B, heads, T, C) each; never a T x T matrix of the thousands of times that a
    test video has, where the device has a fused kernel."""
    if (
        q.requires_grad
        and q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and q.shape[2] <= SHORT_BAG
    ):
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _attention_without_padding(qkv: Tensor, lengths: Tensor) -> Tensor:
    """Attention of each bag to its own times (3, B, heads, T, C) -> (B, heads, T, C), zeros behind
    the end.

    Bags of one length go together and none has a mask, so that the result is that of the bag alone
    to the last bit: in bf16 the smallest difference could be rounded up to one of 1e-3.
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
    """Local aggregation: each head mixes 5 neighbouring times with weights of its own, shared by
    its channels."""

    def __init__(self, channels: int, heads: int, head_dim: int, kernel: int = 5):
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm1d(channels)
        self.to_v = TimeConv(channels, heads * head_dim, 1, bias=False)
        self.rel_pos = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads)
        self.to_out = TimeConv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        values = _zero_outside(self.to_v(self.norm(x.flatten(0, 1)).view(x.shape)), valid)
        # the head is the fastest index of the channels in the published weights; a weight for every
        # channel instead of one for every head keeps the products long
        n_repeats = values.shape[-1] // self.heads
        taps, bias = (
            self.rel_pos.weight[:, 0].t().repeat(1, n_repeats),
            self.rel_pos.bias.repeat(n_repeats),
        )
        return self.to_out(_at(rows, channel_convolution(values, taps, bias)))


def _zero_outside(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeros where a padded bag has ended, as a convolution finds them behind a video's last
    clip."""
    return x if valid is None else x * valid


def _at(rows: Tensor | None, x: Tensor) -> Tensor:
    """R of the B * T times of (B, T, C) as (1, R, C); all of them where rows is None."""
    return x if rows is None else x.flatten(0, 1).index_select(0, rows)[None]


def _scattered(values: Tensor, rows: Tensor, n_bags: int, n_times: int) -> Tensor:
    """Values (R, ...) at their rows of (n_bags, n_times, ...), zeros elsewhere."""
    whole = values.new_zeros(n_bags * n_times, *values.shape[1:])
    return whole.index_copy(0, rows, values).unflatten(0, (n_bags, n_times))


def _sum(x: Tensor, branch: Tensor) -> Tensor:
    """x and a branch of it, in the number format of x; the branch is converted once and no second
    time for the sum."""
    return branch + x if branch.dtype == x.dtype else branch.to(x.dtype).add_(x)


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

    def forward(self, x: Tensor, valid: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C), or, with indices of R of the B * T times, (1, R, C): those
        alone."""
        for i, (shortcut, attention, feed_forward) in enumerate(self.layers):
            x = _sum(x, shortcut(_zero_outside(x, valid)))
            kept = rows if i + 1 == len(self.layers) else None
            x = _sum(_at(kept, x), attention(x, valid, kept))
            x = _sum(x, feed_forward(x))
        return x


class MGFN(nn.Module):
    """Bags (B, n_crops, T, feature_dim + 1) -> scores and features; any T >= 1.

    The last channel of a bag is the L2 magnitude of its features. The first part glances, the
    others focus. 28.65 M parameters with the defaults (paper section 4, release); smaller `dims`
    and `depths` give the miniature's.

    Args:
        feature_dim: F, width of the features, without the magnitude.
        dims: channels of the parts; above 64, multiples of 64.
        depths: blocks of the parts.
        magnitude_ratio: weight of the magnitude's tokens; 0.1.
        dropout: share of the normalised features that is dropped before the score in training
            (ours; 0 in the release, whose 0.7 drops *candidates*: see
            `mgfn_losses.select_top_segments`).
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
        if len(dims) != len(depths) or depths[-1] < 1:
            raise ValueError(
                f"dims {dims} and depths {depths} must have one entry for each part, the last depth >= 1"
            )
        self.feature_dim, self.magnitude_ratio = feature_dim, magnitude_ratio
        self.to_tokens = TimeConv(feature_dim, dims[0], 3, padding=1)
        self.to_mag = TimeConv(1, dims[0], 3, padding=1)
        self.stages = nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            parts = [Backbone(channels, depth, Glance if i == 0 else Focus, feed_forward_dropout)]
            if i + 1 < len(dims):
                parts.append(
                    nn.Sequential(ChannelNorm(channels), TimeConv(channels, dims[i + 1], 1))
                )
            self.stages.append(nn.ModuleList(parts))
        self.to_logits = nn.Sequential(nn.LayerNorm(dims[-1]))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dims[-1], 1)

    def forward(
        self, bags: Tensor, lengths: Tensor | None = None, wanted: Tensor | None = None
    ) -> MGFNOutput:
        """Scores bags; the residual sums and the head stay in float32 under autocast.

        Args:
            bags: (B, n_crops, T, feature_dim + 1).
            lengths: (B,) valid times of each bag, the rest being padding that changes no score
                before it; None: all are. For inference only: batch statistics would count the
                padding.
            wanted: (B, T) bool, times whose scores and features are asked for; None: all are. The
                others may come out as zeros: the last layers, which look at no other time, leave
                most of them out.

        Raises:
            ValueError: the bags are not (B, n_crops, T >= 1, feature_dim + 1).
        """
        if bags.dim() != 4 or bags.shape[-1] != self.feature_dim + 1 or bags.shape[2] < 1:
            raise ValueError(
                f"bags must be (B, n_crops, T, {self.feature_dim + 1}), got {tuple(bags.shape)}"
            )
        valid = None
        if lengths is not None:
            inside = torch.arange(bags.shape[2], device=bags.device) < lengths[:, None]
            valid = inside.repeat_interleave(bags.shape[1], dim=0)[..., None]
        x = _zero_outside(bags.flatten(0, 1), valid)
        features, magnitude = x[..., : self.feature_dim], x[..., self.feature_dim :]
        dtype = self.fc.weight.dtype
        x = (self.to_tokens(features) + self.magnitude_ratio * self.to_mag(magnitude)).to(dtype)
        rows = None
        if wanted is not None:
            wanted = wanted.repeat_interleave(bags.shape[1], dim=0).flatten()
            rows = rows_filled_up(wanted, product_dtype(self.fc.weight))
        for i, (backbone, *transition) in enumerate(self.stages):
            x = backbone(x, valid, rows if i + 1 == len(self.stages) else None)
            for part in transition:
                x = part(x).to(dtype)
        # the meta device, on which costs are counted, knows no autocast
        with torch.autocast(bags.device.type, enabled=False) if autocasts(bags) else nullcontext():
            features = self.to_logits(x)
            scores = self.fc(self.dropout(features)).squeeze(-1).sigmoid()
        if rows is not None:
            n_bags, n_times = bags.shape[0] * bags.shape[1], bags.shape[2]
            scores, features = (
                _scattered(part[0], rows, n_bags, n_times) for part in (scores, features)
            )
        return MGFNOutput(
            scores.unflatten(0, bags.shape[:2]).mean(1), features.unflatten(0, bags.shape[:2])
        )
