"""What an interrupted training needs to continue as if it had never stopped."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.distributed import is_main
from aux_code.errors import UserError

log = logging.getLogger(__name__)


class TrainingState:
    """Weights, optimizers and position of a training, saved to one file.

    Every random draw of a training is derived from (seed, purpose, epoch, index), so no generator's
    state is stored: with the same position and weights the next step is the same, bit for bit on
    one CPU.

    Args:
        path: the file, in the run's folder.
        fingerprint: parameters that must not change between the interrupted and the resumed run.
        stateful: name -> module, optimizer or scaler (anything with state_dict and
            load_state_dict).
        minutes: least time between two saves by `save_if_due`.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: dict[str, Any],
        stateful: dict[str, Any],
        minutes: float = 5.0,
    ):
        self.path, self.stateful, self.minutes = path, stateful, minutes
        self.fingerprint = {
            key: str(value) for key, value in fingerprint.items() if key not in _FREE_TO_CHANGE
        }
        self.last_save = time.monotonic()

    def save(self, position: dict[str, Any]) -> None:
        """Saves now. `position` holds plain values: epoch, step, best score, history.

        Under torchrun rank 0 does: weights, optimizers and position are the same on all ranks.
        """
        if not is_main():
            return
        states = {name: item.state_dict() for name, item in self.stateful.items()}
        save_checkpoint(
            self.path, {"fingerprint": self.fingerprint, "position": position, "states": states}
        )
        self.last_save = time.monotonic()

    def save_if_due(self, position: dict[str, Any]) -> None:
        """Saves if the last save is older than `minutes`."""
        if time.monotonic() - self.last_save >= 60 * self.minutes:
            self.save(position)

    def restore(self, resume: bool) -> dict[str, Any] | None:
        """Loads the saved state if `resume` and there is one; returns its position, or None for a
        fresh start.

        Raises:
            UserError: the saved state belongs to other parameters.
        """
        if not resume or not self.path.is_file():
            return None
        saved = load_checkpoint(self.path)
        self._refuse(
            [k for k, v in self.fingerprint.items() if saved["fingerprint"].get(k) != v], self.path
        )
        for name, item in self.stateful.items():
            item.load_state_dict(saved["states"][name])
        return saved["position"]

    def is_complete(self, output: Path, resume: bool) -> bool:
        """Whether --resume finds nothing to do: the result stands and no state of an interrupted
        run does.

        Args:
            output: a checkpoint whose `meta` holds the parameters of its run.
            resume: whether that was asked for.

        Raises:
            UserError: the result belongs to other parameters. Those that it knows nothing of may
                have any value.
        """
        if not resume or not output.is_file() or self.path.is_file():
            return False
        saved = load_checkpoint(output).get("meta", {}).get("parameters", {})
        texts = {
            key: str(tuple(value) if isinstance(value, list) else value)
            for key, value in saved.items()
        }
        self._refuse([k for k, v in self.fingerprint.items() if texts.get(k, v) != v], output)
        log.info("%s is complete; nothing to resume", output)
        return True

    def _refuse(self, changed: list[str], path: Path) -> None:
        if changed:
            raise UserError(
                f"{path} was saved with other values of {', '.join(changed)}; "
                "resume with the same parameters, or start anew with another --run_id"
            )

    def finish(self) -> None:
        """Removes the file: the training is complete and its result stands elsewhere.

        What kills inside a save have left behind goes too.
        """
        if is_main():
            for file in (self.path, *self.path.parent.glob(".*.tmp")):
                file.unlink(missing_ok=True)


_FREE_TO_CHANGE = (
    "resume",
    "device",
    "n_threads",
    "n_workers",
    "run_id",
    "minutes_between_saves",
    "probe_every",
)
"""They change nothing about the result."""


def detached_copy(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as copies on the CPU in contiguous layout, ready to be saved."""
    return {
        name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()
    }
