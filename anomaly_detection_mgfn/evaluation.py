"""The three protocols side by side, the evaluation of a given checkpoint, and several seeds."""

import logging
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomaly_detection_mgfn.feature_bags import FeatureSource, check_detector, load_videos
from anomaly_detection_mgfn.ground_truth import LabelledVideos, VideoTruth
from anomaly_detection_mgfn.mgfn_files import checkpoint_meta, load_network, save_network
from anomaly_detection_mgfn.mil_training import MilTraining, TrainingData
from anomaly_detection_mgfn.params_mgfn import MgfnParams, dataset_label
from anomaly_detection_mgfn.scoring import (
    category_metrics,
    false_alarm_rate,
    score_videos,
    weighted_scores,
)
from anomaly_detection_mgfn.stage_data import label_videos, open_features
from aux_code import config
from aux_code.artefacts import describe_inputs
from aux_code.checkpoints import read_json, write_atomically, write_json
from aux_code.devices import environment
from aux_code.errors import UserError
from aux_code.runs import Run
from aux_code.series import in_words, mean_and_deviation, over_seeds
from aux_code.training_state import detached_copy

log = logging.getLogger(__name__)

FILES = {"last": "last.pth", "validation": "best.pth", "best_on_test": "best_on_test.pth"}
"""Protocol -> checkpoint."""
SHOWN = ("validation", "checkpoint", "last")
"""Protocols whose clip scores are the run's."""


def results_path(params: MgfnParams) -> Path:
    """results/anomaly_<dataset>_<run_id>.json."""
    return config.RESULTS_ROOT / f"anomaly_{dataset_label(params.dataset)}_{params.run_id}.json"


class Evaluated(NamedTuple):
    """What a results file tells of the test videos."""

    protocols: dict[str, dict[str, float]]
    """Name -> `frame_metrics` and epoch."""
    clip_scores: dict[str, list[np.ndarray]]
    """Protocol -> of each test video, (n_clips,)."""
    videos: LabelledVideos
    made_of: dict[str, Any]
    """`inputs` and `extraction`, of a training also `data` and `in_force`."""
    seconds: float


def evaluate_choices(
    training: MilTraining, data: TrainingData, source: FeatureSource, videos: LabelledVideos
) -> dict[str, Any]:
    """Scores the test videos with all choices of weights and writes everything; returns what the
    results file holds. Its scores, categories and false alarms are those of `validation`, without
    held-out videos of `last`."""
    params, net, made_of = training.params, training.net, training.state.made_of
    seconds = training.state.seconds
    weights = {"last": (training.epoch, detached_copy(net))}
    weights |= {name: (choice.epoch, choice.weights) for name, choice in training.choices.items()}
    protocols, clip_scores = {}, {}
    for name, (epoch, state) in weights.items():
        net.load_state_dict(state)
        scores = score_videos(net, data.test, training.run.device, params.clips_per_pass)
        protocols[name] = {**frame_metrics(scores, data.truths), "epoch": epoch}
        clip_scores[name] = scores
    meta = checkpoint_meta(params, made_of, source.manifest, seconds)
    for name, (epoch, state) in weights.items():
        own = {**meta, "metrics": protocols[name]}
        save_network(training.folder / FILES[name], state, epoch, own)
    recorded = {kind: getattr(made_of, kind) for kind in ("inputs", "data", "in_force")}
    recorded["extraction"] = how_extracted(source)
    found = Evaluated(protocols, clip_scores, videos, recorded, seconds)
    return write_results(params, training.run, found)


def keep_training(params: MgfnParams) -> None:
    """UserError if an evaluation of a checkpoint would replace the results of a training."""
    path = results_path(params)
    trained = path.is_file() and "checkpoint" not in read_json(path).get("protocols", {})
    if trained and not params.overwrite:
        remedy = "give another --run_id, or --overwrite to replace it"
        raise UserError(f"{path} is the result of a training; {remedy}")


def evaluate_checkpoint(params: MgfnParams, run: Run) -> None:
    """--eval_only: scores the test videos with a checkpoint of this stage or a published one.

    Raises:
        UserError: not exactly one of the two files is named, or it takes other features.
    """
    if bool(params.checkpoint) == bool(params.pretrained_ckpt):
        raise UserError("--eval_only needs either --checkpoint PATH or --pretrained_ckpt PATH")
    started, path = time.monotonic(), params.checkpoint or params.pretrained_ckpt
    loaded = load_network(path)
    source = open_features(params)
    if loaded.net.feature_dim != source.feature_dim:
        raise UserError(
            f"{path} takes features of dimension {loaded.net.feature_dim}, but those of "
            f"{source.location} have {source.feature_dim}; give the --features it was trained on"
        )
    check_detector(source, loaded.meta.get("features") or {}, path)
    videos = label_videos(params, source)
    test = load_videos(source, [truth.name for truth in videos.test], params.memory_limit_gib)
    run.write_parameters(params)
    scores = score_videos(loaded.net.to(run.device), test, run.device, params.clips_per_pass)
    protocols = {"checkpoint": {**frame_metrics(scores, videos.test), "epoch": loaded.epoch}}
    inputs = describe_inputs({"checkpoint": path, "manifest": source.location})
    seconds = time.monotonic() - started
    made_of, found = {"inputs": inputs, "extraction": how_extracted(source)}, {"checkpoint": scores}
    write_results(params, run, Evaluated(protocols, found, videos, made_of, seconds))


