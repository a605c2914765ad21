"""The loop of all trainings of the stage: learning rates, logs, saves, and what an interruption
leaves."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from anonymization_training.minimax import NonFiniteLoss, Updater
from anonymization_training.step_loop import StepLoop
from aux_code.artefacts import Recipe
from aux_code.errors import UserError
from aux_code.runs import Terminated
from aux_code.training_state import TrainingState

CPU = torch.device("cpu")


class Batch(NamedTuple):
    """A batch that knows its files."""

    number: int

    @property
    def names(self) -> tuple[str, ...]:
        """Two files."""
        return f"{self.number}.avi", f"{self.number}.jpg"

    def to(self, device: torch.device) -> "Batch":
        """Itself."""
        return self


class Source(NamedTuple):
    """Numbered batches in epochs of three."""

    steps_per_epoch: int = 3

    def batches(self, first_step: int, n_steps: int) -> list[Batch]:
        """Those of these steps."""
        return [Batch(n) for n in range(first_step, first_step + n_steps)]


class Scalars(list):
    """A TensorBoard writer's ear."""

    n_flushed = 0

    def flush(self) -> None:
        """Counts."""
        self.n_flushed += 1

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Keeps it."""
        self.append((name, value, step))


@pytest.fixture
def loop(tmp_path: Path):
    """loop(**parameters): without a saved state, with one updater of base rate 1; `.run.writer` is
    kept, and what `train` saw."""

    def build(resume: bool = False, **changed) -> StepLoop:
        fields = {"schedule": "constant", "warmup_steps": 0, "final_learning_rate_factor": 0.0}
        fields |= {"seed": 0, "max_steps": 0, "resume": resume}
        updater = Updater(nn.Linear(1, 1), 1.0, "fp32", CPU, 0.0)
        minutes = changed.pop("minutes", 60.0)
        state = TrainingState(tmp_path / "state.pth", Recipe({}), {"updater": updater}, minutes)
        run = SimpleNamespace(device=CPU, writer=Scalars())
        built = StepLoop(run, SimpleNamespace(**fields | changed), state)
        built.updaters, built.epochs, built.rates = [updater], [], []
        return built

    return build


def train(
    loop: StepLoop,
    *epochs: int,
    losses: list[float] | None = None,
    step: Callable[[Batch], None] = lambda batch: None,
) -> StepLoop:
    """Runs what remains of phases of so many epochs; step n has the loss losses[n], or n."""
    with loop:
        for n_epochs in epochs:
            for (batch,) in loop.steps("test", n_epochs, loop.updaters, Source()):
                loop.rates.append(loop.updaters[0].optimizer.param_groups[0]["lr"])
                step(batch)
                value = float(batch.number) if losses is None else losses[batch.number]
                if means := loop.note({"loss": value}):
                    loop.epochs.append((loop.position.step, means))
    return loop


def stop(n_steps: int) -> Callable[[Batch], None]:
    """A Ctrl-C in the last of so many steps."""
    return lambda batch: batch.number == n_steps - 1 and os.kill(os.getpid(), signal.SIGINT)


def test_rates_warm_up_and_follow_the_cosine_in_each_phase(loop):
    options = {"schedule": "cosine", "warmup_steps": 2, "final_learning_rate_factor": 0.1}
    expected = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert train(loop(**options), 2, 2).rates == pytest.approx(2 * expected)
    for n_steps in (3, 8):
        with pytest.raises(KeyboardInterrupt):
            train(loop(**options), 2, 2, step=stop(n_steps))
        resumed = train(loop(resume=True, **options), 2, 2)
        assert resumed.rates == pytest.approx((2 * expected)[n_steps:])


def test_max_steps_ends_each_phase_early(loop):
    assert train(loop(max_steps=4), 2, 1).epochs == [
        (3, {"loss": 1.0}),
        (4, {"loss": 3.0}),
        (7, {"loss": 5.0}),
    ]


def test_the_plateau_divides_by_five_after_each_epoch_that_does_not_fall(loop):
    losses = [3.0] * 3 + [2.0] * 3 + [2.0] * 3 + [2.5] * 3 + [1.0] * 3
    expected = [1.0] * 9 + [1 / 5] * 3 + [1 / 25] * 3
    assert train(loop(schedule="plateau"), 5, losses=losses).rates == pytest.approx(expected)
    with pytest.raises(KeyboardInterrupt):
        train(loop(schedule="plateau"), 5, losses=losses, step=stop(9))
    resumed = train(loop(resume=True, schedule="plateau"), 5, losses=losses)
    assert resumed.rates == pytest.approx(expected[9:])


def test_every_step_is_logged_and_epochs_end_with_their_means(loop):
    trained = train(loop(max_steps=7), 3)
    assert trained.run.writer == [("loss", float(n), n + 1) for n in range(7)]
    assert trained.epochs == [(3, {"loss": 1.0}), (6, {"loss": 4.0}), (7, {"loss": 6.0})]
    position = trained.position
    assert (position.step, position.epoch, position.epoch_sums) == (7, 3, {})
    assert trained.run.writer.n_flushed == 1


def test_the_end_is_saved_and_what_lies_between_by_the_clock(loop, monkeypatch):
    saved = []
    monkeypatch.setattr(TrainingState, "save", lambda self, where: saved.append(where["step"]))
    train(loop(max_steps=5), 2)
    assert saved == [5]
    train(loop(max_steps=5, minutes=0.0), 2)
    assert saved == [5, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "number, error", [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_finishes_the_step_and_saves_in_the_middle_of_an_epoch(loop, number, error):
    handler = signal.getsignal(number)
    with pytest.raises(error):
        train(loop(), 2, step=lambda b: b.number == 1 and os.kill(os.getpid(), number))
    assert signal.getsignal(number) == handler
    position = loop(resume=True).position
    assert position.step == 2 and position.epoch_sums == {"loss": (1.0, 2)}


def test_a_source_that_ends_early_is_named(loop, monkeypatch):
    monkeypatch.setattr(Source, "batches", lambda self, first, n: [Batch(first)])
    with pytest.raises(UserError, match="test: only 1 of 6 batches held a readable file"):
        train(loop(), 2)


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_loss_that_is_not_finite_names_the_files_and_keeps_the_last_good_state(
    loop, saved_before
):
    def step(batch: Batch) -> None:
        if batch.number == 2:
            raise NonFiniteLoss("step1/total is nan")

    kept = "state is kept in .*state.pth" if saved_before else "no state was saved"
    with pytest.raises(UserError, match=f"step 2: step1/total is nan; .*{kept}.*: 2.avi, 2.jpg"):
        train(loop(minutes=0.0 if saved_before else 60.0), 2, step=step)
    assert loop(resume=True).position.step == (2 if saved_before else 0)
