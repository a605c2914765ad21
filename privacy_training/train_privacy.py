"""Stage 2: a fresh attacker learns private attributes of VISPR from what an anonymizer releases.

    python privacy_training/train_privacy.py --anonymizer saved_models/train_anonymizer_paper/best.pth

The leakage is its cMAP on the test split. Writes results/privacy_<run_id>.json, the predictions on the test pictures
beside it (.npz), and the attacker to saved_models/<run_id>/attacker.pth.
"""

import sys
import time
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works in an uninstalled clone, from any folder

from dataclasses import asdict

import numpy as np

from aux_code import config
from aux_code.checkpoints import (
    build_meta,
    describe_inputs,
    read_json,
    save_checkpoint,
    write_atomically,
    write_json,
)
from aux_code.parameters import parse
from aux_code.runs import run_script, start_run
from aux_code.training_networks import prepare_for_training
from aux_code.training_state import TrainingState, detached_copy
from privacy_training.attackers import build_attacker
from privacy_training.attribute_prediction import Attack, Splits, build_optimizer, run_attack
from privacy_training.leakage_plots import plot_attributes, plot_samples, sample_indices
from privacy_training.leakage_report import leakage_report
from privacy_training.params_privacy import PRESETS, PrivacyParams
from privacy_training.released_splits import attribute_names
from privacy_training.strategies import attack_splits


def main() -> None:
    """Releases the pictures, trains the attacker, writes the report."""
    params = parse(PRESETS, description=__doc__.splitlines()[0])
    start = time.monotonic()
    for path in params.compare:
        read_json(path)  # a wrong name shows now, not after the training
    run = start_run(params, "train_privacy")
    splits, findings = attack_splits(params, run)
    names = list(attribute_names(params))

    net = prepare_for_training(build_attacker(params, len(names), splits.train.releases[0]), run.device)
    attack = Attack(net, build_optimizer(net, params), params, run, history=[])
    stateful = {"net": attack.net, "optimizer": attack.optimizer}
    path = run.folder / "privacy_state.pth"
    state = TrainingState(path, _fingerprint(params), stateful, params.minutes_between_saves)
    position = state.restore(params.resume)
    attack.history = position["history"] if position else []
    run_attack(attack, splits, state)

    report = {**_report(attack, splits, names), **findings, "seconds": time.monotonic() - start}
    _save_attacker(attack, report)
    _write_predictions(config.RESULTS_ROOT / f"privacy_{run.run_id}.npz", attack, splits, report)
    write_json(config.RESULTS_ROOT / f"privacy_{run.run_id}.json", report)
    if params.plots:
        _plot(attack, splits, report, names)
    state.finish()
    scores = report["protocols"]["validation"]
    sys.stderr.write(f"cMAP {scores['cmap']:.4f} (chance {report['chance']['cmap']:.4f}), F1 {scores['f1']:.4f}\n")


def _report(attack: Attack, splits: Splits, names: list[str]) -> dict:
    params, run = attack.params, attack.run
    labels = [images.labels.cpu().numpy() for images in (splits.validation, splits.test)]
    head = {
        "run_id": run.run_id,
        "level": params.level,
        "attacker": params.attacker,
        "anonymizer": params.anonymizer,
        "average_frames": params.average_frames,
    }
    body = leakage_report(attack.history, *labels, names, params.n_bootstrap, params.seed)
    tail = {"parameters": asdict(params), "inputs": describe_inputs(_inputs(params)), "device": str(run.device)}
    return {**head, **body, **tail}


def _inputs(params: PrivacyParams) -> dict:
    files = {"fa": params.anonymizer, "ft": params.utility, "attacker": params.attacker_weights, "boxes": params.boxes}
    return {role: path for role, path in files.items() if path is not None}


def _fingerprint(params: PrivacyParams) -> dict:
    """What must not change between an interrupted and a resumed run: parameters and the content of the inputs."""
    return {**asdict(params), "inputs": describe_inputs(_inputs(params))}


def _write_predictions(path: Path, attack: Attack, splits: Splits, report: dict) -> None:
    """names (N), probabilities and labels (N, n_attributes) of the test pictures, at the epoch validation chose."""
    epoch = report["protocols"]["validation"]["epoch"]
    arrays = {
        "names": np.array(splits.test.names),
        "probabilities": attack.history[epoch - 1]["test"].numpy(),
        "labels": splits.test.labels.cpu().numpy(),
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def _plot(attack: Attack, splits: Splits, report: dict, names: list[str]) -> None:
    params, base = attack.params, config.RESULTS_ROOT / f"privacy_{attack.run.run_id}"
    others = {str(path.stem).removeprefix("privacy_"): read_json(path) for path in params.compare}
    plot_attributes(base.with_name(base.name + "_attributes.png"), {**others, attack.run.run_id: report})
    if params.level == "image":
        chosen = sample_indices(len(splits.test.labels))
        predictions = attack.history[report["protocols"]["validation"]["epoch"] - 1]["test"][chosen]
        pictures, labels = splits.test.release(0).cpu()[chosen], splits.test.labels.cpu()[chosen]
        plot_samples(base.with_name(base.name + "_samples.png"), pictures, predictions, labels, names)


def _save_attacker(attack: Attack, report: dict) -> None:
    architecture = getattr(attack.net, "architecture", {"arch": attack.params.attacker, "arguments": {}})
    metrics = {f"test_cmap_{name}": scores["cmap"] for name, scores in report["protocols"].items()}
    meta = build_meta("train_privacy", {"fb": architecture}, attack.params, _inputs(attack.params), metrics)
    checkpoint = {"fb_model_state_dict": detached_copy(attack.net), "epoch": len(attack.history), "meta": meta}
    save_checkpoint(attack.run.folder / "attacker.pth", checkpoint)


if __name__ == "__main__":
    run_script(main)
