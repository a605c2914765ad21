"""The loop of all trainings of the stage: learning rates, logs, saves, and what an interruption
leaves."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import torch
from torch import nn

from anonymization_training.minimax import NonFiniteLoss
from anonymization_training.step_loop import StepLoop
from anonymization_training.training_batches import ImageBatch
from aux_code.artefacts import Recipe
from aux_code.errors import UserError
from aux_code.runs import Terminated
from aux_code.training_state import TrainingState
from tests.anonymization_training.conftest import CPU, updater


class Source:
    """Numbered batches in epochs of three."""

    steps_per_epoch = 3

    def batches(self, first_step: int, n_steps: int, device: torch.device) -> list[ImageBatch]:
        numbers = range(first_step, first_step + n_steps)
        return [ImageBatch(torch.tensor(n), (f"{n}.avi", f"{n}.jpg")) for n in numbers]


@pytest.fixture
def loop(tmp_path: Path):
    """loop(**parameters): with one updater of base rate 1; `.run.writer` and what `train` saw are
    kept."""

    def build(resume: bool = False, minutes: float = 60.0, **changed) -> StepLoop:
        fields = {"schedule": "constant", "warmup_steps": 0, "final_learning_rate_factor": 0.0}
        fields |= {"seed": 0, "max_steps": 0, "resume": resume}
        one = updater(nn.Linear(1, 1), 1.0)
        state = TrainingState(tmp_path / "state.pth", Recipe({}), {"updater": one}, minutes)
        run = Mock(device=CPU)
        built = StepLoop(run, SimpleNamespace(**fields | changed), state)
        built.updaters, built.epochs, built.rates = [one], [], []
        return built

    return build


def train(loop: StepLoop, *epochs: int, losses=range(99), step=lambda number: None) -> StepLoop:
    """Runs what remains of phases of so many epochs; step n has the n-th loss."""
    with loop:
        for n_epochs in epochs:
            for (batch,) in loop.steps("test", n_epochs, loop.updaters, Source()):
                loop.rates.append(loop.updaters[0].optimizer.param_groups[0]["lr"])
                step(number := int(batch.views))
                if means := loop.note({"loss": float(losses[number])}):
                    loop.epochs.append((loop.position.step, means["loss"]))
    return loop


def stop(n_steps: int, number: int = signal.SIGINT) -> Callable[[int], None]:
    """A signal, Ctrl-C, in the last of so many steps."""
    return lambda step: step == n_steps - 1 and os.kill(os.getpid(), number)


@pytest.mark.parametrize("n_steps", [3, 8])
def test_rates_warm_up_and_follow_the_cosine_in_each_phase(loop, n_steps):
    options = {"schedule": "cosine", "warmup_steps": 2, "final_learning_rate_factor": 0.1}
    phase = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    expected = phase + phase
    assert train(loop(**options), 2, 2).rates == pytest.approx(expected)
    with pytest.raises(KeyboardInterrupt):
        train(loop(**options), 2, 2, step=stop(n_steps))
    resumed = train(loop(resume=True, **options), 2, 2)
    assert resumed.rates == pytest.approx(expected[n_steps:])


def test_the_plateau_divides_by_five_after_each_epoch_that_does_not_fall(loop):
    losses = [3.0] * 3 + [2.0] * 3 + [2.0] * 3 + [2.5] * 3 + [1.0] * 3
    expected = [1.0] * 9 + [1 / 5] * 3 + [1 / 25] * 3
    assert train(loop(schedule="plateau"), 5, losses=losses).rates == pytest.approx(expected)
    with pytest.raises(KeyboardInterrupt):
        train(loop(schedule="plateau"), 5, losses=losses, step=stop(9))
    resumed = train(loop(resume=True, schedule="plateau"), 5, losses=losses)
    assert resumed.rates == pytest.approx(expected[9:])


def test_every_step_is_logged_epochs_end_with_their_means_and_max_steps_ends_each_phase(loop):
    trained = train(loop(max_steps=4), 2, 1)
    logged, flushed = trained.run.writer.add_scalar, trained.run.writer.flush
    assert logged.mock_calls == [call("loss", float(n), n + 1) for n in range(7)]
    assert trained.epochs == [(3, 1.0), (4, 3.0), (7, 5.0)]
    position = trained.position
    assert (position.step, position.epoch, position.epoch_sums) == (7, 3, {})
    flushed.assert_called_once_with()


def test_the_end_is_saved_and_what_lies_between_by_the_clock(loop, monkeypatch):
    saved = []
    monkeypatch.setattr(TrainingState, "save", lambda self, where: saved.append(where["step"]))
    train(loop(max_steps=5), 2)
    assert saved == [5]
    train(loop(max_steps=5, minutes=0.0), 2)
    assert saved == [5, 1, 2, 3, 4, 5]


SIGNALS = [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]


@pytest.mark.parametrize("number, error", SIGNALS)
def test_a_signal_finishes_the_step_and_saves_in_the_middle_of_an_epoch(loop, number, error):
    handler = signal.getsignal(number)
    with pytest.raises(error):
        train(loop(), 2, step=stop(2, number))
    assert signal.getsignal(number) == handler
    position = loop(resume=True).position
    assert position.step == 2 and position.epoch_sums == {"loss": (1.0, 2)}


def test_a_source_that_ends_early_is_named(loop, monkeypatch):
    monkeypatch.setattr(Source, "batches", lambda self, *_: [ImageBatch(torch.tensor(0), ())])
    with pytest.raises(UserError, match="test: only 1 of 6 batches held a readable file"):
        train(loop(), 2)


KEPT = [(0.0, "state is kept in .*state.pth", 2), (60.0, "no state was saved", 0)]


@pytest.mark.parametrize("minutes, kept, n_steps", KEPT)
def test_a_loss_that_is_not_finite_names_the_files_and_keeps_the_last_good_state(
    loop, minutes, kept, n_steps
):
    def step(number: int) -> None:
        if number == 2:
            raise NonFiniteLoss("step1/total is nan")

    with pytest.raises(UserError, match=f"step 2: step1/total is nan; .*{kept}.*: 2.avi, 2.jpg"):
        train(loop(minutes=minutes), 2, step=step)
    assert loop(resume=True).position.step == n_steps
