"""Weight files of every origin -> one flat state dict; strict loading that says what is amiss."""

import logging
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
    """A state dict alone, without a checkpoint around it."""
    epoch: int = 0
    """After which it was saved, as the file says."""
    meta: dict[str, Any] = {}
    """What a checkpoint of ours says of itself; empty for others."""


def read_weight_file(path: Path | str, role: str) -> WeightFile:
    """The state dict of one network; nothing in the file is executed.

    Reads our checkpoints, the published ones (key `<role>_model_state_dict`, beside optimizer
    states), a state dict alone, and a file or a folder with `model.safetensors`.

    `role`: "fa", "ft", "fb" or "mgfn". A UserError for a path that is missing, empty, truncated, of
    another kind, or holds other networks only.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        file = path / "model.safetensors" if path.is_dir() else path
        return WeightFile(path, _read_safetensors(file), None, True)
    content = load_checkpoint(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path} holds a {kind}, not a checkpoint or a state dict")
    key = f"{role}_model_state_dict"
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    architecture = _architecture(meta, role)
    if key in content:
        epoch = content.get("epoch") if isinstance(content.get("epoch"), int) else 0
        return WeightFile(path, _clean(content[key], path), architecture, False, epoch, meta)
    present = [k for k in content if str(k).endswith("_model_state_dict")]
    if present:
        found = f"has no '{key}'; it holds {', '.join(present)}"
        raise UserError(f"{path} {found}: give the file of another stage")
    state = next((content[k] for k in _GENERIC_KEYS if isinstance(content.get(k), dict)), None)
    return WeightFile(path, _clean(state or content, path), architecture if state else None, True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} does not exist; a model folder must hold model.safetensors")
    try:
        return _clean(load_file(path), path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is empty, truncated or no safetensors file ({error})") from error


def _clean(state: Any, path: Path) -> dict[str, Tensor]:
    """A flat dict of tensors, without `module.`, which DataParallel puts before every name."""
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no weights")
    strange = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise UserError(f"{path} is no state dict: not tensors: {name_some(strange)}")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _architecture(meta: dict, role: str) -> dict[str, Any] | None:
    architectures = meta.get("architectures")
    described = architectures.get(role) if isinstance(architectures, dict) else None
    return described if isinstance(described, dict) and "arch" in described else None


def download(weights: Any, what: str, remedy: str) -> WeightFile:
    """Weights by torchvision's own mechanism: its cache, else its download.

    Raises:
        UserError: no network; it says `remedy`, with the place in the cache for its `{cached}`.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        elsewhere = f"Without a network, fetch {weights.url} elsewhere and"
        problem = f"the {what} could not be downloaded ({error})"
        raise UserError(f"{problem}. {elsewhere} {remedy.format(cached=cached)}") from error
    logger.info("weights %s from %s", weights, cached)
    return WeightFile(cached, dict(state), None, True)


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
    """Renames batch-norm entries saved as `scale` (frozen ones of the release), adds counters."""
    wanted = network.state_dict()
    renamed = {}
    for name, tensor in state.items():
        weight = name.removesuffix("scale") + "weight"
        is_old = name.endswith(".scale") and name not in wanted and weight in wanted
        renamed[weight if is_old else name] = tensor
    for name, tensor in wanted.items():
        norm, dot, entry = name.rpartition(".")
        if entry == "num_batches_tracked" and f"{norm}{dot}running_var" in renamed:
            renamed.setdefault(name, torch.zeros_like(tensor))
    return renamed


def load_strictly(network: nn.Module, file: WeightFile) -> None:
    """Copies the file's weights into the network; every name and shape must agree.

    Raises:
        UserError: lists what is missing, unexpected and mis-shaped, and the file's architecture.
    """
    _copy(network, with_current_names(network, file.state), file)


def _copy(network: nn.Module, state: dict[str, Tensor], file: WeightFile) -> None:
    if mismatch := compare(network, state):
        lines = [f"the weights in {file.path} do not fit {type(network).__name__}:"]
        lines += [f"  {what}: {name_some(ns)}" for what, ns in mismatch._asdict().items() if ns]
        which = "the one that it was saved from, which it does not state"
        if described := file.architecture:
            which = f"{described['arch']} with {described.get('arguments', {})}"
        lines.append(f"  give the file's architecture: {which}")
        raise UserError("\n".join(lines))
    network.load_state_dict(state)


class Adapted(NamedTuple):
    """Weights of another task, under a network's names."""

    state: dict[str, Tensor]
    fresh: tuple[str, ...]
    """Prefixes of entries that stay random where they are missing or of another shape."""

    def completed(self, network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """(a state dict with the network's own entries in place of those, their names)."""
        wanted, state = network.state_dict(), with_current_names(network, self.state)
        for name, tensor in wanted.items():
            if name.startswith(self.fresh) and name in state and state[name].shape != tensor.shape:
                del state[name]
        kept = [name for name in wanted if name not in state and name.startswith(self.fresh)]
        return {**{name: wanted[name] for name in kept}, **state}, kept


def load_partly(network: nn.Module, file: WeightFile, adapted: Adapted) -> None:
    """Copies weights of another task; what `adapted` leaves out is logged by name.

    `file` names them in messages. A UserError if another entry is missing or does not fit.
    """
    complete, kept = adapted.completed(network)
    _copy(network, complete, file)
    if kept:
        what = "re-initialised, because the file has none that fit"
        logger.warning("%s: %s: %s", file.path, what, ", ".join(kept))


def name_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
