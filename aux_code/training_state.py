"""What an interrupted training needs to go on exactly, and when a script has nothing to do."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aux_code.artefacts import Recipe, differences, record_of
from aux_code.checkpoints import load_checkpoint, read_json, save_checkpoint
from aux_code.distributed import is_main
from aux_code.errors import UserError
from aux_code.parameters import CommonParams

log = logging.getLogger(__name__)

CHEAP_SECONDS = 600
"""A finished training of up to ten minutes is replaced without asking."""
_NUMBERS = ("", *(f"_{n}" for n in range(2, 100)))
"""Of the files of states that were set aside."""


def is_finished(output: Path, state: Path, made_of: Recipe, params: CommonParams) -> bool:
    """Whether a script has nothing to do; asked before anything is loaded, writes nothing.

    With --resume an unfinished state goes on, and a finished output stays, if made by this recipe.

    Args:
        output: the checkpoint or results JSON that a finished run leaves.
        state: the file of an interrupted run; there is none once the run is complete.
        made_of: what the run is made of now.
        params: --resume and --overwrite count.

    Raises:
        UserError: what stands there is of another recipe, or would be lost.
    """
    unfinished = state.is_file()
    if params.resume:
        if not unfinished and not output.is_file():
            found = state.parent.glob(f"{state.stem}.set_aside*{state.suffix}")
            for aside in sorted(found) if is_main() else ():
                log.warning("begins anew: %s was set aside; rename it to %s", aside, state.name)
            return False
        found = differences(record_of(state if unfinished else output), made_of)
        if found:
            raise UserError(_other_recipe(state if unfinished else output, found))
        if not unfinished:
            log.info("%s is complete; nothing to resume", output)
        return not unfinished
    if output.is_file() and not unfinished and not params.overwrite:
        _refuse_costly(output, made_of)
    return False


def _set_aside(state: Path) -> None:
    """Renames an unfinished state, so that no later --resume takes it."""
    places = [state.with_name(f"{state.stem}.set_aside{n}{state.suffix}") for n in _NUMBERS]
    aside = next((path for path in places if not path.exists()), places[-1])
    state.replace(aside)
    log.info("%s was not finished; it is kept as %s", state, aside.name)


def _other_recipe(path: Path, found: list[str]) -> str:
    return (
        f"{path} was made of something else ({'; '.join(found)}); resume with what it was made of, "
        "give another --run_id, or start anew without --resume (and with --overwrite)"
    )


def _refuse_costly(output: Path, made_of: Recipe) -> None:
    content = read_json(output) if output.suffix == ".json" else load_checkpoint(output)
    content = content if isinstance(content, dict) else {}
    seconds = content.get("meta", content).get("seconds")
    if seconds is not None and seconds <= CHEAP_SECONDS:
        return
    took = "an unknown time" if seconds is None else f"{seconds / 60:.0f} minutes"
    found = differences(record_of(output), made_of)
    differs = f"now differ: {'; '.join(found)}" if found else "nothing differs: --resume keeps it"
    raise UserError(
        f"{output} is finished and took {took} ({differs}); "
        "--overwrite replaces it, another --run_id stands beside it"
    )


class TrainingState:
    """Weights, optimizers and position of a training, saved to one file.

    No generator is stored: every draw is derived from (seed, purpose, epoch, index), so that with
    the same position and weights the next step is the same, bit for bit on one CPU.

    Args:
        path: the file, in the run's folder.
        made_of: what must not change between the interrupted and the resumed run.
        stateful: name -> module, optimizer or scaler (anything with state_dict and
            load_state_dict).
        minutes: least time between two saves by `save_if_due`.
    """

    def __init__(self, path: Path, made_of: Recipe, stateful: dict[str, Any], minutes: float = 5.0):
        self.path, self.made_of, self.stateful, self.minutes = path, made_of, stateful, minutes
        self.last_save = self._started = time.monotonic()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """How long it was trained, over all resumes."""
        return self._seconds_before + time.monotonic() - self._started

    def save(self, position: dict[str, Any]) -> None:
        """Rank 0 saves now; `position` holds plain values: epoch, step, best score, history."""
        if not is_main():
            return
        content = {
            "made_of": asdict(self.made_of),
            "position": position,
            "states": {name: item.state_dict() for name, item in self.stateful.items()},
            "seconds": self.seconds,
        }
        save_checkpoint(self.path, content)
        self.last_save = time.monotonic()

    def save_if_due(self, position: dict[str, Any]) -> None:
        """Saves if the last save is older than `minutes`."""
        if time.monotonic() - self.last_save >= 60 * self.minutes:
            self.save(position)

    def is_complete(self, output: Path, params: CommonParams) -> bool:
        """`is_finished` of this state."""
        return is_finished(output, self.path, self.made_of, params)

    def restore(self, resume: bool) -> dict[str, Any] | None:
        """Loads the saved state if `resume` and there is one; its position, or None for a fresh
        start, which sets an unfinished state aside. A script calls it once its inputs are read.

        Raises:
            UserError: the state was made of something else.
        """
        if not self.path.is_file():
            return None
        if not resume:
            if is_main():
                _set_aside(self.path)
            return None
        saved = load_checkpoint(self.path)
        if "made_of" not in saved:
            raise UserError(
                f"{self.path} was saved by an earlier version and does not say of what; "
                "finish it with that version, or start anew without --resume"
            )
        if found := differences(saved["made_of"], self.made_of):
            raise UserError(_other_recipe(self.path, found))
        for name, item in self.stateful.items():
            item.load_state_dict(saved["states"][name])
        self._seconds_before = saved["seconds"]
        return saved["position"]

    def finish(self) -> None:
        """Removes the file, and what kills inside a save have left: the result stands elsewhere."""
        if is_main():
            for file in (self.path, *self.path.parent.glob(".*.tmp")):
                file.unlink(missing_ok=True)


def detached_copy(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as copies on the CPU in contiguous layout, ready to be saved."""
    state = net.state_dict()
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
