"""Several attackers and seeds on one anonymizer: the runs, their deviation, the strongest."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aux_code.errors import UserError
from aux_code.series import over_seeds
from privacy_training.params_privacy import PrivacyParams

log = logging.getLogger(__name__)

PROTOCOLS = ("validation", "last", "best_on_test")
"""As in the results of one attack; by the first one the strongest attacker is chosen."""
_SHARED = "level anonymizer average_frames chance absent_attributes n_pictures unreadable".split()
"""Entries that the reports of a series have in common."""


def attacks_of_series(params: PrivacyParams, run_id: str) -> list[PrivacyParams]:
    """The parameters of every single attack: attackers x seeds, each with a run id of its own."""
    single = replace(params, attackers=(), seeds=())
    return [
        replace(single, attacker=attacker, seed=seed, run_id=f"{run_id}_{attacker}_s{seed}")
        for attacker in params.attackers or (params.attacker,)
        for seed in params.seeds or (params.seed,)
    ]


def run_series(
    attacks: list[PrivacyParams], attack: Callable[[PrivacyParams], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Runs all, even if one cannot run; (the reports, run id -> what was wrong).

    Raises:
        UserError: no attack was possible; the first one's error.
    """
    reports, errors = [], {}
    for params in attacks:
        log.info("attack %s", params.run_id)
        try:
            reports.append(attack(params))
        except UserError as error:
            log.error("%s: %s", params.run_id, error)
            errors[params.run_id] = error
    if not reports:
        raise next(iter(errors.values()))
    return reports, {run_id: str(error) for run_id, error in errors.items()}


def summarise(run_id: str, reports: list[dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    """Mean and deviation of every attacker over its seeds, and the strongest: what counts.

    Args:
        run_id: name of the series.
        reports: of `leakage_report` with the run's own entries; of one anonymizer and level.
        failed: run id -> error of the attacks without a report.

    Returns:
        `attackers`: name -> {runs, seeds, protocols, confidence_intervals, plateau, findings such
        as `inversion`}; `strongest`: {protocol: name of the attacker with the highest mean cMAP on
        the test images}; deviations are None with one seed.
    """
    by_attacker: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        by_attacker.setdefault(report["attacker"], []).append(report)
    attackers = {name: _over_seeds(own) for name, own in by_attacker.items()}
    cmaps = {
        protocol: {n: own["protocols"][protocol]["cmap"]["mean"] for n, own in attackers.items()}
        for protocol in PROTOCOLS
    }
    return {
        "run_id": run_id,
        **{key: reports[0][key] for key in _SHARED},
        "strongest": {protocol: max(own, key=own.get) for protocol, own in cmaps.items()},
        "attackers": attackers,
        "failed": failed,
    }


def _over_seeds(reports: list[dict[str, Any]]) -> dict[str, Any]:
    def scores(protocol: dict[str, Any]) -> dict[str, Any]:
        return {key: protocol[key] for key in ("cmap", "f1", "per_attribute", "held_out")}

    protocols = [
        {name: scores(report["protocols"][name]) for name in PROTOCOLS} for report in reports
    ]
    return {
        "runs": [report["run_id"] for report in reports],
        "seeds": [report["parameters"]["seed"] for report in reports],
        "protocols": over_seeds(protocols),
        "confidence_intervals": [report["confidence_interval"] for report in reports],
        "plateau": [report["plateau"] for report in reports],
        "inversion": [report["inversion"] for report in reports if "inversion" in report],
    }
