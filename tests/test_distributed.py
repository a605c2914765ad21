"""The helpers without torchrun, where they are identities, and in two processes over gloo."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from aux_code import distributed
from aux_code.losses.nt_xent import nt_xent_loss
from tests.commands import ROOT, python


def test_one_process_is_rank_0_of_1_and_starts_nothing():
    rows = torch.rand(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_rows(rows) is rows and distributed.all_reduce(rows) is rows
    assert distributed.sum_over_ranks(rows) is rows and distributed.mean_over_ranks(rows) is rows
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.gather_objects("x") == ["x"] and distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.own_gpu() == torch.device("cuda")
    rows.square().sum().backward()
    distributed.average_gradients([rows])
    assert torch.equal(rows.grad, 2 * rows)
    distributed.barrier()
    distributed.leave()
    assert not torch.distributed.is_initialized()


def test_shares_must_be_equal(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert distributed.share([1, 2, 3, 4]) == [3, 4]
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert distributed.own_gpu() == torch.device("cuda", 1) and taken == [1], "libraries use it"
    with pytest.raises(ValueError, match="2 ranks"):
        distributed.share([1, 2, 3])


def test_two_processes_share_rows_sums_flags_gradients_and_losses():
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = python(*words, __file__, PYTHONPATH=ROOT)
    probe = json.loads(result.stdout.splitlines()[-1])
    assert probe["threads_left"] == [], "a thread of the group could abort the exit"
    own = torch.arange(6.0).view(3, 2)
    for rank, seen in enumerate(probe["ranks"]):
        assert seen["rank"] == rank
        assert seen["gathered"] == torch.cat([own, own + 10]).tolist()
        assert seen["rows_gradient"] == torch.full((3, 2), 11.0 * (rank + 1)).tolist()
        assert seen["total_gradient"] == [3.0]
        assert seen["averaged"] == [[[1.0] * 3] * 2, [0.5] * 4, [None, None]]
        assert seen["sum"] == [3.0] and seen["any"] == [True, False]
        assert seen["share"] == [[0, 1, 2], [3, 4, 5]][rank]
    first, second = all_views()
    first.requires_grad_(True)
    loss = nt_xent_loss(first, second, 0.1)  # that of one process
    loss.backward()
    for seen, gradient in zip(probe["ranks"], first.grad.chunk(2), strict=True):
        assert seen["nt_xent"][0] == pytest.approx(loss.item(), rel=1e-6)
        torch.testing.assert_close(torch.tensor(seen["nt_xent"][1]), gradient, rtol=1e-5, atol=1e-6)


def main() -> None:
    """In each of two processes: what aux_code.distributed gives there, on CPUs beside a GPU."""
    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        distributed.join()
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
