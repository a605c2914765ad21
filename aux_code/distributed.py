"""Several processes under torchrun: who this one is, and what the processes tell each other.

    torchrun --standalone --nproc_per_node 4 SCRIPT.py ...                       one machine, four GPUs
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_endpoint HOST:PORT SCRIPT.py   several machines, one command on each

Without torchrun there is one process, rank 0 of 1, and everything here is an identity that starts nothing. Only rank 0
writes files; several machines need a shared file system, from which all ranks read.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(hours=6)
"""How long a rank waits for the others: for as long as one may validate, or extract a share of videos, alone. A rank
that dies is noticed at once all the same: its connections break, and torchrun ends the others."""


def rank() -> int:
    """This process among all, from 0; torchrun's RANK."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are; torchrun's WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine, which is the number of its GPU; torchrun's LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The GPU of this rank in place of "cuda"; other devices as they are."""
    if device.type == "cuda" and world_size() > 1:
        return torch.device("cuda", local_rank())
    return device


def join() -> None:
    """Meets the other processes (env://); the functions below do it when first used. Does nothing without torchrun.

    Tensors of the CPU travel by gloo, those of GPUs by NCCL.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def leave() -> None:
    """Parts from the others, so that no process waits for this one at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Returns when all ranks are here."""
    sum_over_ranks(torch.zeros(1))


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum of all ranks' tensors of one shape, equal on all ranks; no gradient."""
    if world_size() == 1:
        return values
    join()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """The element-wise mean of all ranks' tensors; no gradient."""
    return sum_over_ranks(values) / world_size() if world_size() > 1 else values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank: all ranks get the same answer."""
    return sum_over_ranks(torch.tensor(float(flag))).item() > 0


def gather_objects(item: Any) -> list[Any]:
    """Every rank's plain object, by rank; on all ranks."""
    if world_size() == 1:
        return [item]
    join()
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


class _AllReduce(torch.autograd.Function):
    """Sum over ranks. Each rank has a loss of its own, so the gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.contiguous())


class _AllGather(torch.autograd.Function):
    """Rows of all ranks; a row's gradient is the sum of what every rank's loss says of it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.contiguous()).chunk(world_size())[rank()]


def all_reduce(values: Tensor) -> Tensor:
    """`sum_over_ranks` with gradient.

    Where the losses L_r of the ranks are averaged, as `average_gradients` does, the gradients of parameters are those
    of (1 / R) * sum of L_r, through other ranks too.
    """
    return _AllReduce.apply(values) if world_size() > 1 else values


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of each of R ranks -> (R * N, ...), ordered by rank, with gradient; see `all_reduce`.

    N must be the same on all ranks.
    """
    if world_size() == 1:
        return rows
    join()
    return _AllGather.apply(rows.contiguous())


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the ranks, in one message.

    Parameters without gradient must be the same on all ranks.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not gradients:
        return
    join()
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share(items: list) -> list:
    """This rank's contiguous part of a list whose length is a multiple of the number of ranks.

    Raises:
        ValueError: the length is none.
    """
    if len(items) % world_size():
        raise ValueError(f"{len(items)} items cannot be shared equally by {world_size()} ranks")
    size = len(items) // world_size()
    return items[rank() * size : (rank() + 1) * size]
