"""A state restores everything, refuses other parameters, and goes when the training is complete."""

from pathlib import Path

import pytest
import torch
from torch import nn

from aux_code import training_state
from aux_code.artefacts import Recipe, build_meta
from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.errors import UserError
from aux_code.parameters import CommonParams
from aux_code.training_state import TrainingState, detached_copy, is_finished

PARAMS = {"seed": 0, "epochs": 3}
Training = tuple[TrainingState, nn.Module, torch.optim.Optimizer]


def training(path: Path, weights_seed: int = 0, **changed) -> Training:
    """A small network with its optimizer and their state file."""
    torch.manual_seed(weights_seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    stateful = {"net": net, "optimizer": optimizer}
    return TrainingState(path, Recipe(PARAMS | changed), stateful), net, optimizer


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One update on data that depend on the step."""
    optimizer.zero_grad()
    data = torch.rand(8, 3, generator=torch.Generator().manual_seed(number))
    net(data).square().mean().backward()
    optimizer.step()


def test_what_is_restored_continues_exactly(tmp_path: Path):
    state, net, optimizer = training(tmp_path / "state.pth")
    for number in range(3):
        step(net, optimizer, number)
    position = {"step": 3, "best": None, "epoch_sums": {"loss": (1.5, 3)}}
    state.save(position)
    for number in range(3, 6):
        step(net, optimizer, number)
    resumed, other, other_optimizer = training(tmp_path / "state.pth", weights_seed=1)
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


@pytest.mark.parametrize("changed", [{"epochs": 4}, {"seed": 1}, {"new_parameter": 1}])
def test_other_parameters_are_refused_by_name_and_nothing_is_loaded(tmp_path: Path, changed: dict):
    training(tmp_path / "state.pth")[0].save({"step": 1})
    state, net, _ = training(tmp_path / "state.pth", weights_seed=5, **changed)
    before = detached_copy(net)
    with pytest.raises(UserError, match=f"state.pth was made of.*{next(iter(changed))}"):
        state.restore(True)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_state_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path):
    save_checkpoint(tmp_path / "state.pth", {"fingerprint": {}, "position": {}, "states": {}})
    with pytest.raises(UserError, match="earlier version.*start anew"):
        training(tmp_path / "state.pth")[0].restore(True)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, in seconds, to be moved on by the test."""
    now = [1000.0]
    monkeypatch.setattr(training_state.time, "monotonic", lambda: now[0])
    return now


def test_saves_are_as_far_apart_as_asked(tmp_path: Path, now: list[float]):
    state = training(tmp_path / "state.pth")[0]
    for minutes, saved in ((4.9, False), (0.2, True), (4.9, False), (5.0, True)):
        (tmp_path / "state.pth").unlink(missing_ok=True)
        now[0] += 60 * minutes
        state.save_if_due({"step": 0})
        assert state.path.exists() == saved, minutes


def ask(folder: Path, resume: bool = False, overwrite: bool = False, **changed) -> bool:
    """`is_finished` of folder/last.pth."""
    params = CommonParams(resume=resume, overwrite=overwrite)
    made_of = Recipe(PARAMS | changed)
    return is_finished(folder / "last.pth", folder / "state.pth", made_of, params)


def finished(folder: Path, seconds: float | None) -> Path:
    """A result of PARAMS that took so long."""
    meta = build_meta("stage", {}, PARAMS, Recipe(PARAMS), {}, seconds)
    save_checkpoint(folder / "last.pth", {"meta": meta})
    return folder / "last.pth"


def test_with_resume_complete_means_a_result_of_this_recipe_and_no_state(tmp_path: Path):
    assert not ask(tmp_path, resume=True)
    finished(tmp_path, 3)
    assert ask(tmp_path, resume=True) and not ask(tmp_path)
    state = training(tmp_path / "state.pth")[0]
    state.save({"step": 1})
    assert not ask(tmp_path, resume=True)
    state.finish()
    assert ask(tmp_path, resume=True) and not state.path.exists()
    state.finish()
    with pytest.raises(UserError, match=r"last.pth was made of .*epochs: 3, now 4.*--run_id"):
        ask(tmp_path, resume=True, epochs=4)


def test_a_fresh_start_sets_an_unfinished_state_aside(tmp_path: Path):
    training(tmp_path / "state.pth")[0].save({"step": 1})
    assert not ask(tmp_path)
    assert not (tmp_path / "state.pth").exists()
    assert load_checkpoint(tmp_path / "state.set_aside.pth")["position"] == {"step": 1}
    assert not ask(tmp_path, resume=True)


@pytest.mark.parametrize("seconds, kept", [(600, False), (601, True), (None, True)])
def test_what_took_over_ten_minutes_is_replaced_only_when_asked(tmp_path: Path, seconds, kept):
    output = finished(tmp_path, seconds)
    assert not ask(tmp_path, overwrite=True, epochs=4)
    if not kept:
        assert not ask(tmp_path, epochs=4)
        return
    with pytest.raises(UserError, match=f"{output}.*epochs: 3, now 4.*--overwrite"):
        ask(tmp_path, epochs=4)
    with pytest.raises(UserError, match="nothing differs: --resume keeps it"):
        ask(tmp_path)


def test_seconds_count_over_resumes(tmp_path: Path, now: list[float]):
    state = training(tmp_path / "state.pth")[0]
    now[0] += 50
    state.save({"step": 1})
    now[0] += 1000
    resumed = training(tmp_path / "state.pth")[0]
    resumed.restore(True)
    now[0] += 7
    assert resumed.seconds == 57


def test_a_detached_copy_shares_no_memory():
    net = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    copy = detached_copy(net)
    before = copy["weight"].clone()
    nn.init.zeros_(net.weight)
    weight = copy["weight"]
    assert torch.equal(weight, before) and weight.is_contiguous() and not weight.requires_grad
