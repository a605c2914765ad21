"""Stage 2: a fresh attacker learns private attributes of VISPR from what an anonymizer releases.

    python privacy_training/train_privacy.py --anonymizer
    saved_models/train_anonymizer_paper/best.pth

The leakage is its cMAP on the test split. Writes results/privacy_<run_id>.json and next to it a
table with the paper's numbers (.md) and the predictions on the test pictures (.npz); the attacker
goes to saved_models/<run_id>/attacker.pth. With `--attackers r50 vit raw_trained inversion --seeds
0 1 2` it runs every attacker with every seed, and results/privacy_<run_id>_attackers.json and .md
hold mean, deviation and the strongest attacker. An attacker that cannot run is named there, and the
exit status is 3; with `--resume` what is finished is not done again.
"""

import sys
import time
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(
        0, str(Path(__file__).resolve().parent.parent)
    )  # works in an uninstalled clone, from any folder

import logging
from dataclasses import asdict

import numpy as np

from aux_code import config
from aux_code.artefacts import build_meta, describe_inputs
from aux_code.checkpoints import read_json, save_checkpoint, write_atomically, write_json
from aux_code.devices import prepare_for_training
from aux_code.errors import UserError
from aux_code.parameters import parse
from aux_code.runs import Run, run_script, start_run
from aux_code.training_state import TrainingState, detached_copy
from privacy_training.attack_inputs import fingerprint, input_files
from privacy_training.attack_series import attacks_of_series, run_series, summarise
from privacy_training.attackers import build_attacker
from privacy_training.attribute_prediction import (
    Attack,
    Splits,
    build_average,
    build_optimizer,
    run_attack,
)
from privacy_training.leakage_plots import plot_attributes, plot_samples, sample_indices
from privacy_training.leakage_report import leakage_report
from privacy_training.leakage_tables import attacker_table, paper_table, write_tables
from privacy_training.params_privacy import PRESETS, PrivacyParams
from privacy_training.released_splits import attribute_names, untrained_attributes
from privacy_training.strategies import attack_splits

log = logging.getLogger(__name__)


def main() -> int:
    """One attack, or several attackers and seeds one by one and then the table that names the
    strongest."""
    params = parse(PRESETS, description=__doc__.splitlines()[0])
    for path in params.compare:
        _read_result(path)  # a wrong name shows now, not after the training
    if not params.attackers and not params.seeds:
        attack_once(params)
        return 0
    run_id = params.run_id or f"train_privacy_{params.preset}"
    reports, failed = run_series(attacks_of_series(params, run_id), attack_once)
    summary = summarise(run_id, reports, failed)
    base = config.RESULTS_ROOT / f"privacy_{run_id}_attackers"
    write_json(base.with_name(base.name + ".json"), summary)
    tables = [attacker_table(summary), paper_table([*reports, *_compared(params)])]
    write_tables(base.with_name(base.name + ".md"), tables)
    strongest = summary["strongest"]["validation"]
    cmap = summary["attackers"][strongest]["protocols"]["validation"]["cmap"]["mean"]
    sys.stderr.write(
        f"strongest attacker: {strongest}, cMAP {cmap:.4f} (chance {summary['chance']['cmap']:.4f})\n"
    )
    return 3 if failed else 0


def attack_once(params: PrivacyParams) -> dict:
    """Releases the pictures, trains one attacker on them and writes its report, which is
    returned."""
    start = time.monotonic()
    run = start_run(params, "train_privacy")
    result_path = config.RESULTS_ROOT / f"privacy_{run.run_id}.json"
    if finished := _finished_report(params, run, result_path):
        log.info("%s is complete; nothing to resume", result_path)
        return finished
    names = list(attribute_names(params))
    # weights that do not fit show before the pictures are released, which takes long
    net = build_attacker(params, len(names)) if params.level == "image" else None
    splits, findings = attack_splits(params, run)
    if net is None:
        net = build_attacker(params, len(names), splits.train.releases[0])
    net = prepare_for_training(net, run.device)
    attack = Attack(net, build_optimizer(net, params), params, run, [], build_average(net, params))
    stateful = {"net": attack.net, "optimizer": attack.optimizer}
    stateful |= {} if attack.averaged is None else {"averaged": attack.averaged}
    path = run.folder / "privacy_state.pth"
    state = TrainingState(path, fingerprint(params), stateful, params.minutes_between_saves)
    position = state.restore(params.resume)
    attack.history = position["history"] if position else []
    run_attack(attack, splits, state)

    report = {**_report(attack, splits, names), **findings, "seconds": time.monotonic() - start}
    _write_outputs(attack, splits, report, names)
    state.finish()
    scores = report["protocols"]["validation"]
    sys.stderr.write(
        f"cMAP {scores['cmap']:.4f} (chance {report['chance']['cmap']:.4f}), "
        f"F1 {scores['f1']:.4f} (chance {report['chance']['f1']:.4f})\n"
    )
    return report


