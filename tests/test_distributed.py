"""The helpers without torchrun, where they are identities, and in two processes over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aux_code import distributed
from aux_code.losses.nt_xent import nt_xent_loss
from tests.distributed_probe import all_views

ROOT = Path(__file__).resolve().parents[1]


def test_one_process_is_rank_0_of_1_and_starts_nothing():
    rows = torch.rand(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_rows(rows) is rows and distributed.all_reduce(rows) is rows
    assert distributed.sum_over_ranks(rows) is rows and distributed.mean_over_ranks(rows) is rows
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.gather_objects("x") == ["x"] and distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.own_device(torch.device("cuda")) == torch.device("cuda")
    rows.square().sum().backward()
    distributed.average_gradients([rows])
    assert torch.equal(rows.grad, 2 * rows)
    distributed.barrier()
    distributed.leave()
    assert not torch.distributed.is_initialized()


def test_shares_must_be_equal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.share([1, 2, 3, 4]) == [3, 4]
    assert distributed.own_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="2 ranks"):
        distributed.share([1, 2, 3])


@pytest.fixture(scope="module")
def probe() -> dict:
    """What two processes saw."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words.append(str(ROOT / "tests" / "distributed_probe.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def observed(probe: dict) -> list[dict]:
    """What each rank saw."""
    return probe["ranks"]


def test_no_thread_of_the_group_is_left_to_abort_the_exit(probe):
    assert probe["threads_left"] == []


def test_rows_are_gathered_by_rank_and_every_ranks_loss_reaches_them(observed):
    own = torch.arange(6.0).view(3, 2)
    for rank, seen in enumerate(observed):
        assert seen["rank"] == rank
        assert seen["gathered"] == torch.cat([own, own + 10]).tolist()
        assert seen["rows_gradient"] == torch.full((3, 2), 11.0 * (rank + 1)).tolist()
        assert seen["total_gradient"] == [3.0]


def test_sums_flags_and_gradients_agree_on_all_ranks(observed):
    for rank, seen in enumerate(observed):
        assert seen["averaged"] == [[[1.0] * 3] * 2, [0.5] * 4, [None, None]]
        assert seen["sum"] == [3.0] and seen["any"] == [True, False]
        assert seen["share"] == [[0, 1, 2], [3, 4, 5]][rank]


def test_nt_xent_over_ranks_equals_that_of_one_process_in_loss_and_gradient(observed):
    first, second = all_views()
    first.requires_grad_(True)
    loss = nt_xent_loss(first, second, 0.1)
    loss.backward()
    for seen, gradient in zip(observed, first.grad.chunk(2), strict=True):
        assert seen["nt_xent"][0] == pytest.approx(loss.item(), rel=1e-6)
        torch.testing.assert_close(torch.tensor(seen["nt_xent"][1]), gradient, rtol=1e-5, atol=1e-6)
