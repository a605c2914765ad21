"""What surrounds a step in all trainings of the stage: seeds and learning rates before it, logs and
saves after it, interruptions."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from anonymization_training.minimax import NonFiniteLoss, Updater
from anonymization_training.params_anonymization import StageParams
from anonymization_training.training_batches import BatchSource
from aux_code.artefacts import build_meta
from aux_code.checkpoints import save_checkpoint
from aux_code.distributed import any_rank, barrier, gather_objects, is_main, rank, world_size
from aux_code.errors import UserError
from aux_code.progress import progress
from aux_code.runs import InterruptRequest, Run, derived_seed
from aux_code.schedules import learning_rate_factor, plateau_divisions, set_learning_rate
from aux_code.training_state import TrainingState, detached_copy


@dataclass
class Position:
    """Where a training stands; saved with its state, as a dict."""

    step: int = 0
    """Number of the next step, over all phases."""
    epoch: int = 0
    """Epochs that have ended."""
    epoch_sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Name of a loss -> (sum, count) in this epoch."""
    epoch_losses: list[float] = field(default_factory=list)
    """Mean of the first loss in each epoch, for the plateau."""
    best: float | None = None
    """The trade-off of best.pth."""
    nt_xent_accuracy: float | None = None
    """Of init_privacy's last epoch."""


class StepLoop:
    """The steps of a training, in one or more phases, from where its saved state stands.

    A context: the first Ctrl-C or SIGTERM inside ends it after a step and a save, what TensorBoard
    got is flushed, and a loss that is not finite becomes a UserError that names its files.

    Args:
        run: device, folder and TensorBoard writer.
        params: of the script.
        state: saved between two steps when due, and when the process is asked to stop.
    """

    def __init__(self, run: Run, params: StageParams, state: TrainingState):
        self.run, self.params, self.state = run, params, state
        self.position = Position(**(state.restore(params.resume) or {}))
        self.interrupt, self.last_step, self.names = InterruptRequest(), 0, []

    def __enter__(self) -> "StepLoop":
        self.run.write_parameters(self.params)
        self.interrupt.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        self.interrupt.__exit__()
        self.run.writer.flush()
        if not isinstance(error, NonFiniteLoss):
            return
        names = ", ".join(name for share in gather_objects(self.names) for name in share)
        path = self.state.path
        kept = f"the last good state is kept in {path}" if path.is_file() else "no state was saved"
        raise UserError(
            f"step {self.position.step}: {error}; {kept}. Look at the files of its batch, or start "
            f"anew with a lower learning rate: {names}"
        ) from error

    def steps(
        self, description: str, epochs: int, updaters: list[Updater], *sources: BatchSource
    ) -> Iterator[tuple]:
        """Batches on the device, one of each source, for the steps of a phase that remain.

        Args:
            description: for the progress bar and the seeds.
            epochs: of the first source; at most max_steps steps where that is given.
            updaters: those whose learning rate follows the schedule.

        Raises:
            UserError: fewer batches than steps.
        """
        self.steps_per_epoch = sources[0].steps_per_epoch
        n_steps = min(epochs * self.steps_per_epoch, self.params.max_steps or sys.maxsize)
        self.first_step, self.last_step = self.last_step, self.last_step + n_steps
        if self.is_complete:
            return
        done, position = self.position.step - self.first_step, self.position
        with progress(
            description=description, total=n_steps, initial=done, disable=not is_main()
        ) as self.bar:
            parts = (
                source.batches(position.step, n_steps - done, self.run.device) for source in sources
            )
            for batches in zip(*parts, strict=True):
                self._set_rates(updaters)
                # Noise and dropout depend on the step and the rank alone: a resumed run draws what
                # it would have drawn.
                own = (rank(),) if world_size() > 1 else ()
                seed = derived_seed(self.params.seed, description, position.step, *own)
                torch.manual_seed(seed)
                self.names = [name for batch in batches for name in batch.names]
                yield batches
                self._save_or_stop()
        if not self.is_complete:
            counts = f"{position.step} of {self.last_step}"
            raise UserError(f"{description}: only {counts} batches held a readable file")

    @property
    def is_complete(self) -> bool:
        """Whether the steps of the phase are done."""
        return self.position.step >= self.last_step

    def note(self, losses: dict[str, float]) -> dict[str, float] | None:
        """Logs a step's named losses; their means over the epoch where it has ended, else None.

        The first one drives the plateau schedule.
        """
        position = self.position
        position.step += 1
        for name, value in losses.items():
            self.run.writer.add_scalar(name, value, position.step)
            total, count = position.epoch_sums.get(name, (0.0, 0))
            position.epoch_sums[name] = (total + value, count + 1)
        self.bar.update()
        short = {name.split("/")[-1]: f"{value:.3f}" for name, value in losses.items()}
        self.bar.set_postfix(short, refresh=False)
        if (position.step - self.first_step) % self.steps_per_epoch and not self.is_complete:
            return None
        means = {name: total / count for name, (total, count) in position.epoch_sums.items()}
        position.epoch, position.epoch_sums = position.epoch + 1, {}
        position.epoch_losses.append(next(iter(means.values())))
        return means

    def save(
        self, name: str, networks: dict[str, nn.Module], metrics: dict[str, float], epoch: int
    ) -> None:
        """Rank 0 writes a checkpoint of networks (role -> network) to the run's folder."""
        if not is_main():
            return
        architectures = {role: net.architecture for role, net in networks.items()}
        recipe, seconds = self.state.made_of, self.state.seconds
        meta = build_meta(self.run.stage, architectures, self.params, recipe, metrics, seconds)
        states = {f"{role}_model_state_dict": detached_copy(net) for role, net in networks.items()}
        save_checkpoint(self.run.folder / name, {**states, "epoch": epoch, "meta": meta})

    def finish(
        self, name: str, networks: dict[str, nn.Module], metrics: dict[str, float], quality: str
    ) -> None:
        """Writes the result, removes the saved state, says how good the result is."""
        self.save(name, networks, metrics, self.params.epochs)
        self.state.finish()
        if is_main():
            sys.stdout.write(f"{self.run.folder / name}: {quality}\n")

    def _save_or_stop(self) -> None:
        if any_rank(self.interrupt.requested is not None):
            self.state.save(asdict(self.position))
            barrier()  # torchrun ends all ranks as soon as one has ended
            self.interrupt.honour()
        if self.is_complete:  # what follows, such as a last validation, may be interrupted too
            self.state.save(asdict(self.position))
        else:
            self.state.save_if_due(asdict(self.position))

    def _set_rates(self, updaters: list[Updater]) -> None:
        params, falls = self.params, plateau_divisions(self.position.epoch_losses)
        factor = learning_rate_factor(
            self.position.step - self.first_step,
            self.last_step - self.first_step,
            params.warmup_steps,
            "constant" if params.schedule == "plateau" else params.schedule,
            params.final_learning_rate_factor,
        )
        factor /= 5**falls if params.schedule == "plateau" else 1
        for updater in updaters:
            set_learning_rate(updater.optimizer, updater.learning_rate, factor)