def _write_outputs(attack: Attack, splits: Splits, report: dict, names: list[str]) -> None:
    base = config.RESULTS_ROOT / f"privacy_{attack.run.run_id}"
    _save_attacker(attack, report)
    _write_predictions(base.with_name(base.name + ".npz"), attack, splits, report)
    write_json(base.with_name(base.name + ".json"), report)
    write_tables(
        base.with_name(base.name + ".md"), [paper_table([report, *_compared(attack.params)])]
    )
    if attack.params.plots:
        _plot(attack, splits, report, names)


def _read_result(path: Path) -> dict:
    content = read_json(path)
    if (
        not isinstance(content, dict)
        or not {"protocols", "anonymizer", "attacker", "level"} <= content.keys()
    ):
        raise UserError(
            f"--compare {path} is no result of one attack; give results/privacy_<run_id>.json"
        )
    return content


def _compared(params: PrivacyParams) -> list[dict]:
    """The results of --compare that are of the same level: the two tables of the paper differ."""
    results = [_read_result(path) for path in params.compare]
    return [result for result in results if result["level"] == params.level]


def _finished_report(params: PrivacyParams, run: Run, path: Path) -> dict | None:
    """The report of an earlier run if it is there, with its attacker, and of these very parameters
    and inputs."""
    if not params.resume or not path.is_file() or not (run.folder / "attacker.pth").is_file():
        return None
    report = read_json(path)
    written = {**report.get("parameters", {}), "inputs": report.get("inputs")}
    same = all(written.get(key) == value for key, value in fingerprint(params).items())
    return report if same else None


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
    body = leakage_report(attack.history, *labels, names, params)
    body["absent_attributes"] = {"train": untrained_attributes(params), **body["absent_attributes"]}
    tail = {
        "n_pictures": {name: len(images.labels) for name, images in vars(splits).items()},
        "unreadable": {name: images.unreadable for name, images in vars(splits).items()},
        "parameters": asdict(params),
        "inputs": describe_inputs(input_files(params)),
        "device": str(run.device),
    }
    return {**head, **body, **tail}


def _write_predictions(path: Path, attack: Attack, splits: Splits, report: dict) -> None:
    """names (N), probabilities and labels (N, n_attributes) of the test pictures, at the epoch
    validation chose."""
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
    plot_attributes(
        base.with_name(base.name + "_attributes.png"), {**others, attack.run.run_id: report}
    )
    if params.level == "image":
        chosen = sample_indices(len(splits.test.labels))
        predictions = attack.history[report["protocols"]["validation"]["epoch"] - 1]["test"][chosen]
        pictures, labels = splits.test.release(0).cpu()[chosen], splits.test.labels.cpu()[chosen]
        plot_samples(
            base.with_name(base.name + "_samples.png"), pictures, predictions, labels, names
        )


def _save_attacker(attack: Attack, report: dict) -> None:
    architecture = getattr(
        attack.reader, "architecture", {"arch": attack.params.attacker, "arguments": {}}
    )
    metrics = {f"test_cmap_{name}": scores["cmap"] for name, scores in report["protocols"].items()}
    meta = build_meta(
        "train_privacy", {"fb": architecture}, attack.params, input_files(attack.params), metrics
    )
    checkpoint = {
        "fb_model_state_dict": detached_copy(attack.reader),
        "epoch": len(attack.history),
        "meta": meta,
    }
    save_checkpoint(attack.run.folder / "attacker.pth", checkpoint)


if __name__ == "__main__":
    run_script(main)
