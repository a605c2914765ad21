"""Stage 2: a fresh attacker learns private attributes of VISPR from what an anonymizer releases.

    python privacy_training/train_privacy.py --anonymizer saved_models/RUN/best.pth

The leakage is its cMAP on the test split. Writes results/privacy_<run_id>.json and next to it a
table with the paper's numbers (.md) and the predictions on the test images (.npz); the attacker
goes to saved_models/<run_id>/attacker.pth. With `--attackers r50 vit raw_trained inversion --seeds
0 1 2` it runs every attacker with every seed, and results/privacy_<run_id>_attackers.json and .md
hold mean, deviation and the strongest attacker. An attacker that cannot run is named there, and the
exit status is 3; with `--resume` what is finished is not done again.
"""

import sys
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataclasses import asdict

import numpy as np
import torch

from aux_code import config
from aux_code.artefacts import Recipe, build_meta
from aux_code.checkpoints import read_json, save_checkpoint, write_atomically, write_json
from aux_code.devices import environment, prepare_for_training
from aux_code.errors import UserError
from aux_code.parameters import parse
from aux_code.reporting.figures import save_figure
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import TrainingState, detached_copy
from privacy_training.attack_series import attacks_of_series, run_series, summarise
from privacy_training.attackers import build_attacker
from privacy_training.attribute_prediction import Attack, build_attack, pixel_scale, run_attack
from privacy_training.leakage_plots import plot_attributes, sample_figure, sample_indices
from privacy_training.leakage_report import leakage_report
from privacy_training.leakage_tables import attacker_table, paper_table, write_tables
from privacy_training.params_privacy import PRESETS, PrivacyParams, made_of
from privacy_training.released_images import Splits, pixels
from privacy_training.released_splits import attack_splits, attribute_names, untrained_attributes


def main() -> int:
    """One attack, or several attackers and seeds one by one and the table with the strongest."""
    params = parse(PRESETS, description=__doc__.splitlines()[0])
    for path in params.compare:
        _read_result(path)  # a wrong name shows now, not after the training
    if not params.attackers and not params.seeds:
        attack_once(params)
        return 0
    run_id = params.run_id or f"train_privacy_{params.preset}"
    reports, failed = run_series(attacks_of_series(params, run_id), attack_once)
    summary = summarise(run_id, reports, failed)
    write_json(_result_file(f"{run_id}_attackers"), summary)
    tables = [attacker_table(summary), paper_table([*reports, *_compared(params)])]
    write_tables(_result_file(f"{run_id}_attackers", ".md"), tables)
    strongest = summary["strongest"]["validation"]
    cmap = summary["attackers"][strongest]["protocols"]["validation"]["cmap"]["mean"]
    chance = summary["chance"]["cmap"]
    sys.stderr.write(f"strongest attacker: {strongest}, cMAP {cmap:.4f} (chance {chance:.4f})\n")
    return 3 if failed else 0


def attack_once(params: PrivacyParams) -> dict:
    """Releases the images, trains one attacker on them, writes its report and returns it."""
    folder, recipe = run_folder(params, "train_privacy"), made_of(params)
    state = TrainingState(folder / "privacy_state.pth", recipe, {}, params.minutes_between_saves)
    if state.is_complete(_result_file(folder.name), params):
        return read_json(_result_file(folder.name))
    run = start_run(params, "train_privacy")
    names = list(attribute_names(params))
    # weights that do not fit show before the images are released, which takes long
    net = build_attacker(params, len(names)) if params.level == "image" else None
    splits, findings = attack_splits(params, run, recipe)
    if net is None:
        n, size = len(splits.train.files), params.release_batch
        parts = [splits.train.release(part.tolist(), 0) for part in torch.arange(n).split(size)]
        net = build_attacker(params, len(names), torch.cat(parts))
    attack = build_attack(prepare_for_training(net, run.device), params, run)
    if params.standardises:
        attack.scale = pixel_scale(splits.train, params.release_batch)
    state.stateful = {"net": attack.net, "optimizer": attack.optimizer}
    if attack.averaged is not None:
        state.stateful["averaged"] = attack.averaged
    run.write_parameters(params)
    if position := state.restore(params.resume):
        attack.history = position["history"]
    run_attack(attack, splits, state)

    report = {**_report(attack, splits, names, recipe), **findings, "seconds": state.seconds}
    _write_outputs(attack, splits, report, recipe)
    state.finish()
    scores, chance = report["protocols"]["validation"], report["chance"]
    pairs = {"cMAP": "cmap", "F1": "f1"}.items()
    shown = (f"{name} {scores[key]:.4f} (chance {chance[key]:.4f})" for name, key in pairs)
    sys.stderr.write(", ".join(shown) + "\n")
    return report


