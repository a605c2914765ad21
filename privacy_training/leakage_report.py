"""From an attack's history to its report: three protocols, chance level, interval, curve."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aux_code.intervals import bootstrap, cmap_of, limits
from aux_code.metrics import attribute_metrics, chance_cmap, f1_always_yes
from privacy_training.params_privacy import PrivacyParams

SMOOTHING = 3
"""Evaluations whose mean validation cMAP selects an epoch, not one lucky epoch (ours)."""
_IN_CURVE = ("epoch", "train_loss", "validation_cmap", "test_cmap")


def leakage_report(
    history: list[dict],
    validation_labels: np.ndarray,
    test_labels: np.ndarray,
    names: list[str],
    params: PrivacyParams,
) -> dict[str, Any]:
    """Builds the result of an attack; `held_out` stands beside `per_attribute`, outside the rest.

    Args:
        history: of `run_attack`, with probabilities `validation` and `test` (N, n_attributes) and
            their `validation_cmap` and `test_cmap` where evaluated.
        validation_labels, test_labels: (N, n_attributes) in {0, 1}.
        names: the attributes.
        params: `n_bootstrap` resamplings of the test images, drawn by `seed`; what a plateau is;
            which columns count.

    Returns:
        protocols `last`, `validation` (the epoch with the best smoothed validation cMAP) and
        `best_on_test` (the paper's), each with the 95 % interval of its cMAP; chance; the
        validation protocol's interval; plateau; absent attributes; curve.
    """
    evaluated = [entry for entry in history if "test" in entry]
    cmaps = {entry["epoch"]: entry["validation_cmap"] for entry in evaluated}
    selected = evaluated[np.argmax(smooth(np.array(list(cmaps.values()))))]
    best_on_test = max(evaluated, key=lambda entry: entry["test_cmap"])
    chosen = {"last": evaluated[-1], "validation": selected, "best_on_test": best_on_test}
    protocols, counted = {}, params.counted
    own_labels = test_labels[:, counted]
    for name, entry in chosen.items():
        probabilities = entry["test"].numpy()
        precisions = attribute_metrics(probabilities, test_labels).per_attribute
        probabilities = probabilities[:, counted]
        scores = attribute_metrics(probabilities, own_labels)
        drawn = (len(test_labels), params.n_bootstrap, params.seed)
        protocols[name] = {
            "cmap": scores.cmap,
            "f1": scores.f1,
            **_by_attribute(names, precisions, counted),
            "epoch": entry["epoch"],
            "confidence_interval": limits(bootstrap(*drawn, cmap_of(probabilities, own_labels))),
        }
    # a guess that says yes as often as it is true has the prevalence as F1, too
    prevalence = chance_cmap(own_labels)
    chance = {"cmap": prevalence, "f1": prevalence, "f1_always_yes": f1_always_yes(own_labels)}
    return {
        "protocols": protocols,
        "chance": chance | _by_attribute(names, test_labels.mean(0), counted),
        "confidence_interval": protocols["validation"]["confidence_interval"],
        "plateau": plateau(cmaps, selected["epoch"], params),
        "absent_attributes": {
            split: [n for n, y in zip(names, labels.T, strict=True) if not y.any()]
            for split, labels in (("validation", validation_labels), ("test", test_labels))
        },
        "curve": [{key: entry.get(key) for key in _IN_CURVE} for entry in history],
    }


def smooth(values: np.ndarray, width: int = SMOOTHING) -> np.ndarray:
    """Centred moving average (n,) -> (n,); shorter at the ends."""
    half = width // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def recent_gain(validation_cmap: Mapping[int, float], window: float) -> float | None:
    """What the last `window` epochs added to the best validation cMAP.

    Args:
        validation_cmap: 1-based epoch -> score in [0, 1], of the evaluated epochs, ascending.
        window: in epochs.

    Returns:
        Best score of the window less the best before it; None if no epoch lies before it.
    """
    border = max(validation_cmap, default=0) - window
    early = [score for epoch, score in validation_cmap.items() if epoch <= border]
    late = [score for epoch, score in validation_cmap.items() if epoch > border]
    return float(max(late) - max(early)) if early else None


def plateau(
    validation_cmap: Mapping[int, float], selected: int, params: PrivacyParams
) -> dict[str, Any]:
    """Whether the attacker has learned all it can, told from the validation images alone.

    Args:
        validation_cmap: as for `recent_gain`.
        selected: the epoch that validation chose.
        params: `plateau_epochs`, the window (0: the last quarter), and `plateau_gain`.

    Returns:
        `gain`: `recent_gain`; `reached`: it is at most `tolerance`. A rate that falls to zero
        flattens any curve, so with the cosine schedule this is necessary, not sufficient: compare a
        longer run.
    """
    last = max(validation_cmap)
    window = params.plateau_epochs or 0.25 * last
    gain = recent_gain(validation_cmap, window)
    return {
        "best_epoch": selected, "last_epoch": last, "best_epoch_before_end": selected < last,
        "window_epochs": window, "gain": gain, "tolerance": params.plateau_gain,
        "reached": gain is not None and gain <= params.plateau_gain,
    }  # fmt: skip


def _by_attribute(
    names: list[str], values: np.ndarray, counted: slice
) -> dict[str, dict[str, float | None]]:
    """per_attribute and held_out: name -> value; None, which JSON has, where it does not occur."""
    pairs = zip(names, values, strict=True)
    named = {name: None if np.isnan(value) else float(value) for name, value in pairs}
    own = {name: named.pop(name) for name in names[counted]}
    return {"per_attribute": own, "held_out": named}
