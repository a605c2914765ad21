"""Artefacts and training states are known by parameters and inputs, and go on or are refused."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from aux_code import artefacts, training_state
from aux_code.artefacts import Recipe, build_meta, differences, is_current, record_of, sha256
from aux_code.checkpoints import load_checkpoint, save_checkpoint, write_json
from aux_code.errors import UserError
from aux_code.parameters import CommonParams, by_content
from aux_code.training_state import TrainingState, detached_copy, is_finished


@dataclass(frozen=True, kw_only=True)
class Params(CommonParams):
    init_fa: Path | None = by_content(None)
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "fa.pth").write_bytes(b"weights")
    return tmp_path / "fa.pth"


def made(weights: Path, params: Params | None = None, **data: str) -> Recipe:
    inputs, data = {"init_fa": weights, "anonymizer": "raw"}, data or {"UCF101": "d1"}
    return artefacts.recipe(params or Params(), inputs, data, {"precision": "fp32"})


def test_meta_says_where_a_checkpoint_came_from_and_loads_safely(tmp_path: Path, weights: Path):
    architectures, params = {"fa": {"arch": "small", "arguments": {}}}, Params(seed=7)
    made_of = made(weights, params)
    meta = artefacts.build_meta("train", architectures, params, made_of, {"top1": 0.5}, 3.0)
    digest = hashlib.sha256(b"weights").hexdigest()
    expected = {
        "inputs": {
            "init_fa": {"path": str(weights), "sha256": digest},
            "anonymizer": {"path": "raw", "sha256": ""},
        },
        "architectures": architectures, "metrics": {"top1": 0.5}, "seed": 7, "seconds": 3,
        "stage": "train", "format_version": artefacts.FORMAT_VERSION,
    }  # fmt: skip
    assert expected.items() <= meta.items()
    assert meta["parameters"]["sizes"] == [1, 2] and isinstance(meta["git_commit"], str)
    save_checkpoint(tmp_path / "x.pth", {"meta": meta})
    assert load_checkpoint(tmp_path / "x.pth")["meta"] == json.loads(json.dumps(meta))
    assert is_current(tmp_path / "x.pth", made_of)
    assert not is_current(tmp_path / "y.pth", made_of)
    write_json(tmp_path / "results.json", {"auc": 0.5, **vars(made_of)})
    save_checkpoint(tmp_path / "state.pth", {"made_of": vars(made_of), "position": {}})
    for name in ("results.json", "state.pth"):
        assert differences(record_of(tmp_path / name), made_of) == [], name


def test_each_difference_is_named_and_what_changes_no_result_is_none(weights: Path):
    record = vars(made(weights))
    changed = differences(record, made(weights, Params(seed=1, sizes=(1, 3))))
    assert changed == ["seed: 0, now 1", "sizes: [1, 2], now [1, 3]"]
    assert differences(record, made(weights, UCF101="d2")) == ["UCF101: other lists or files"]
    names, fields = ("anonymizer", "init_fa", "UCF101"), ("seed", "sizes")
    unknown = [f"{name}: not recorded" for name in (*fields, *names)]
    unknown.append("precision in force: not recorded, now fp32")
    assert differences({}, made(weights)) == unknown
    assert differences(record, Recipe(record["parameters"])) == [f"{n}: none now" for n in names]
    free = {"device": "cpu", "n_threads": 3, "resume": True, "overwrite": True, "preset": "y"}
    other = Params(**free, run_id="x", init_fa=Path("elsewhere"))
    moved = weights.rename(weights.parent / "moved.pth")
    assert differences(record, made(moved, other)) == []
    moved.write_bytes(b"Weights")
    os.utime(moved, ns=(1, 1))
    assert differences(record, made(moved)) == ["init_fa: another file"]


def test_a_folder_of_weights_counts_by_its_files_and_a_name_by_itself(tmp_path, monkeypatch):
    digests = []
    for name, content in (("weights", "1"), (".hidden", "1"), ("weights", "22")):
        (tmp_path / name).write_text(content)
        digests.append(sha256(tmp_path))
    assert digests[0] == digests[1] != digests[2]
    monkeypatch.chdir(tmp_path)
    for name in ("", "raw", "mosaic4_grey_noise0.05"):
        (tmp_path / name).mkdir(exist_ok=True)  # is none of them, whatever lies in the folder
        assert artefacts.describe_inputs({"w": name}) == {"w": {"path": name, "sha256": ""}}


PARAMS = {"seed": 0, "epochs": 3}


def training(folder: Path, weights_seed: int = 0, **changed) -> tuple:
    """A network's state file, the small network and its optimizer."""
    torch.manual_seed(weights_seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    stateful = {"net": net, "optimizer": torch.optim.Adam(net.parameters(), lr=0.01)}
    state = TrainingState(folder / "state.pth", Recipe(PARAMS | changed), stateful)
    return state, net, stateful["optimizer"]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        data = torch.rand(8, 3, generator=torch.Generator().manual_seed(number))
        net(data).square().mean().backward()
        optimizer.step()


def is_as(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_what_is_restored_continues_exactly_and_without_resume_the_start_is_fresh(tmp_path: Path):
    state, net, optimizer = training(tmp_path)
    assert state.restore(True) is None
    train(net, optimizer, range(3))
    position = {"step": 3, "best": None, "epoch_sums": {"loss": (1.5, 3)}}
    state.save(position)
    train(net, optimizer, range(3, 6))
    resumed, other, other_optimizer = training(tmp_path, weights_seed=1)
    before = detached_copy(other)
    assert resumed.restore(True) == position and not is_as(other, before)
    fresh, third, _ = training(tmp_path, weights_seed=1)
    assert fresh.restore(False) is None and is_as(third, before) and not state.path.exists()
    train(other, other_optimizer, range(3, 6))
    assert is_as(other, net.state_dict()) and not is_as(other, before)


def test_other_parameters_are_refused_by_name_and_nothing_is_loaded(tmp_path: Path):
    training(tmp_path)[0].save({"step": 1})
    for changed in ({"epochs": 4}, {"seed": 1}, {"new_parameter": 1}):
        state, net, _ = training(tmp_path, weights_seed=5, **changed)
        before = detached_copy(net)
        with pytest.raises(UserError, match=f"state.pth was made of.*{next(iter(changed))}"):
            state.restore(True)
        assert is_as(net, before)
    save_checkpoint(tmp_path / "state.pth", {"fingerprint": {}, "position": {}, "states": {}})
    with pytest.raises(UserError, match="earlier version.*start anew"):
        training(tmp_path)[0].restore(True)


def test_saves_are_as_far_apart_as_asked_and_seconds_count_over_resumes(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(training_state.time, "monotonic", lambda: now[0])
    state = training(tmp_path)[0]
    for minutes, saved in ((4.9, False), (0.2, True), (4.9, False), (5.0, True)):
        (tmp_path / "state.pth").unlink(missing_ok=True)
        now[0] += 60 * minutes
        state.save_if_due({"step": 0})
        assert state.path.exists() == saved, minutes
    now[0] += 1000
    resumed = training(tmp_path)[0]
    resumed.restore(True)
    now[0] += 7
    assert resumed.seconds == 60 * 15 + 7


def ask(folder: Path, resume: bool = False, overwrite: bool = False, **changed) -> bool:
    params = CommonParams(resume=resume, overwrite=overwrite)
    made_of = Recipe(PARAMS | changed)
    return is_finished(folder / "last.pth", folder / "state.pth", made_of, params)


def finish(folder: Path, seconds: float | None) -> None:
    meta = build_meta("stage", {}, PARAMS, Recipe(PARAMS), {}, seconds)
    save_checkpoint(folder / "last.pth", {"meta": meta})


def test_with_resume_complete_means_a_result_of_this_recipe_and_no_state(tmp_path, caplog):
    assert not ask(tmp_path, resume=True)
    finish(tmp_path, 3)
    assert ask(tmp_path, resume=True) and not ask(tmp_path)
    state = training(tmp_path)[0]
    state.save({"step": 1})
    assert not ask(tmp_path, resume=True)
    state.finish()
    assert ask(tmp_path, resume=True) and not state.path.exists()
    state.finish()
    with pytest.raises(UserError, match=r"last.pth was made of .*epochs: 3, now 4.*--run_id"):
        ask(tmp_path, resume=True, epochs=4)
    state.save({"step": 1})
    assert not ask(tmp_path) and state.path.exists(), "inputs may yet be refused"
    state.restore(False)
    state.save({"step": 2})
    state.restore(False)
    for name, step in (("state.set_aside.pth", 1), ("state.set_aside_2.pth", 2)):
        assert load_checkpoint(tmp_path / name)["position"] == {"step": step}
    (tmp_path / "last.pth").unlink()
    with caplog.at_level("WARNING"):
        assert not ask(tmp_path, resume=True)
    assert "state.set_aside_2.pth was set aside; rename it to state.pth" in caplog.text


@pytest.mark.parametrize("seconds", [600, 601, None])
def test_what_took_over_ten_minutes_is_replaced_only_when_asked(tmp_path: Path, seconds):
    finish(tmp_path, seconds)
    assert not ask(tmp_path, overwrite=True, epochs=4)
    if seconds == 600:
        assert not ask(tmp_path, epochs=4)
        return
    with pytest.raises(UserError, match=f"{tmp_path}/last.pth.*epochs: 3, now 4.*--overwrite"):
        ask(tmp_path, epochs=4)
    with pytest.raises(UserError, match="nothing differs: --resume keeps it"):
        ask(tmp_path)


def test_a_detached_copy_shares_no_memory():
    net = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    copy = detached_copy(net)
    before = copy["weight"].clone()
    nn.init.zeros_(net.weight)
    assert torch.equal(copy["weight"], before)
    assert copy["weight"].is_contiguous() and not copy["weight"].requires_grad
