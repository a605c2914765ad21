"""Several attackers and seeds on one anonymizer: which runs they are, their mean and deviation, and
the strongest."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from aux_code.errors import UserError
from privacy_training.params_privacy import PrivacyParams

log = logging.getLogger(__name__)

PROTOCOLS = ("validation", "last", "best_on_test")
"""As in the results of one attack; by the first one the strongest attacker is chosen."""


def attacks_of_series(params: PrivacyParams, run_id: str) -> list[PrivacyParams]:
    """The parameters of every single attack: attackers x seeds, each with a run id of its own."""
    return [
        replace(
            params,
            attackers=(),
            seeds=(),
            attacker=attacker,
            seed=seed,
            run_id=f"{run_id}_{attacker}_s{seed}",
        )
        for attacker in params.attackers or (params.attacker,)
        for seed in params.seeds or (params.seed,)
    ]


def run_series(
    attacks: list[PrivacyParams], attack: Callable[[PrivacyParams], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Runs one after the other; an attacker that cannot run, such as one without weights, does not
    end the others.

    Returns:
        the reports, and run id -> what was wrong.

    Raises:
        UserError: no attack was possible; the first one's error.
    """
    reports, failed, errors = [], {}, []
    for params in attacks:
        log.info("attack %s", params.run_id)
        try:
            reports.append(attack(params))
        except UserError as error:
            log.error("%s: %s", params.run_id, error)
            failed[params.run_id] = str(error)
            errors.append(error)
    if not reports:
        raise errors[0]
    return reports, failed


def summarise(run_id: str, reports: list[dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    """One entry per attacker with mean and deviation over its seeds, and the strongest: an
    anonymizer is as good as it.

    Args:
        run_id: name of the series.
        reports: of `leakage_report` with the run's own entries; of one anonymizer and level.
        failed: run id -> error of the attacks without a report.

    Returns:
        `attackers`: name -> {runs, seeds, protocols, confidence_intervals, plateau, findings such
        as `inversion`}; `strongest`: {protocol: name of the attacker with the highest mean cMAP on
        the test pictures}; deviations are None with one seed.
    """
    by_attacker: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        by_attacker.setdefault(report["attacker"], []).append(report)
    attackers = {name: _over_seeds(own) for name, own in by_attacker.items()}
    strongest = {
        protocol: max(
            attackers, key=lambda name: attackers[name]["protocols"][protocol]["cmap"]["mean"]
        )
        for protocol in PROTOCOLS
    }
    shared = (
        "level",
        "anonymizer",
        "average_frames",
        "chance",
        "absent_attributes",
        "n_pictures",
        "unreadable",
    )
    head = {"run_id": run_id, **{key: reports[0][key] for key in shared}}
    return {**head, "strongest": strongest, "attackers": attackers, "failed": failed}


def _over_seeds(reports: list[dict[str, Any]]) -> dict[str, Any]:
    protocols = {}
    for protocol in PROTOCOLS:
        scores = [report["protocols"][protocol] for report in reports]
        names = scores[0]["per_attribute"]
        protocols[protocol] = {
            "cmap": _mean_and_deviation([s["cmap"] for s in scores]),
            "f1": _mean_and_deviation([s["f1"] for s in scores]),
            "per_attribute": {
                name: _mean_and_deviation([s["per_attribute"][name] for s in scores])
                for name in names
            },
        }
    return {
        "runs": [report["run_id"] for report in reports],
        "seeds": [report["parameters"]["seed"] for report in reports],
        "protocols": protocols,
        "confidence_intervals": [report["confidence_interval"] for report in reports],
        "plateau": [report["plateau"] for report in reports],
        "inversion": [report["inversion"] for report in reports if "inversion" in report],
    }


def _mean_and_deviation(values: list[float | None]) -> dict[str, float | None]:
    """Over the seeds (n - 1); None for an attribute that the test pictures lack, and for the
    deviation of one value."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }
