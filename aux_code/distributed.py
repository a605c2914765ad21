"""Several processes under torchrun: who this one is, and what the processes tell each other.

    torchrun --standalone --nproc_per_node 4 SCRIPT.py ...                       one machine, four GPUs
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:PORT SCRIPT.py   on each of several

Without torchrun there is one process, rank 0 of 1, and everything here is an identity that starts
nothing. Only rank 0 writes files; several machines need a shared file system, from which all ranks
read.
"""

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=6)
"""How long a rank waits for the others: for as long as one may validate, or extract a share of
videos, alone. A rank that dies is noticed at once all the same: its connections break, and torchrun
ends the others."""


def rank() -> int:
    """This process among all, from 0; torchrun's RANK."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are; torchrun's WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine, which is the number of its GPU; torchrun's
    LOCAL_RANK."""
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
    """Meets the other processes (env://); the functions below do it when first used. Does nothing
    without torchrun.

    Tensors of the CPU travel by gloo, those of GPUs by NCCL.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    # DistributedDataParallel imports it; where a group exists by then, that import holds the group
    # for good (torch 2.14) and `leave` cannot end its threads.
    import torch._dynamo  # noqa: F401

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    store, own_rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # torchrun's store outlives a restart of its workers: nobody shall meet the addresses of
        # those that are gone
        store = dist.PrefixStore(
            f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
        )
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=TIMEOUT)


def leave() -> None:
    """Parts from the others, so that no process waits for this one at exit.

    Gloo's threads end with the group if nobody holds it. One that releases a tensor while the
    interpreter exits aborts the process, so what DistributedDataParallel left in reference cycles
    goes first.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def tells_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether an error comes from the connection to another rank, and not from this one's work."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    words = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


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
    """Sum over ranks. Each rank has a loss of its own, so the gradient is the sum of all ranks'
    gradients."""

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

    Where the losses L_r of the ranks are averaged, as `data_parallel` does, the gradients of
    parameters are those of (1 / R) * sum of L_r, through other ranks too.
    """
    return _AllReduce.apply(values) if world_size() > 1 else values


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of each of R ranks -> (R * N, ...), ordered by rank, with gradient; see
    `all_reduce`.

    N must be the same on all ranks.
    """
    if world_size() == 1:
        return rows
    join()
    return _AllGather.apply(rows.contiguous())


class _WholeLoss(nn.Module):
    """A network as DistributedDataParallel takes it: one forward call per backward pass, whatever
    it computes.

    It has the network's parameters alone, since batch norms see all ranks by themselves and no
    buffers are to be sent.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.learning = nn.ParameterList(p for p in network.parameters() if p.requires_grad)
        # Spares the advice not to look for unused parameters, which is wrong here: see
        # `data_parallel`.
        self.unused = nn.Parameter(torch.zeros_like(self.learning[0].flatten()[:1]))

    def forward(self, compute: Callable, *arguments):
        return compute(*arguments)


def data_parallel(network: nn.Module) -> Callable:
    """DistributedDataParallel for losses in which a network takes part in any way.

    DistributedDataParallel averages the gradients of the parameters that require one now, and
    expects one forward call of one module before each backward pass. Here this call computes a
    whole loss: it may enter the network several times, by several methods, in chunks that the
    backward pass computes again, and other networks beside it.

    Returns:
        call(compute, *arguments) -> compute(*arguments). After the backward pass of a loss so
        computed the parameters' gradients are their means over the ranks; a parameter that the loss
        does not depend on keeps none. One process calls `compute` and nothing else.
    """
    if world_size() == 1:
        return lambda compute, *arguments: compute(*arguments)
    join()
    # f_T's head is unused without a temporal loss. Besides, looking for unused parameters keeps the
    # buckets as they are from the first step on: a resumed job adds gradients in the order in which
    # it would have added them.
    return DistributedDataParallel(_WholeLoss(network), find_unused_parameters=True)


def share(items: list) -> list:
    """This rank's contiguous part of a list whose length is a multiple of the number of ranks.

    Raises:
        ValueError: the length is none.
    """
    if len(items) % world_size():
        raise ValueError(f"{len(items)} items cannot be shared equally by {world_size()} ranks")
    size = len(items) // world_size()
    return items[rank() * size : (rank() + 1) * size]
