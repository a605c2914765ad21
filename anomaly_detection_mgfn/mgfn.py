"""MGFN, the magnitude-contrastive glance-and-focus network (AAAI 2023): bags -> anomaly scores."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MGFNOutput(NamedTuple):
    """What MGFN says of B bags of T clips or segments."""

    scores: Tensor
    """(B, T) anomaly scores in [0, 1], averaged over the crops."""
    features: Tensor
    """(B, n_crops, T, dims[-1]) normalised; their magnitude selects the segments in training."""


class TimeConv(nn.Conv1d):
    """Convolution over time, (B, T, C_in) -> (B, T, C_out), named and stored as an nn.Conv1d.

    One matrix product of all taps: a CPU takes its gradients faster than a convolution's.
    """

    def forward(self, x: Tensor) -> Tensor:
        taps, n_times = self.kernel_size[0], x.shape[1]
        if taps > 1:
            if autocasts(x):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            padded = F.pad(x, (0, 0, taps // 2, taps // 2))
            x = torch.cat([padded[:, k : k + n_times] for k in range(taps)], -1)  # (B, T, taps * C)
        return F.linear(x, self.weight.transpose(1, 2).flatten(1), self.bias)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; the meta device, which counts costs, has none."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


class ChannelNorm(nn.Module):
    """Normalises (B, T, C) over the channels; divides by std + eps, as the release does."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, channels, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # several times faster than torch.var_mean over the last axis on a CPU; the lower bound
        # keeps the root's gradient finite where all channels are equal
        centred = x - x.mean(-1, keepdim=True)
        std = centred.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()
        return centred / (std + self.eps) * self.g.flatten() + self.b.flatten()


class Glance(nn.Module):
    """Self-attention over all T: the view of the whole video."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(channels)
        self.to_qkv = TimeConv(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = TimeConv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()  # each (B, heads, T, head_dim)
        seen = None if valid is None else valid[:, None, None, :, 0]
        # never a T x T matrix of a test video's thousands of times where a fused kernel exists
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.to_out(mixed.transpose(1, 2).flatten(2))  # (B, T, heads * head_dim)


class Focus(nn.Module):
    """Local aggregation: a head mixes 5 neighbouring times, its channels with the same weights."""

    def __init__(self, channels: int, heads: int, head_dim: int, kernel: int = 5):
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm1d(channels)
        self.to_v = TimeConv(channels, heads * head_dim, 1, bias=False)
        self.rel_pos = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads)
        self.to_out = TimeConv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        normalised = self.norm(x.flatten(0, 1)).view(x.shape)  # statistics over the B * T rows
        values = _zero_outside(self.to_v(normalised), valid)
        # the head is the fastest index of the channels in the published weights
        n_repeats = values.shape[-1] // self.heads
        taps = self.rel_pos.weight.repeat(n_repeats, 1, 1)  # (heads * head_dim, 1, kernel)
        bias = self.rel_pos.bias.repeat(n_repeats)
        padding = self.rel_pos.padding
        mixed = F.conv1d(values.transpose(1, 2), taps, bias, padding=padding, groups=len(taps))
        return self.to_out(mixed.transpose(1, 2))  # (B, T, heads * head_dim) -> (B, T, C)


def _zero_outside(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zeros where a padded bag has ended, as a convolution finds them behind the last clip."""
    return x if valid is None else x * valid


class Backbone(nn.Module):
    """`depth` times: short-cut convolution, glance or focus, feed-forward, each a residual."""

    def __init__(self, channels: int, depth: int, kind: type[nn.Module], dropout: float):
        super().__init__()
        head_dim = min(64, channels)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            shortcut = TimeConv(channels, channels, 3, padding=1)
            attention = kind(channels, channels // head_dim, head_dim)
            feed_forward = nn.Sequential(
                ChannelNorm(channels),
                TimeConv(channels, 4 * channels, 1),
                nn.GELU(),
                nn.Dropout(dropout),
                TimeConv(4 * channels, channels, 1),
            )
            self.layers.append(nn.ModuleList([shortcut, attention, feed_forward]))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        for shortcut, attention, feed_forward in self.layers:
            x = x + shortcut(_zero_outside(x, valid))
            x = x + attention(x, valid)
            x = x + feed_forward(x)
        return x  # (B, T, C)


class MGFN(nn.Module):
    """Bags (B, n_crops, T, feature_dim + 1) -> scores and features; any T >= 1.

    The last channel of a bag is the L2 magnitude of its features. The first part glances, the
    others focus. 28.65 M parameters with the defaults (paper section 4, release).

    Args:
        feature_dim: F, width of the features, without the magnitude.
        dims: channels of the parts; above 64, multiples of 64.
        depths: blocks of the parts.
        magnitude_ratio: weight of the magnitude's tokens; 0.1.
        dropout: share of the normalised features dropped before the score in training (ours; the
            release's 0.7 drops *candidates*: see `mgfn_losses.draw_candidates`).
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
                widen = TimeConv(channels, dims[i + 1], 1)
                parts.append(nn.Sequential(ChannelNorm(channels), widen))
            self.stages.append(nn.ModuleList(parts))
        self.to_logits = nn.Sequential(nn.LayerNorm(dims[-1]))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dims[-1], 1)

    def forward(self, bags: Tensor, lengths: Tensor | None = None) -> MGFNOutput:
        """Scores bags; the residual sums and the head stay in float32 under autocast.

        Args:
            bags: (B, n_crops, T, feature_dim + 1).
            lengths: (B,) times of each bag that count, the rest being padding, which changes no
                score before it; None: all. For inference: batch statistics would count padding.

        Raises:
            ValueError: the bags are not (B, n_crops, T >= 1, feature_dim + 1).
        """
        if bags.dim() != 4 or bags.shape[3] != self.feature_dim + 1 or bags.shape[2] < 1:
            expected = f"(B, n_crops, T, {self.feature_dim + 1})"
            raise ValueError(f"bags must be {expected}, got {tuple(bags.shape)}")
        valid = None
        if lengths is not None:
            inside = torch.arange(bags.shape[2], device=bags.device) < lengths[:, None]
            valid = inside.repeat_interleave(bags.shape[1], dim=0)[..., None]  # (B * crops, T, 1)
        dtype = self.fc.weight.dtype
        x = _zero_outside(bags.flatten(0, 1), valid)  # (B * crops, T, F + 1)
        magnitude = self.to_mag(x[..., self.feature_dim :])
        x = (self.to_tokens(x[..., : self.feature_dim]) + self.magnitude_ratio * magnitude).to(
            dtype
        )
        for backbone, *transition in self.stages:
            x = backbone(x, valid)
            for part in transition:
                x = part(x).to(dtype)
        with torch.autocast(bags.device.type, enabled=False) if autocasts(bags) else nullcontext():
            features = self.to_logits(x)
            scores = self.fc(self.dropout(features)).squeeze(-1).sigmoid()  # (B * crops, T)
        scores, features = (part.unflatten(0, bags.shape[:2]) for part in (scores, features))
        return MGFNOutput(scores.mean(1), features)
