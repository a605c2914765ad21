"""results/summary.json: the measured values of every method, for programs."""

from typing import Any

from aux_code.reporting.results import Results
from reproduction.methods import Method


def build_summary(results: Results) -> dict[str, Any]:
    """Means over the seeds; with several seeds their standard deviations stand beside them as
    NAME_std."""
    return {
        "preset": results.preset,
        "seeds": results.seeds,
        "seconds": results.seconds,
        "protocol": results.protocol,
        "chance_cmap": results.chance_cmap(),
        "methods": {
            method.name: _entry(results, method) for method in results.methods(control=False)
        },
        "controls": {
            method.name: _entry(results, method) for method in results.methods(control=True)
        },
    }


def _entry(results: Results, method: Method) -> dict[str, Any]:
    privacy: dict[str, Any] = {}
    for metric in ("cmap", "f1", "leakage_removed", "feature_cmap"):
        _put(privacy, metric, results, method.name, metric)
    privacy["per_attribute"] = {}
    for attribute in results.attributes():
        _put(privacy["per_attribute"], attribute, results, method.name, f"attribute:{attribute}")
    anomaly: dict[str, dict[str, float]] = {}
    for dataset in results.datasets:
        scores: dict[str, float] = {}
        for metric in ("auc", "ap"):
            _put(scores, metric, results, method.name, f"{dataset}:{metric}")
        if scores:
            anomaly[dataset] = scores
    return {"privacy": privacy, "anomaly": anomaly}


def _put(target: dict[str, Any], key: str, results: Results, method: str, metric: str) -> None:
    mean, deviation = results.mean(method, metric), results.deviation(method, metric)
    if mean is not None:
        target[key] = mean
    if deviation is not None:
        target[f"{key}_std"] = deviation
