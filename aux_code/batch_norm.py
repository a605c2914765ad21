"""Batch norms: statistics over the batches of all ranks, and passes that leave the running
statistics as they are."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aux_code.distributed import sum_over_ranks, world_size


@contextlib.contextmanager
def keep_running_statistics(*nets: nn.Module) -> Iterator[None]:
    """Passes inside normalise as the modes say, but leave all running statistics as they are."""
    norms = [module for net in nets for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    tracked = [norm.num_batches_tracked for norm in norms]
    counts = [None if count is None else count.clone() for count in tracked]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)


class Normalised(torch.autograd.Function):
    """input (N, C, ...), weight (C,), bias (C,), eps -> normalised over the batches of all ranks;
    mean, variance and number of values, each (C,) or () and without gradient.

    Only the input is kept for the backward pass, in its dtype, and no rank waits for its device.
    """

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        x, (dims, shape) = _full(input), _channelwise(input)
        n_here = x.new_full((1,), x.numel() // x.shape[1])
        *sums, n_values = sum_over_ranks(torch.cat([x.sum(dims), n_here])).split([x.shape[1], 1])
        mean = sums[0] / n_values
        centred = x - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(dims)) / n_values
        scale = (variance + eps).rsqrt()
        output = centred * scale.view(shape)
        if weight is not None:
            output = output * weight.view(shape) + bias.view(shape)
        ctx.save_for_backward(input, weight, mean, scale, n_values)
        ctx.mark_non_differentiable(mean, variance, n_values)
        return output.to(input.dtype), mean, variance, n_values

    @staticmethod
    def backward(ctx, gradient: Tensor, *_):
        input, weight, mean, scale, n_values = ctx.saved_tensors
        dims, shape = _channelwise(input)
        gradient = _full(gradient)
        x = (_full(input) - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = gradient.sum(dims), (gradient * x).sum(dims)
        means = sum_over_ranks(torch.stack([of_bias, of_weight])) / n_values  # (2, C)
        of_input = gradient - means[0].view(shape) - x * means[1].view(shape)
        if weight is None:
            return (of_input * scale.view(shape)).to(input.dtype), None, None, None
        of_input = of_input * (scale * weight).view(shape)
        return of_input.to(input.dtype), of_weight, of_bias, None


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _channelwise(x: Tensor) -> tuple[list[int], list[int]]:
    """All axes of (N, C, ...) but that of channels, and the shape of (C,) values beside it."""
    return [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, on any device. PyTorch's SyncBatchNorm is for GPUs
    alone, and waits for them in every layer.

    Ranks of any batch size: R ranks of N samples normalise as one process with R * N. In eval mode
    it is a plain batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"at least two dimensions (N, C, ...) are expected, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, n = Normalised.apply(input, self.weight, self.bias, self.eps)
        self._follow(mean, variance * n / (n - 1))
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics, as PyTorch keeps them; `variance` is the unbiased one."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_(variance.to(self.running_var), factor)


def synchronise_batch_norms(network: nn.Module) -> nn.Module:
    """Under torchrun, makes all batch norms of a network those of all ranks together, in place;
    else changes nothing.

    Names, values and modes stay.
    """
    if world_size() == 1:
        return network
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SynchronisedBatchNorm  # the same fields and hooks
    return network
