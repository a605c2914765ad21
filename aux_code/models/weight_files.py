"""Weight files of every origin -> one flat state dict, and strict loading that says what does not
fit."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aux_code.checkpoints import load_checkpoint
from aux_code.errors import UserError

logger = logging.getLogger(__name__)

_GENERIC_KEYS = ("state_dict", "model_state_dict", "model")
_MAX_NAMES = 12


class WeightFile(NamedTuple):
    """What was read from a file."""

    path: Path
    state: dict[str, Tensor]
    """Entry name -> tensor, without the prefix `module.`."""
    architecture: dict[str, Any] | None
    """{"arch", "arguments"} of the network where the file describes itself, else None."""
    bare: bool
    """True for a state dict alone, without a checkpoint around it."""
    epoch: int = 0
    """After which it was saved, as the file says."""
    meta: dict[str, Any] = {}
    """What a checkpoint of ours says of itself; empty for others."""


def read_weight_file(path: Path | str, role: str) -> WeightFile:
    """Reads the state dict of one network.

    Reads our checkpoints, the published ones (key `<role>_model_state_dict`, beside optimizer
    states), a state dict alone, and a file or a folder with `model.safetensors`. Nothing in the
    file is executed.

    Args:
        path: file or folder.
        role: "fa", "ft", "fb" or "mgfn".

    Raises:
        UserError: missing, empty, truncated or of another kind, or it holds other networks only.
    """
    path = Path(path)
    if path.is_dir():
        return WeightFile(path, _read_safetensors(path / "model.safetensors"), None, True)
    if path.suffix == ".safetensors":
        return WeightFile(path, _read_safetensors(path), None, True)
    content = load_checkpoint(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict"
        )
    key = f"{role}_model_state_dict"
    present = [k for k in content if str(k).endswith("_model_state_dict")]
    generic = [k for k in _GENERIC_KEYS if isinstance(content.get(k), dict)]
    if key in content:
        meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
        epoch = content.get("epoch") if isinstance(content.get("epoch"), int) else 0
        return WeightFile(
            path, _clean(content[key], path), _architecture(content, role), False, epoch, meta
        )
    if present:
        raise UserError(
            f"{path} has no '{key}'; it holds {', '.join(present)}: give the file of another stage"
        )
    if generic:
        return WeightFile(
            path, _clean(content[generic[0]], path), _architecture(content, role), True
        )
    return WeightFile(path, _clean(content, path), None, True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} does not exist; a model folder must hold model.safetensors")
    try:
        return _clean(load_file(path), path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is empty, truncated or not a safetensors file ({error})"
        ) from error


def _clean(state: Any, path: Path) -> dict[str, Tensor]:
    """Checks that it is a flat dict of tensors and takes off `module.`, which DataParallel puts
    before every name."""
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no weights")
    strange = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise UserError(f"{path} is no state dict: not tensors: {name_some(strange)}")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _architecture(content: dict, role: str) -> dict[str, Any] | None:
    meta = content.get("meta")
    architectures = meta.get("architectures") if isinstance(meta, dict) else None
    described = architectures.get(role) if isinstance(architectures, dict) else None
    return described if isinstance(described, dict) and "arch" in described else None


class Mismatch(NamedTuple):
    """How a state dict differs from a network's."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __bool__(self) -> bool:
        return any((self.missing, self.unexpected, self.misshaped))


def compare(network: nn.Module, state: dict[str, Tensor]) -> Mismatch:
    """Lists by name what is missing, unexpected and of another shape in `state`."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return Mismatch(missing, unexpected, misshaped)


def with_current_names(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames batch-norm entries saved as `scale` (frozen ones of the release) and adds counters
    that those lack."""
    wanted = network.state_dict()
    renamed = {}
    for name, tensor in state.items():
        weight = name.removesuffix("scale") + "weight"
        is_old = name.endswith(".scale") and name not in wanted and weight in wanted
        renamed[weight if is_old else name] = tensor
    for name, tensor in wanted.items():
        if (
            name.endswith("num_batches_tracked")
            and name.replace("num_batches_tracked", "running_var") in renamed
        ):
            renamed.setdefault(name, torch.zeros_like(tensor))
    return renamed


def load_strictly(
    network: nn.Module, file: WeightFile, fitting: Callable[[WeightFile], str] | None = None
) -> None:
    """Copies the file's weights into the network; every name and shape must agree.

    Args:
        network: receives the weights.
        file: of `read_weight_file`.
        fitting: file -> description of the architecture it fits, or an empty string; asked on a
            mismatch.

    Raises:
        UserError: lists what is missing, unexpected and mis-shaped, and the architecture that would
            fit.
    """
    state = with_current_names(network, file.state)
    mismatch = compare(network, state)
    if mismatch:
        raise UserError(_explain(file, network, mismatch, fitting(file) if fitting else ""))
    network.load_state_dict(state)


class Adapted(NamedTuple):
    """Weights of another task, under a network's names."""

    state: dict[str, Tensor]
    fresh: tuple[str, ...]
    """Prefixes of the entries that keep their random initialisation where they are missing or of
    another shape."""

    def completed(self, network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """(a state dict with the network's own entries in place of those, their names)."""
        wanted, state = network.state_dict(), with_current_names(network, self.state)
        state = {
            name: tensor
            for name, tensor in state.items()
            if not (
                name.startswith(self.fresh)
                and name in wanted
                and tensor.shape != wanted[name].shape
            )
        }
        kept = [name for name in wanted if name not in state and name.startswith(self.fresh)]
        return {**{name: wanted[name] for name in kept}, **state}, kept


def load_partly(
    network: nn.Module,
    file: WeightFile,
    adapted: Adapted,
    fitting: Callable[[WeightFile], str] | None = None,
) -> None:
    """Copies weights of another task; what `adapted` leaves out is logged by name.

    Args:
        network: receives the weights.
        file: where they come from, for messages.
        adapted: the weights under the network's names.
        fitting: as in `load_strictly`.

    Raises:
        UserError: another entry is missing, unexpected or mis-shaped.
    """
    complete, kept = adapted.completed(network)
    mismatch = compare(network, complete)
    if mismatch:
        raise UserError(_explain(file, network, mismatch, fitting(file) if fitting else ""))
    network.load_state_dict(complete)
    if kept:
        logger.warning(
            "%s: re-initialised, because the file has none that fit: %s", file.path, ", ".join(kept)
        )


def _explain(file: WeightFile, network: nn.Module, mismatch: Mismatch, fits: str) -> str:
    lines = [f"the weights in {file.path} do not fit {type(network).__name__}:"]
    lines += [
        f"  {kind}: {name_some(names)}" for kind, names in mismatch._asdict().items() if names
    ]
    lines.append(f"  they fit {fits}" if fits else "  no known architecture fits them")
    return "\n".join(lines)


def name_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
