"""A run: its folder, resolved parameters, seeds, device, logs, and the way its script ends."""

import errno
import hashlib
import logging
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from aux_code import config, distributed
from aux_code.checkpoints import write_json
from aux_code.devices import start_device
from aux_code.errors import UserError
from aux_code.parameters import CommonParams

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Run:
    """One run of one script; made by `start_run`."""

    run_id: str
    stage: str
    folder: Path
    device: torch.device

    @cached_property
    def writer(self):
        """TensorBoard writer at LOGS_ROOT/<run_id>, made when first used; only rank 0 writes."""
        if not distributed.is_main():
            return _NoWriter()
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(config.LOGS_ROOT / self.run_id))

    def write_parameters(self, params: CommonParams) -> None:
        """Rank 0 writes the resolved parameters to the folder. A script calls it once it has read
        all its inputs, so that those of a refused run replace no others."""
        if distributed.is_main():
            resolved = {"stage": self.stage, **asdict(params), "run_id": self.run_id}
            write_json(self.folder / f"params_{self.stage}.json", resolved)


class _NoWriter:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


GO_ON = "the same command with --resume goes on from the last saved state"


def run_script(main: Callable[[], int | None], go_on: str = GO_ON) -> None:
    """Runs a script's main and ends the process: 0 done, 2 wrong usage or input, 3 done with failed
    inputs. `go_on` is said after an interruption."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        status = main() or 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        status = 2
    except OSError as error:
        # A path or a full disk is the user's to mend; an error without a path is the program's.
        if error.filename is None and error.errno not in _FULL_DISK:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        remedy = "make it accessible or choose another path"
        sys.stderr.write(f"error: {where}{error.strerror or error}; {remedy}\n")
        status = 2
    except RuntimeError as error:
        if not distributed.tells_of_a_lost_process(error):
            raise
        first_line = str(error).strip().splitlines()[0]
        lost = f"rank {distributed.rank()} lost another process of this job ({first_line})"
        sys.stderr.write(f"error: {lost}; {go_on}\n")
        status = 1
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {go_on}\n")
        status = 130
    except Terminated:
        sys.stderr.write(f"terminated; {go_on}\n")
        status = 143
    if status not in (1, 2):  # else another process may be gone, or still wait for this one
        distributed.leave()
    raise SystemExit(status)


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it passes through `except Exception`."""


def _raise_terminated(signum: int, frame: object) -> None:
    raise Terminated


class InterruptRequest:
    """Turns the first Ctrl-C or SIGTERM into a request that a loop honours between two steps.

    Used as a context manager around the loop: `requested` tells that it is time to save, and
    `honour` then ends the script as the signal would have. A second signal ends it at once.
    """

    def __init__(self):
        self.requested: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "InterruptRequest":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        if self.requested is not None:
            self.honour()
        self.requested = signum

    def honour(self) -> None:
        """Raises what the signal stands for."""
        raise KeyboardInterrupt if self.requested == signal.SIGINT else Terminated


def run_folder(params: CommonParams, stage: str) -> Path:
    """SAVED_MODELS_ROOT/<run_id>; without --run_id it is called after script and preset."""
    return config.SAVED_MODELS_ROOT / (params.run_id or f"{stage}_{params.preset}")


def start_run(params: CommonParams, stage: str) -> Run:
    """Seeds every generator and chooses the device; writes nothing.

    A script that can resume asks `training_state.is_finished` before, which may refuse the run.

    Raises:
        UserError: `--device cuda` without a GPU that can be used.
    """
    folder = run_folder(params, stage)
    seed_everything(params.seed)
    if params.n_threads:
        torch.set_num_threads(params.n_threads)
    device = start_device(params.device, getattr(params, "precision", "fp32"))
    return Run(folder.name, stage, folder, device)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_seed(*keys: object) -> int:
    """A 63-bit seed that depends on every key and on their order; equal on every machine."""
    text = "\x1f".join(map(repr, keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded_generator(*keys: object) -> torch.Generator:
    """A CPU generator for one draw, e.g. of (seed, "views", epoch, index): no state to save."""
    return torch.Generator().manual_seed(derived_seed(*keys))
