"""A state restores everything, refuses other parameters, and goes when the training is complete."""

from pathlib import Path

import pytest
import torch
from torch import nn

from aux_code import training_state
from aux_code.checkpoints import build_meta, save_checkpoint
from aux_code.errors import UserError
from aux_code.training_state import TrainingState, detached_copy

PARAMS = {
    "seed": 0,
    "epochs": 3,
    "init_fa": "a.pth",
    "resume": False,
    "n_workers": 2,
    "minutes_between_saves": 5.0,
}


def training(
    path: Path, weights_seed: int = 0, **changed
) -> tuple[TrainingState, nn.Module, torch.optim.Optimizer]:
    """A small network with its optimizer and their state file."""
    torch.manual_seed(weights_seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    return (
        TrainingState(path, PARAMS | changed, {"net": net, "optimizer": optimizer}),
        net,
        optimizer,
    )


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One update on data that depend on the step."""
    optimizer.zero_grad()
    net(
        torch.rand(8, 3, generator=torch.Generator().manual_seed(number))
    ).square().mean().backward()
    optimizer.step()


def test_what_is_restored_continues_exactly(tmp_path: Path):
    state, net, optimizer = training(tmp_path / "state.pth")
    for number in range(3):
        step(net, optimizer, number)
    position = {"step": 3, "best": None, "epoch_sums": {"loss": (1.5, 3)}}
    state.save(position)
    for number in range(3, 6):
        step(net, optimizer, number)
    resumed, other, other_optimizer = training(tmp_path / "state.pth", weights_seed=1, resume=True)
    assert resumed.restore(True) == position
    for number in range(3, 6):
        step(other, other_optimizer, number)
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_without_resume_or_without_a_file_the_start_is_fresh(tmp_path: Path):
    state, net, _ = training(tmp_path / "state.pth")
    assert state.restore(True) is None
    state.save({"step": 1})
    before = detached_copy(net)
    nn.init.zeros_(net[0].weight)
    assert state.restore(False) is None and net[0].weight.abs().sum() == 0
    assert state.restore(True) == {"step": 1}
    assert torch.equal(net[0].weight, before["0.weight"])


@pytest.mark.parametrize(
    "changed", [{"epochs": 4}, {"init_fa": "b.pth"}, {"seed": 1}, {"new_parameter": 1}]
)
def test_other_parameters_are_refused_by_name_and_nothing_is_loaded(tmp_path: Path, changed: dict):
    training(tmp_path / "state.pth")[0].save({"step": 1})
    state, net, _ = training(tmp_path / "state.pth", weights_seed=5, **changed)
    before = detached_copy(net)
    with pytest.raises(UserError, match=f"other values of {next(iter(changed))}"):
        state.restore(True)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_does_not_change_the_result_may_change(tmp_path: Path):
    training(tmp_path / "state.pth")[0].save({"step": 1})
    state = training(tmp_path / "state.pth", resume=True, n_workers=0, minutes_between_saves=0.5)[0]
    assert state.restore(True) == {"step": 1}


def test_saves_are_as_far_apart_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(training_state.time, "monotonic", lambda: now[0])
    state = training(tmp_path / "state.pth")[0]
    for minutes, saved in ((4.9, False), (0.2, True), (4.9, False), (5.0, True)):
        (tmp_path / "state.pth").unlink(missing_ok=True)
        now[0] += 60 * minutes
        state.save_if_due({"step": 0})
        assert state.path.exists() == saved, minutes


def test_complete_means_a_result_and_no_state(tmp_path: Path):
    output = tmp_path / "last.pth"
    state = training(tmp_path / "state.pth")[0]
    assert not state.is_complete(output, resume=True)
    save_checkpoint(output, {"meta": {"parameters": PARAMS | {"epochs": 3, "resume": True}}})
    assert state.is_complete(output, resume=True) and not state.is_complete(output, resume=False)
    state.save({"step": 1})
    assert not state.is_complete(output, resume=True)
    state.finish()
    assert state.is_complete(output, resume=True) and not state.path.exists()
    state.finish()


@pytest.mark.parametrize("changed", [{"epochs": 4}, {"init_fa": "b.pth"}, {"sizes": (1, 3)}])
def test_a_complete_run_of_other_parameters_is_refused_by_name(tmp_path: Path, changed: dict):
    output = tmp_path / "last.pth"
    save_checkpoint(output, {"meta": build_meta("stage", {}, PARAMS | {"sizes": (1, 2)}, {}, {})})
    same = {"sizes": (1, 2), "resume": True, "n_workers": 0, "new_parameter": 1}
    assert training(tmp_path / "state.pth", **same)[0].is_complete(output, resume=True)
    state = training(tmp_path / "state.pth", **same | changed)[0]
    with pytest.raises(
        UserError, match=f"last.pth was saved with other values of {next(iter(changed))};"
    ):
        state.is_complete(output, resume=True)
    assert not state.is_complete(output, resume=False)


def test_a_detached_copy_shares_no_memory():
    net = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    copy = detached_copy(net)
    before = copy["weight"].clone()
    nn.init.zeros_(net.weight)
    assert (
        torch.equal(copy["weight"], before)
        and copy["weight"].is_contiguous()
        and not copy["weight"].requires_grad
    )
