"""The loop of all trainings of the stage: learning rates, logs, saves, and what an interruption
leaves."""

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from anonymization_training.minimax import NonFiniteLoss, Updater
from anonymization_training.step_loop import StepLoop
from aux_code.errors import UserError
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
    """loop(n_steps, **parameters): over epochs of three steps, with one updater of base rate 1;
    `.epochs` are kept."""

    def build(n_steps: int, first: int = 0, **changed) -> StepLoop:
        fields = {
            "schedule": "constant",
            "warmup_steps": 0,
            "final_learning_rate_factor": 0.0,
            "seed": 0,
        }
        updater = Updater(nn.Linear(1, 1), 1.0, "fp32", CPU, 0.0)
        state = TrainingState(
            tmp_path / "state.pth", {}, {"updater": updater}, changed.pop("minutes", 60.0)
        )
        run = SimpleNamespace(device=CPU, writer=Scalars())
        epochs = []
        built = StepLoop(run, SimpleNamespace(**fields | changed), state, [updater], 3, "test", first, first + n_steps,
                         lambda position, means: epochs.append((position["step"], means)))  # fmt: skip
        built.epochs = epochs
        return built

    return build


def train(loop: StepLoop, position: dict, losses: list[float] | None = None) -> list[float]:
    """Runs what remains; the learning rate of each step. Step n has the loss losses[n], or n."""
    rates = []

    def step(batch: Batch) -> dict[str, float]:
        rates.append(loop.updaters[0].optimizer.param_groups[0]["lr"])
        return {"loss": float(batch.number) if losses is None else losses[batch.number]}

    loop.train(position, [(Batch(n),) for n in range(position["step"], loop.last_step)], step)
    return rates


def test_rates_warm_up_and_follow_the_cosine_in_each_phase(loop):
    options = {"schedule": "cosine", "warmup_steps": 2, "final_learning_rate_factor": 0.1}
    expected = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert train(loop(6, **options), {"step": 0}) == pytest.approx(expected)
    assert train(loop(6, first=10, **options), {"step": 10}) == pytest.approx(expected)
    assert train(loop(6, **options), {"step": 3}) == pytest.approx(expected[3:]), "resumed"


def test_the_plateau_divides_by_five_after_each_epoch_that_does_not_fall(loop):
    losses = [3.0] * 3 + [2.0] * 3 + [2.0] * 3 + [2.5] * 3 + [1.0] * 3
    position = {"step": 0}
    rates = train(loop(15, schedule="plateau"), position, losses)
    expected = [1.0] * 9 + [1 / 5] * 3 + [1 / 25] * 3
    assert rates == pytest.approx(expected)
    position = {"step": 0}
    train(loop(9, schedule="plateau"), position, losses)
    assert train(loop(15, schedule="plateau"), position, losses) == pytest.approx(expected[9:]), (
        "resumed"
    )


def test_every_step_is_logged_and_epochs_end_with_their_means(loop):
    built, position = loop(7), {"step": 0}
    train(built, position)
    assert built.run.writer == [("loss", float(n), n + 1) for n in range(7)]
    assert built.epochs == [(3, {"loss": 1.0}), (6, {"loss": 4.0}), (7, {"loss": 6.0})]
    assert (
        position["step"] == 7 and "epoch_sums" not in position and built.run.writer.n_flushed == 1
    )


def test_the_end_is_saved_and_what_lies_between_by_the_clock(loop, monkeypatch):
    saved = []
    monkeypatch.setattr(
        TrainingState, "save", lambda self, position: saved.append(position["step"])
    )
    train(loop(5), {"step": 0})
    assert saved == [5]
    train(loop(5, minutes=0.0), {"step": 0})
    assert saved == [5, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "number, error", [(signal.SIGTERM, "Terminated"), (signal.SIGINT, "KeyboardInterrupt")]
)
def test_a_signal_finishes_the_step_and_saves_in_the_middle_of_an_epoch(loop, number, error):
    built, position = loop(6), {"step": 0}

    def step(batch: Batch) -> dict[str, float]:
        if batch.number == 1:
            os.kill(os.getpid(), number)
        return {"loss": float(batch.number)}

    with pytest.raises(BaseException) as caught:
        built.train(position, [(Batch(n),) for n in range(6)], step)
    assert type(caught.value).__name__ == error
    position = loop(6).state.restore(True)
    assert position["step"] == 2 and position["epoch_sums"] == {"loss": (1.0, 2)}


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_loss_that_is_not_finite_names_the_files_and_keeps_the_last_good_state(
    loop, saved_before
):
    built = loop(6, minutes=0.0 if saved_before else 60.0)

    def step(batch: Batch) -> dict[str, float]:
        if batch.number == 2:
            raise NonFiniteLoss("step1/total is nan")
        return {"loss": 1.0}

    kept = "state is kept in .*state.pth" if saved_before else "no state had been saved"
    with pytest.raises(UserError, match=f"step 2: step1/total is nan; .*{kept}.*: 2.avi, 2.jpg"):
        built.train({"step": 0}, [(Batch(n),) for n in range(6)], step)
    position = loop(6).state.restore(True)
    assert (position and position["step"]) == (2 if saved_before else None)
