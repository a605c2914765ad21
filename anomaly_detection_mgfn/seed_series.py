"""Several seeds of one training: which runs they are, and the mean and deviation of their
results."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from anomaly_detection_mgfn.evaluation import results_path
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from aux_code.checkpoints import write_json

log = logging.getLogger(__name__)

METRICS = ("auc", "ap", "average_precision")


def runs_of_seeds(params: MgfnParams) -> list[MgfnParams]:
    """The parameters of every single training, each with a run id of its own."""
    return [
        replace(params, seeds=(), seed=seed, run_id=f"{params.run_id}_s{seed}")
        for seed in params.seeds
    ]


def write_seeds(params: MgfnParams, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes and returns results/anomaly_<dataset>_<run_id>_seeds.json.

    Args:
        params: of the series.
        results: of each training, in the order of the seeds.

    Returns:
        {"seeds", "runs", "protocols": {protocol: {metric: {"mean", "deviation"}}}, "per_category":
        {category: the same of its AUC}, "false_alarm_rate": the same}; deviations are None with one
        seed.
    """
    per_category: dict[str, list[float]] = {}
    for own in results:
        for category, areas in own["per_category"].items():
            per_category.setdefault(category, []).extend([areas["auc"]] if "auc" in areas else [])
    rates = [own["false_alarm_rate"] for own in results]
    summary = {
        "dataset": results[0]["dataset"],
        "run_id": params.run_id,
        "seeds": list(params.seeds),
        "runs": [own["run_id"] for own in results],
        "protocols": {
            name: {
                key: mean_and_deviation([own["protocols"][name][key] for own in results])
                for key in METRICS
            }
            for name in results[0]["protocols"]
        },
        "per_category": {
            category: mean_and_deviation(areas) for category, areas in per_category.items() if areas
        },
        "false_alarm_rate": mean_and_deviation([rate for rate in rates if rate is not None]),
    }
    path = results_path(params)
    write_json(path.with_name(f"{path.stem}_seeds.json"), summary)
    for name, metrics in summary["protocols"].items():
        shown = ", ".join(f"{key} {_text(metrics[key])}" for key in ("auc", "ap"))
        log.info("%d seeds, %s: %s", len(results), name, shown)
    return summary


def mean_and_deviation(values: list[float]) -> dict[str, float | None]:
    """Mean, and standard deviation (n - 1); None where there are too few values."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def _text(value: dict[str, float | None]) -> str:
    deviation = value["deviation"]
    return f"{value['mean']:.4f}" + ("" if deviation is None else f" +- {deviation:.4f}")
