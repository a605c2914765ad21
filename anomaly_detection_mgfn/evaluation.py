"""The three protocols side by side, and the evaluation of a given checkpoint."""

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from anomaly_detection_mgfn.ground_truth import VideoTruth
from anomaly_detection_mgfn.mgfn_files import (
    describe_test,
    frame_metrics,
    load_network,
    save_network,
    write_scores,
)
from anomaly_detection_mgfn.mil_training import MilTraining
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.scoring import score_videos
from anomaly_detection_mgfn.stage_data import (
    TrainingData,
    dataset_label,
    label_videos,
    load_test_videos,
    open_features,
)
from aux_code import config
from aux_code.artefacts import describe_inputs
from aux_code.checkpoints import write_json
from aux_code.errors import UserError
from aux_code.runs import Run
from aux_code.training_state import detached_copy

log = logging.getLogger(__name__)


class Scored(NamedTuple):
    """Scores to be written."""

    clip_scores: list[np.ndarray]
    """Of each test video, (n_clips,)."""
    started: float
    """time.monotonic() when the script began."""


def evaluate_choices(training: MilTraining, data: TrainingData, started: float) -> dict[str, Any]:
    """Scores the test videos with the last, the validation-chosen and the test-chosen weights, and
    writes everything.

    Returns what the results file holds. The scores file, the categories and the false-alarm rate
    belong to the protocol `validation`.
    """
    params, run, truths = training.params, training.run, data.held_out.truths
    weights: dict[str, tuple[int, dict[str, Tensor]]] = {
        "last": (training.epoch, detached_copy(training.net))
    }
    weights.update(
        {key: (choice.epoch, choice.weights) for key, choice in training.choices.items()}
    )
    protocols, clip_scores = {}, {}
    for name, (epoch, state) in weights.items():
        clip_scores[name] = _scores_with(state, training, data)
        protocols[name] = {**frame_metrics(clip_scores[name], truths), "epoch": epoch}
    for name, (epoch, state) in weights.items():
        file = {"last": "last.pth", "validation": "best.pth", "best_on_test": "best_on_test.pth"}[
            name
        ]
        save_network(training.folder / file, state, epoch, params, data.source, protocols[name])
    inputs = {
        "manifest": data.source.location,
        "anonymizer": data.source.manifest.get("anonymizer", {}).get("name", ""),
        "utility": data.source.manifest.get("utility", {}).get("path", ""),
    }
    results = {
        "protocols": protocols,
        "missing_videos": data.videos.missing,
        "inputs": describe_inputs(inputs),
    }
    return write_results(params, run, results, truths, Scored(clip_scores["validation"], started))


def _scores_with(
    state: dict[str, Tensor], training: MilTraining, data: TrainingData
) -> list[np.ndarray]:
    training.net.load_state_dict(state)
    return score_videos(
        training.net, data.held_out.test, training.run.device, training.params.clips_per_pass
    )


def evaluate_checkpoint(params: MgfnParams, run: Run, started: float) -> int:
    """--eval_only: scores the test videos with a checkpoint of this stage or a published state
    dict.

    Raises:
        UserError: not exactly one of the two files is named, or its network takes features of
            another dimension.
    """
    if bool(params.checkpoint) == bool(params.pretrained_ckpt):
        raise UserError("--eval_only needs either --checkpoint PATH or --pretrained_ckpt PATH")
    path = params.checkpoint or params.pretrained_ckpt
    loaded = load_network(path)
    source = open_features(params)
    if loaded.net.feature_dim != source.feature_dim:
        raise UserError(
            f"{path} takes features of dimension {loaded.net.feature_dim}, but those of {source.location} have "
            f"{source.feature_dim}; give the --features it was trained on"
        )
    videos = label_videos(params, source)
    test = load_test_videos(params, source, videos)
    scores = score_videos(loaded.net.to(run.device), test, run.device, params.clips_per_pass)
    results = {
        "protocols": {"checkpoint": {**frame_metrics(scores, videos.test), "epoch": loaded.epoch}},
        "missing_videos": videos.missing,
        "inputs": describe_inputs({"checkpoint": path, "manifest": source.location}),
    }
    write_results(params, run, results, videos.test, Scored(scores, started))
    return 0


def results_path(params: MgfnParams) -> Path:
    """results/anomaly_<dataset>_<run_id>.json."""
    return config.RESULTS_ROOT / f"anomaly_{dataset_label(params.dataset)}_{params.run_id}.json"


def write_results(
    params: MgfnParams, run: Run, results: dict[str, Any], truths: list[VideoTruth], scored: Scored
) -> dict[str, Any]:
    """Writes and returns the results and, beside them, the clip scores of every test video."""
    clip_scores, started = scored
    label, path = dataset_label(params.dataset), results_path(params)
    write_scores(
        path.with_name(f"{path.stem}_scores.npz"), [truth.name for truth in truths], clip_scores
    )
    content = {
        "dataset": label,
        "run_id": params.run_id,
        "frames_per_feature": truths[0].frames_per_feature,
        **results,
        **describe_test(clip_scores, truths, params),
        "device": str(run.device),
        "seconds": time.monotonic() - started,
    }
    write_json(path, content)
    for name, metrics in results["protocols"].items():
        log.info(
            "%s, %s (epoch %d): AUC %.4f, AP %.4f",
            label,
            name,
            metrics["epoch"],
            metrics["auc"],
            metrics["ap"],
        )
    log.info("results in %s", path)
    return content
