"""A results folder as stages 2 and 4 leave it, with made-up numbers."""

import json
from pathlib import Path

import numpy as np

from aux_code.datasets.vispr import VISPR1
from reproduction.methods import DATASETS, METHODS
from reproduction.plan import anomaly_result, anomaly_scores, privacy_result

CHANCE = {name: 0.2 + 0.05 * i for i, name in enumerate(VISPR1)}
CHANCE_CMAP = float(np.mean(list(CHANCE.values())))
N_FRAMES = {"Abuse001_x264": 150, "Normal_Videos_001_x264": 97}


def write_attack(method: str, seed: int, cmap: float, number: int = 0, **others) -> Path:
    """A result of stage 2 with the attacker of this number; each attribute as far above chance."""
    per_attribute = {name: chance + cmap - CHANCE_CMAP for name, chance in CHANCE.items()}
    scores = {"cmap": cmap, "f1": cmap / 2, "per_attribute": per_attribute, "epoch": 30}
    path = privacy_result("miniature", seed, method, METHODS[method].attackers[number])
    content = {
        "protocols": {"validation": scores, "last": {**scores, "cmap": cmap + 0.01}},
        "chance": {"cmap": CHANCE_CMAP, "per_attribute": CHANCE},
        "confidence_interval": [cmap - 0.02, cmap + 0.02],
        "plateau": {"best_epoch": 30, "last_epoch": 40},
    }
    return _write(path, content | others)


def write_anomaly(method: str, seed: int, dataset: str, auc: float, ap: float, **others) -> Path:
    """One result of stage 4 with its scores."""
    facts = {"n_frames": 150, "category": "Abuse", "events": [[40, 90]]}
    categories = {"Abuse": auc, "Arson": auc - 0.05}
    content = {
        "frames_per_feature": 32,
        "protocols": {"validation": {"auc": auc, "ap": ap, "epoch": 3}},
        "per_category": {name: {"auc": area, "n_videos": 1} for name, area in categories.items()},
        "false_alarm_rate": 0.125,
        "videos": [{"name": name, **facts, "n_frames": n} for name, n in N_FRAMES.items()],
    }
    path = _write(anomaly_result("miniature", seed, method, dataset), content | others)
    scores = {name: np.arange(-(-n // 32), dtype=np.float32) / 10 for name, n in N_FRAMES.items()}
    np.savez(anomaly_scores("miniature", seed, method, dataset), **scores)
    return path


def write_all(methods: dict[str, tuple[float, float]], seed: int) -> None:
    """Both stages for methods given as name -> (cmap, auc); the AP is 0.1 below the AUC."""
    for name, (cmap, auc) in methods.items():
        for attacker in range(len(METHODS[name].attackers)):
            write_attack(name, seed, cmap + 0.03 * attacker, attacker)
        for dataset in DATASETS:
            write_anomaly(name, seed, dataset, auc, auc - 0.1)


def _write(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
