"""What stage 4 writes and reads besides features: checkpoints of MGFN, results, scores of the test
videos."""

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from anomaly_detection_mgfn.feature_bags import FeatureSource
from anomaly_detection_mgfn.ground_truth import VideoTruth
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.scoring import category_metrics, false_alarm_rate, weighted_scores
from aux_code.artefacts import build_meta
from aux_code.checkpoints import save_checkpoint, write_atomically
from aux_code.errors import UserError
from aux_code.models.weight_files import load_strictly, read_weight_file

FEATURE_KEYS = (
    *("frames_per_clip", "stride", "frames_per_feature", "crop", "size", "feature_dim", "n_crops"),
    *("anonymizer", "utility"),
)
"""Manifest fields that a checkpoint carries, so that a new video can be extracted as the training
videos were."""


def network_arguments(params: MgfnParams, feature_dim: int) -> dict[str, Any]:
    """Keyword arguments of MGFN for these parameters."""
    return {
        "feature_dim": feature_dim,
        "dims": list(params.dims),
        "depths": list(params.depths),
        "dropout": params.dropout,
        "magnitude_ratio": params.magnitude_ratio,
    }


def build_network(arguments: dict[str, Any]) -> MGFN:
    """MGFN from the arguments that a checkpoint's meta holds."""
    lists = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    return MGFN(**lists)


def save_network(
    path: Path,
    weights: dict[str, Tensor],
    epoch: int,
    params: MgfnParams,
    source: FeatureSource,
    metrics: dict,
) -> None:
    """Writes a checkpoint that says how its network is built and which features it takes."""
    architectures = {
        "mgfn": {"arch": "mgfn", "arguments": network_arguments(params, source.feature_dim)}
    }
    meta = build_meta("main", architectures, params, {"manifest": source.location}, metrics)
    meta["features"] = json.loads(
        json.dumps({key: source.manifest.get(key) for key in FEATURE_KEYS})
    )
    save_checkpoint(path, {"mgfn_model_state_dict": weights, "epoch": epoch, "meta": meta})


class LoadedNetwork(NamedTuple):
    """A network from a file."""

    net: MGFN
    epoch: int
    meta: dict[str, Any]
    """Empty for a published state dict."""


def load_network(path: Path | str) -> LoadedNetwork:
    """Loads a checkpoint of this stage or a published bare state dict (its sizes are read off the
    weights).

    Raises:
        UserError: not a checkpoint of MGFN; the message lists what is missing, unexpected and
            mis-shaped.
    """
    file = read_weight_file(path, "mgfn")
    arguments = (file.architecture or {}).get("arguments") or published_arguments(path, file.state)
    try:
        net = build_network(arguments)
    except TypeError as error:
        raise UserError(
            f"{path}: MGFN does not take these arguments: {arguments} ({error})"
        ) from error
    load_strictly(net, file)
    return LoadedNetwork(net, file.epoch, file.meta)


def published_arguments(path: Path | str, weights: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the network that a bare state dict was saved from.

    Raises:
        UserError: the entries are not those of MGFN.
    """
    dims, depths = [], []
    for stage in range(3):
        norm = weights.get(f"stages.{stage}.0.layers.0.0.bias")
        if not isinstance(norm, Tensor) or not isinstance(weights.get("to_tokens.weight"), Tensor):
            raise UserError(
                f"{path}: no MGFN weights (to_tokens.weight, stages.{stage}.0.layers.0.0.bias are missing)"
            )
        prefix = f"stages.{stage}.0.layers."
        dims.append(int(norm.shape[0]))
        depths.append(
            1
            + max(
                int(key[len(prefix) :].split(".")[0]) for key in weights if key.startswith(prefix)
            )
        )
    return {
        "feature_dim": int(weights["to_tokens.weight"].shape[1]),
        "dims": dims,
        "depths": depths,
    }


def frame_metrics(clip_scores: list[np.ndarray], truths: list[VideoTruth]) -> dict[str, float]:
    """{"auc", "ap" (PR area by trapezoids, as published), "average_precision" (step-wise)} over all
    test frames."""
    metrics = weighted_scores(clip_scores, truths).metrics()
    return {
        "auc": metrics.roc_auc,
        "ap": metrics.pr_auc,
        "average_precision": metrics.average_precision,
    }


def describe_test(
    clip_scores: list[np.ndarray], truths: list[VideoTruth], params: MgfnParams
) -> dict[str, Any]:
    """The part of the results that belongs to one set of scores: per category, false alarms,
    videos, chance."""
    items = weighted_scores(clip_scores, truths)
    positives, negatives = items.positives.sum(), items.negatives.sum()
    return {
        "per_category": category_metrics(clip_scores, truths),
        "false_alarm_rate": false_alarm_rate(clip_scores, truths, params.threshold),
        "false_alarm_threshold": params.threshold,
        "chance_ap": float(positives / (positives + negatives)),
        "videos": [
            {
                "name": t.name,
                "category": t.category,
                "n_frames": t.n_frames,
                "events": [list(e) for e in t.events],
            }
            for t in truths
        ],
        "parameters": asdict(params),
    }


def write_scores(path: Path, names: list[str], clip_scores: list[np.ndarray]) -> None:
    """Writes an .npz with one float32 array (n_clips,) per test video, keyed by the video's name
    (any characters)."""

    def write(file) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, scores in zip(names, clip_scores, strict=True):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(
                        entry, np.asarray(scores, dtype=np.float32), allow_pickle=False
                    )

    write_atomically(path, write)
