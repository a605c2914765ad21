"""Batch norms: statistics over the batches of all ranks, and passes that leave the running
statistics as they are."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aux_code.distributed import all_reduce, world_size


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


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, on any device; PyTorch's SyncBatchNorm is for GPUs
    alone.

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
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        n_here = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device, dtype=x.dtype)
        sums = all_reduce(torch.cat([x.sum(dims), n_here]))
        n_values, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(dims)) / n_values
        self._follow(mean.detach(), variance.detach() * n_values / (n_values - 1))
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

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

    Names, values and modes stay. On GPUs they become PyTorch's SyncBatchNorm.
    """
    if world_size() == 1:
        return network
    parameter = next(network.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SynchronisedBatchNorm  # the same fields and hooks
    return network