def how_extracted(source: FeatureSource) -> dict[str, Any]:
    """What the manifest says of decoder, colours, device and precision of the features."""
    keys = ("reader", "colour_conversion", "device_kind", "precision", "environment")
    return {key: source.manifest[key] for key in keys if key in source.manifest}


def frame_metrics(clip_scores: list[np.ndarray], truths: list[VideoTruth]) -> dict[str, float]:
    """{"auc", "ap" (PR area by trapezoids, as published), "average_precision"} of all frames."""
    auc, ap, average_precision = weighted_scores(clip_scores, truths).metrics()
    return {"auc": auc, "ap": ap, "average_precision": average_precision}


def write_results(params: MgfnParams, run: Run, found: Evaluated) -> dict[str, Any]:
    """Writes and returns the results and, beside them, the clip scores of every test video: keyed
    by its name those of `validation` (or of the checkpoint), by PROTOCOL/NAME the others."""
    truths, shown = found.videos.test, next(n for n in SHOWN if n in found.clip_scores)
    label, path = dataset_label(params.dataset), results_path(params)
    arrays = {
        truth.name if protocol == shown else f"{protocol}/{truth.name}": scores
        for protocol, of_videos in found.clip_scores.items()
        for truth, scores in zip(truths, of_videos, strict=True)
    }
    write_scores(path.with_name(f"{path.stem}_scores.npz"), arrays)
    clip_scores = found.clip_scores[shown]
    positives = sum(int(truth.positives.sum()) for truth in truths)
    keys = ("name", "category", "n_frames", "events")
    content = {
        "dataset": label, "run_id": params.run_id,
        "frames_per_feature": truths[0].frames_per_feature, "protocols": found.protocols,
        "missing_videos": found.videos.missing,
        "n_test_videos": found.videos.n_test_videos, **found.made_of,
        "per_category": category_metrics(clip_scores, truths),
        "false_alarm_rate": false_alarm_rate(clip_scores, truths, params.threshold),
        "false_alarm_threshold": params.threshold,
        "chance_ap": positives / sum(truth.n_frames for truth in truths),
        "videos": [{key: getattr(truth, key) for key in keys} for truth in truths],
        "parameters": asdict(params), "device": str(run.device), "seconds": found.seconds,
        "environment": environment(run.device, "fp32" if params.eval_only else params.precision),
    }  # fmt: skip
    write_json(path, content)
    for name, own in found.protocols.items():
        text = "%s, %s (epoch %d): AUC %.4f, AP %.4f"
        log.info(text, label, name, own["epoch"], own["auc"], own["ap"])
    log.info("results in %s", path)
    return content


def write_scores(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz with float32 arrays (n_clips,), whatever their names are."""

    def write(file) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, scores in arrays.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    array = np.asarray(scores, dtype=np.float32)
                    np.lib.format.write_array(entry, array, allow_pickle=False)

    write_atomically(path, write)


def write_seeds(params: MgfnParams, results: Sequence[dict[str, Any]]) -> None:
    """Writes results/anomaly_<dataset>_<run_id>_seeds.json: mean and deviation of the trainings'
    `results`, which are in the order of the seeds."""
    keys = ("auc", "ap", "average_precision")
    areas: dict[str, list[float]] = {}
    for own in results:
        for category, found in own["per_category"].items():
            areas.setdefault(category, []).extend([found["auc"]] if "auc" in found else [])
    summary = {
        "dataset": results[0]["dataset"],
        "run_id": params.run_id,
        "seeds": list(params.seeds),
        "runs": [own["run_id"] for own in results],
        "protocols": {
            name: {key: own[key] for key in keys}
            for name, own in over_seeds([own["protocols"] for own in results]).items()
        },
        "per_category": {name: mean_and_deviation(own) for name, own in areas.items() if own},
        "false_alarm_rate": mean_and_deviation(own["false_alarm_rate"] for own in results),
    }
    path = results_path(params)
    write_json(path.with_name(f"{path.stem}_seeds.json"), summary)
    for name, own in summary["protocols"].items():
        shown = ", ".join(f"{key} {in_words(own[key])}" for key in ("auc", "ap"))
        log.info("%d seeds, %s: %s", len(results), name, shown)
