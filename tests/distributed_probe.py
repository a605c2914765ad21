"""Run by test_distributed.py under torchrun: what aux_code.distributed gives on each rank."""

import json
import sys
from pathlib import Path

import torch

from aux_code import distributed
from aux_code.losses.nt_xent import nt_xent_loss


def main() -> None:
    rank = distributed.rank()
    rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_(True)
    gathered = distributed.gather_rows(rows)
    # rank 0's loss weighs rank r's rows by r + 1, rank 1's by ten times that
    weights = torch.repeat_interleave(torch.arange(1.0, distributed.world_size() + 1), 3)[:, None]
    (gathered * weights * 10**rank).sum().backward()
    total = torch.tensor([1.0 + rank], requires_grad=True)
    (distributed.all_reduce(total) * (rank + 1)).sum().backward()
    seen = {
        "rank": rank, "gathered": gathered.tolist(), "rows_gradient": rows.grad.tolist(),
        "total_gradient": total.grad.tolist(), "averaged": averaged_gradients(rank),
        "sum": distributed.sum_over_ranks(torch.tensor([rank + 1.0])).tolist(),
        "any": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
        "share": distributed.share(list(range(6))), "nt_xent": gathered_nt_xent(rank),
    }  # fmt: skip
    everyone = distributed.gather_objects(seen)
    distributed.barrier()
    distributed.leave()
    if distributed.is_main():
        threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
        left = [name for name in threads if "gloo" in name]
        sys.stdout.write(json.dumps({"ranks": everyone, "threads_left": left}) + "\n")


def averaged_gradients(rank: int) -> list:
    """Gradients that the optimizer gets; only rank 1's loss depends on `on_rank_1`."""
    sizes = {"twice": (2, 3), "on_rank_1": (4,), "unused": (4,), "frozen": (1,)}
    network = torch.nn.ParameterDict({name: torch.zeros(size) for name, size in sizes.items()})
    network["frozen"].requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        loss = rank * (network["twice"].sum() + network["twice"].T.sum())
        (loss + network["on_rank_1"].sum() if rank else loss).backward()
        distributed.average_gradients(network.parameters())
        optimizer.step()
    gradients = {name: parameter.grad for name, parameter in network.items()}
    unused = [gradients["unused"], gradients["frozen"]]
    return [gradients["twice"].tolist(), gradients["on_rank_1"].tolist(), unused]


def gathered_nt_xent(rank: int) -> list:
    """[loss, gradient of this rank's first views averaged over ranks' losses] of all rows."""
    first, second = all_views()
    own = [view.chunk(2)[rank].clone().requires_grad_(True) for view in (first, second)]
    loss = nt_xent_loss(*map(distributed.gather_rows, own), 0.1)
    (loss / distributed.world_size()).backward()
    return [loss.item(), own[0].grad.tolist()]


def all_views() -> torch.Tensor:
    """(2, 6, 4) unit vectors: two views of six images."""
    views = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(views, dim=2)


if __name__ == "__main__":
    main()
