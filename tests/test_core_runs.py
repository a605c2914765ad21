"""Run folders, seeds, exit statuses and interruption."""

import errno
import json
import os
import random
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from aux_code import config, runs
from aux_code.errors import UserError
from aux_code.parameters import CommonParams
from aux_code.runs import InterruptRequest, Terminated, run_script, start_run


@pytest.fixture(autouse=True)
def handlers_stay():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


ENDS = [
    (None, 0, ""), (3, 3, ""), (SystemExit(2), 2, ""), (KeyboardInterrupt(), 130, "interrupted"),
    (UserError("--size: too small"), 2, "error: --size: too small\n"),
    (OSError(errno.ENOTDIR, "Not a file", "/a/b"), 2, "error: /a/b: Not a file"),
    (OSError(errno.ENOSPC, "No space left"), 2, "error: No space left"),
    (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "terminated"),
    (lambda: os.kill(os.getpid(), signal.SIGINT), 130, "interrupted"),
]  # fmt: skip


@pytest.mark.parametrize("end, status, message", ENDS)
def test_exit_statuses(end, status: int, message: str, capsys):
    with pytest.raises(SystemExit) as caught:
        run_script(end if callable(end) else Mock(side_effect=[end]))
    error = capsys.readouterr().err
    assert caught.value.code == status
    assert error.startswith(message) and len(error.splitlines()) <= 1 and "Traceback" not in error


def test_bugs_are_not_disguised_as_user_errors():
    for error in (ZeroDivisionError(), BrokenPipeError(errno.EPIPE, "Broken pipe")):
        with pytest.raises(type(error)):
            run_script(Mock(side_effect=error))


def test_the_first_signal_is_a_request_the_second_ends():
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
        before = signal.getsignal(number)
        with InterruptRequest() as interrupt:
            os.kill(os.getpid(), number)
            assert interrupt.requested == number
            with pytest.raises(error):
                interrupt.honour()
            with pytest.raises(error):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) == before


def test_a_run_has_a_folder_with_its_parameters_and_seeds_every_generator(tmp_path, monkeypatch):
    def draws() -> tuple:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    for name in ("SAVED_MODELS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / name)
    threads = torch.get_num_threads()
    params = CommonParams(preset="miniature", seed=3, device="cpu", n_threads=1)
    run = start_run(params, "train_x")
    first = draws()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert run.folder == config.SAVED_MODELS_ROOT / "train_x_miniature"
    assert run.device.type == "cpu" and not run.folder.exists()
    run.write_parameters(params)
    saved = json.loads((run.folder / "params_train_x.json").read_text())
    expected = {"seed": 3, "run_id": "train_x_miniature", "stage": "train_x"}
    assert expected.items() <= saved.items()
    assert not config.LOGS_ROOT.exists()
    run.writer.add_scalar("loss", 1.0, 0)
    run.writer.close()
    assert list((config.LOGS_ROOT / "train_x_miniature").iterdir())
    named = start_run(CommonParams(run_id="mine", device="cpu", seed=3), "train_x")
    assert named.folder == config.SAVED_MODELS_ROOT / "mine" and draws() == first
    runs.seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_derived_generators_depend_on_every_key_its_type_and_the_order():
    keys = [(0, "clip", 1, 2), (0, "clip", 2, 1), (0, "view", 1, 2), (1, "clip", 1, 2)]
    keys += [(0, "clip", 12), (0, "clip", "1", 2), ("ab", "c"), ("a", "bc"), ("abc",)]
    seeds = [runs.derived_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    # the same on every machine and in every version: SHA-256 of the keys' representations
    assert runs.derived_seed(0, "clip", 1, 2) == 4659185930849746569
    global_state = torch.get_rng_state()
    a, b, c = (torch.rand(4, generator=runs.seeded_generator(0, "clip", 1, n)) for n in (2, 2, 3))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), global_state)
