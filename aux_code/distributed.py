"""Several processes under torchrun: who this one is, and what the processes tell each other.

    torchrun --standalone --nproc_per_node 4 SCRIPT.py ...                 one machine, four GPUs
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:PORT SCRIPT.py

Without torchrun there is one process, rank 0 of 1, and everything here is an identity that starts
nothing. Only rank 0 writes files; several machines need a shared file system that all ranks read.
"""

import gc
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(hours=6)
"""How long a rank waits: as long as one may validate, or extract a share of videos, alone. One that
dies is noticed at once all the same: its connections break, and torchrun ends the others."""


def rank() -> int:
    """This process among all, from 0; torchrun's RANK."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are; torchrun's WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine, the number of its GPU; torchrun's LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def own_gpu() -> torch.device:
    """The GPU of this rank, which becomes the current one: libraries use that; "cuda" where there
    is one process."""
    if world_size() == 1:
        return torch.device("cuda")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def join() -> None:
    """Meets the other processes (env://), by gloo for tensors of CPUs, by NCCL for those of GPUs.

    The functions below do it when first used, after `own_gpu` where GPUs compute. Does nothing
    without torchrun.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    # Optimizers import it; where a group exists by then, that import holds the group for good
    # (torch 2.14) and `leave` cannot end its threads.
    import torch._dynamo  # noqa: F401

    # a GPU that nobody chose (--device cpu) is left alone: there may be fewer of them than ranks
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_initialized() else "gloo"
    store, own_rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # torchrun's store outlives its workers: nobody shall meet the addresses of those gone
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=TIMEOUT)


def leave() -> None:
    """Parts from the others, so that no process waits for this one at exit.

    Gloo's threads end with the group if nobody holds it, such as reference cycles. One that frees a
    tensor while the interpreter exits aborts the process.
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
    """The gradient is the sum of all ranks' gradients, since each rank has a loss of its own."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.contiguous())


def all_reduce(values: Tensor) -> Tensor:
    """`sum_over_ranks` with gradient.

    Where the losses L_r of the ranks are averaged, as `average_gradients` does, the gradients of
    parameters are those of (1 / R) * sum of L_r, through other ranks too.
    """
    return _AllReduce.apply(values) if world_size() > 1 else values


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of each of R ranks, N equal -> (R*N, ...) by rank, with gradient as `all_reduce`."""
    if world_size() == 1:
        return rows
    n_before, n_after = rank() * len(rows), (world_size() - 1 - rank()) * len(rows)
    shape = rows.shape[1:]
    padded = [rows.new_zeros(n_before, *shape), rows, rows.new_zeros(n_after, *shape)]
    return all_reduce(torch.cat(padded))  # (R * N, ...), zeros where other ranks have their rows


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """After a backward pass: gradients become their means over the ranks, by one all_reduce.

    A rank whose loss does not depend on a parameter counts as 0; one that no rank's loss depends on
    keeps no gradient.
    """
    learning = [p for p in parameters if p.requires_grad]
    if world_size() == 1 or not learning:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
    is_there = learning[0].new_tensor([p.grad is not None for p in learning])
    flat = sum_over_ranks(torch.cat([is_there, *(g.flatten() for g in gradients)]))
    n_there, *means = (flat / world_size()).split([len(learning), *(g.numel() for g in gradients)])
    for p, gradient, mean, n in zip(learning, gradients, means, n_there.tolist(), strict=True):
        p.grad = gradient.copy_(mean.view_as(gradient)) if n else None


def share(items: list) -> list:
    """This rank's contiguous part of a list.

    Raises:
        ValueError: the length is no multiple of the number of ranks.
    """
    if len(items) % world_size():
        raise ValueError(f"{len(items)} items cannot be shared equally by {world_size()} ranks")
    size = len(items) // world_size()
    return items[rank() * size : (rank() + 1) * size]