def _report(attack: Attack, splits: Splits, names: list[str], recipe: Recipe) -> dict:
    params, run = attack.params, attack.run
    labels = [images.labels.numpy() for images in (splits.validation, splits.test)]
    body = leakage_report(attack.history, *labels, names, params)
    body["absent_attributes"] = {"train": untrained_attributes(params), **body["absent_attributes"]}
    return {
        "run_id": run.run_id, "level": params.level, "attacker": params.attacker,
        "anonymizer": params.anonymizer, "average_frames": params.average_frames, **body,
        "n_pictures": {name: len(images.labels) for name, images in vars(splits).items()},
        "unreadable": {name: images.unreadable for name, images in vars(splits).items()},
        **asdict(recipe), "parameters": asdict(params), "device": str(run.device),
        "environment": environment(run.device, params.precision),
    }  # fmt: skip


def _write_outputs(attack: Attack, splits: Splits, report: dict, recipe: Recipe) -> None:
    """Attacker, test predictions, tables, plots, and last the report, which says that it is done.

    Predictions: names (N), labels (N, n_attributes), held-out ones last, and probabilities of the
    epoch that validation chose, `last` and `best_on_test` those of the other protocols.
    """
    params, run_id = attack.params, attack.run.run_id
    default = {"arch": params.attacker, "arguments": {}}
    architectures = {"fb": getattr(attack.reader, "architecture", default)}
    metrics = {f"test_cmap_{name}": scores["cmap"] for name, scores in report["protocols"].items()}
    meta = build_meta("train_privacy", architectures, params, recipe, metrics, report["seconds"])
    weights, epoch = detached_copy(attack.reader), len(attack.history)
    checkpoint = {"fb_model_state_dict": weights, "epoch": epoch, "meta": meta}
    if attack.scale is not None:  # without it the network reads nothing
        scale = {name: values.cpu() for name, values in attack.scale._asdict().items()}
        checkpoint["pixel_scale"] = scale
    save_checkpoint(attack.run.folder / "attacker.pth", checkpoint)

    epochs = {name: scores["epoch"] for name, scores in report["protocols"].items()}
    predicted = {name: attack.history[epoch - 1]["test"] for name, epoch in epochs.items()}
    chosen, labels = predicted.pop("validation"), splits.test.labels
    arrays = {"names": np.array(splits.test.names), "labels": labels.numpy()}
    arrays |= {name: own.numpy() for name, own in (predicted | {"probabilities": chosen}).items()}
    path = _result_file(run_id, ".npz")
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    write_tables(_result_file(run_id, ".md"), [paper_table([report, *_compared(params)])])
    if params.plots:
        others = {path.stem.removeprefix("privacy_"): read_json(path) for path in params.compare}
        plot_attributes(_result_file(run_id, "_attributes.png"), {**others, run_id: report})
    if params.plots and params.level == "image":
        shown, names = sample_indices(len(labels)), list(attribute_names(params))
        images = pixels(splits.test.released[shown])
        figure = sample_figure(images, chosen[shown], labels[shown], names)
        save_figure(figure, _result_file(run_id, "_samples.png"))
    write_json(_result_file(run_id), report)


def _result_file(run_id: str, ending: str = ".json") -> Path:
    return config.RESULTS_ROOT / f"privacy_{run_id}{ending}"


def _read_result(path: Path) -> dict:
    content = read_json(path)
    expected = {"protocols", "anonymizer", "attacker", "level"}
    if not isinstance(content, dict) or not expected <= content.keys():
        remedy = "give results/privacy_<run_id>.json"
        raise UserError(f"--compare {path} is no result of one attack; {remedy}")
    return content


def _compared(params: PrivacyParams) -> list[dict]:
    """The results of --compare that are of the same level: the two tables of the paper differ."""
    results = [_read_result(path) for path in params.compare]
    return [result for result in results if result["level"] == params.level]


if __name__ == "__main__":
    run_script(main)
