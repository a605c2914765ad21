"""Checkpoints of MGFN: how a network is built from parameters, saved, and read from any origin."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from anomaly_detection_mgfn.feature_bags import FEATURE_KEYS
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from aux_code.artefacts import Recipe, build_meta
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError
from aux_code.models.weight_files import load_strictly, read_weight_file


def network_arguments(params: MgfnParams, feature_dim: int) -> dict[str, Any]:
    """Keyword arguments of MGFN for these parameters."""
    return {
        "feature_dim": feature_dim, "dims": list(params.dims), "depths": list(params.depths),
        "dropout": params.dropout, "magnitude_ratio": params.magnitude_ratio,
    }  # fmt: skip


def checkpoint_meta(
    params: MgfnParams, made_of: Recipe, manifest: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """What a checkpoint says of its network, and of the features (their manifest) that it takes;
    `seconds` of training, over all resumes. The metrics are to be filled in."""
    arguments = network_arguments(params, manifest["feature_dim"])
    architectures = {"mgfn": {"arch": "mgfn", "arguments": arguments}}
    meta = build_meta("main", architectures, params, made_of, {}, seconds)
    features = {key: manifest.get(key) for key in FEATURE_KEYS}
    return {**meta, "features": json.loads(json.dumps(features))}


def save_network(path: Path, weights: dict[str, Tensor], epoch: int, meta: dict[str, Any]) -> None:
    """Writes a checkpoint that says how its network is built."""
    save_checkpoint(path, {"mgfn_model_state_dict": weights, "epoch": epoch, "meta": meta})


class LoadedNetwork(NamedTuple):
    """A network from a file."""

    net: MGFN
    epoch: int
    meta: dict[str, Any]
    """Empty for a published state dict."""


def load_network(path: Path | str) -> LoadedNetwork:
    """Loads a checkpoint of this stage or a published state dict, whose sizes its weights tell.

    Raises:
        UserError: not a checkpoint of MGFN; the message lists what is missing, unexpected and
            mis-shaped.
    """
    file = read_weight_file(path, "mgfn")
    arguments = (file.architecture or {}).get("arguments") or published_arguments(path, file.state)
    try:
        net = MGFN(**arguments)
    except TypeError as error:
        raise UserError(f"{path}: MGFN does not take {arguments} ({error})") from error
    load_strictly(net, file)
    return LoadedNetwork(net, file.epoch, file.meta)


def published_arguments(path: Path | str, weights: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the network that a bare state dict was saved from.

    Raises:
        UserError: the entries are not those of MGFN.
    """
    dims, depths = [], []
    for stage in range(3):
        prefix = f"stages.{stage}.0.layers."
        if not {f"{prefix}0.0.bias", "to_tokens.weight"} <= weights.keys():
            missing = f"to_tokens.weight, {prefix}0.0.bias"
            raise UserError(f"{path}: no MGFN weights ({missing} are missing)")
        blocks = {int(k.removeprefix(prefix).split(".")[0]) for k in weights if prefix in k}
        dims.append(len(weights[f"{prefix}0.0.bias"]))
        depths.append(1 + max(blocks))
    feature_dim = weights["to_tokens.weight"].shape[1]
    return {"feature_dim": feature_dim, "dims": dims, "depths": depths}
