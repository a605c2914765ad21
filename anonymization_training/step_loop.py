"""The loop that all trainings of the stage share: steps, schedule, progress, logs, saves,
interruption."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anonymization_training.minimax import NonFiniteLoss, Updater
from aux_code.checkpoints import save_checkpoint
from aux_code.distributed import any_rank, barrier, gather_objects, is_main, rank, world_size
from aux_code.errors import UserError
from aux_code.progress import progress
from aux_code.runs import InterruptRequest, Run, derived_seed
from aux_code.schedules import learning_rate_factor, set_learning_rate
from aux_code.training_state import TrainingState


@contextlib.contextmanager
def flushed(writer) -> Iterator[None]:
    """What was written inside is on the disk afterwards, however the training ends; a writer's
    thread may not be."""
    try:
        yield
    finally:
        writer.flush()


@dataclass
class StepLoop:
    """Steps [first_step, last_step) of a training; position["step"] says where it stands."""

    run: Run
    """Device and TensorBoard writer."""
    params: Any
    """schedule, warmup_steps, final_learning_rate_factor and seed are read."""
    state: TrainingState
    """Saved between two steps when due and when the process is asked to stop."""
    updaters: list[Updater]
    """Those whose learning rate follows the schedule."""
    steps_per_epoch: int
    """An epoch ends after so many steps, and after the last one."""
    description: str
    """For the progress bar and the seeds."""
    first_step: int
    """The schedule counts from here."""
    last_step: int
    """Where the training is complete."""
    end_of_epoch: Callable[[dict, dict[str, float]], None]
    """Called with (position, mean losses) at the end of each epoch."""

    def train(
        self, position: dict, batches: Iterable[tuple], step: Callable[..., dict[str, float]]
    ) -> None:
        """Runs the steps that remain.

        Args:
            position: {"step": next step, ...}, plain values; kept up to date in place and saved
                with the state.
            batches: tuples of batches, from position["step"] on.
            step: the batches of a tuple, on the run's device -> named losses; the first drives the
                plateau schedule.
        """
        total, done = self.last_step - self.first_step, position["step"] - self.first_step
        bar = progress(
            description=self.description, total=total, initial=done, disable=not is_main()
        )
        with InterruptRequest() as interrupt, bar, flushed(self.run.writer):
            for batch in batches:
                self._set_rates(position)
                losses = self._step(batch, step, position["step"])
                self._note(losses, position, bar)
                if (
                    position["step"] - self.first_step
                ) % self.steps_per_epoch == 0 or self._complete(position):
                    self.end_of_epoch(position, self._end_epoch(position))
                if any_rank(interrupt.requested is not None):
                    self.state.save(position)
                    barrier()  # torchrun ends all ranks as soon as one has ended
                    interrupt.honour()
                if self._complete(position):
                    self.state.save(
                        position
                    )  # what follows, such as a last validation, may be interrupted too
                else:
                    self.state.save_if_due(position)
        if not self._complete(position):
            raise UserError(
                f"{self.description}: only {position['step']} of {self.last_step} batches held a readable file"
            )

    def _complete(self, position: dict) -> bool:
        return position["step"] >= self.last_step

    def _step(self, batch: tuple, step: Callable, number: int) -> dict[str, float]:
        # Noise and dropout depend on the step and the rank alone: a resumed run draws what it would
        # have drawn.
        own = (rank(),) if world_size() > 1 else ()
        torch.manual_seed(derived_seed(self.params.seed, self.description, number, *own))
        try:
            return step(*(member.to(self.run.device) for member in batch))
        except NonFiniteLoss as error:
            shares = gather_objects([name for member in batch for name in member.names])
            names = ", ".join(name for share in shares for name in share)
            path = self.state.path
            kept = (
                f"the last good state is kept in {path}"
                if path.is_file()
                else "no state had been saved yet"
            )
            raise UserError(
                f"step {number}: {error}; {kept}. Look at the files of its batch, or start anew with a lower learning "
                f"rate: {names}"
            ) from error

    def _note(self, losses: dict[str, float], position: dict, bar) -> None:
        position["step"] += 1
        sums = position.setdefault("epoch_sums", {})
        for name, value in losses.items():
            self.run.writer.add_scalar(name, value, position["step"])
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)
        bar.update()
        bar.set_postfix(
            {name.split("/")[-1]: f"{value:.3f}" for name, value in losses.items()}, refresh=False
        )

    def _end_epoch(self, position: dict) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in position.pop("epoch_sums").items()}
        if self.params.schedule == "plateau":
            loss, lowest = next(iter(means.values())), position.get("lowest_loss", float("inf"))
            if loss >= lowest:
                position["plateau_factor"] = position.get("plateau_factor", 1.0) / 5
            position["lowest_loss"] = min(loss, lowest)
        return means

    def _set_rates(self, position: dict) -> None:
        params = self.params
        kind = "constant" if params.schedule == "plateau" else params.schedule
        factor = learning_rate_factor(
            position["step"] - self.first_step,
            self.last_step - self.first_step,
            params.warmup_steps,
            kind,
            params.final_learning_rate_factor,
        )
        for updater in self.updaters:
            set_learning_rate(
                updater.optimizer,
                updater.learning_rate,
                factor * position.get("plateau_factor", 1.0),
            )


def finish(state: TrainingState, output: Path, checkpoint: dict[str, Any], quality: str) -> None:
    """Rank 0 writes the result, removes the state of the interrupted run and says how good the
    result is."""
    if is_main():
        save_checkpoint(output, checkpoint)
        state.finish()
        sys.stdout.write(f"{output}: {quality}\n")


def planned_steps(params: Any, steps_per_epoch: int, epochs: int | None = None) -> int:
    """epochs * steps_per_epoch, at most max_steps where that is given; `epochs` defaults to the
    parameter."""
    n_steps = (params.epochs if epochs is None else epochs) * steps_per_epoch
    return min(n_steps, params.max_steps) if params.max_steps else n_steps
