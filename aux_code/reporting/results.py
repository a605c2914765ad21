"""Reads the result files of stages 2 and 4 and brings them together by method, seed and data
set."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aux_code.checkpoints import read_json
from aux_code.errors import UserError
from aux_code.metrics import leakage_removed
from reproduction.methods import (
    ABLATION_TABLES,
    CONTROLS,
    DATASETS,
    FEATURE_ATTACKER,
    METHODS,
    TABLE_8,
    Attacker,
    Method,
)
from reproduction.plan import anomaly_result, anomaly_scores, privacy_result


@dataclass(frozen=True)
class Leakage:
    """One attacker's success on one method and seed, values in [0, 1]."""

    attacker: Attacker
    cmap: float
    f1: float
    per_attribute: dict[str, float]
    interval: tuple[float, float] | None
    """95 % bootstrap interval of cmap over the test pictures."""
    chance: float
    chance_per_attribute: dict[str, float]
    raw_result: dict[str, Any]
    """The whole file."""


@dataclass(frozen=True)
class Detection:
    """Anomaly detection on one method, seed and data set, values in [0, 1]."""

    auc: float
    ap: float
    per_category: dict[str, Any]
    raw_result: dict[str, Any]
    """The whole file."""


@dataclass
class MethodResult:
    """What was measured of one method with one seed."""

    method: Method
    seed: int
    attackers: list[Leakage] = field(default_factory=list)
    feature_leakage: Leakage | None = None
    """That of an attacker on f_T's features (Table 1); it does not count as an attacker on
    pictures."""
    detection: dict[str, Detection] = field(default_factory=dict)
    """By data set."""

    @property
    def leakage(self) -> Leakage | None:
        """The strongest attacker's: what an opponent who chooses well gets."""
        return max(self.attackers, key=lambda leakage: leakage.cmap, default=None)


@dataclass
class Results:
    """Everything that a reproduction measured."""

    preset: str
    seeds: list[int]
    protocol: str
    """validation, last or best_on_test."""
    seconds: float
    """Wall-clock time in which its steps ran."""
    by_method: dict[str, list[MethodResult]]
    """Method -> one entry per seed, in the order of `seeds`; methods and seeds without any result
    are left out."""
    datasets: tuple[str, ...] = DATASETS

    def methods(self, control: bool) -> list[Method]:
        """The rows (control=False) or the controls among the methods that have results, in table
        order."""
        return [
            METHODS[name]
            for name in METHODS
            if name in self.by_method and METHODS[name].control == control
        ]

    def main_methods(self, control: bool) -> list[Method]:
        """Those of them that Table 8 shows: all but the rows of the ablation tables alone."""
        ablations = {name for rows in ABLATION_TABLES.values() for name in rows} - {
            *TABLE_8,
            *CONTROLS,
        }
        return [method for method in self.methods(control) if method.name not in ablations]

    def by_seed(self, method: str, metric: str) -> dict[int, float]:
        """Seed -> value, for the seeds that have it.

        Args:
            method: its name.
            metric: cmap, f1, leakage_removed, feature_cmap, `attribute:NAME`, or `DATASET:auc` and
                `DATASET:ap`.
        """
        values = {
            result.seed: self._value(result, metric) for result in self.by_method.get(method, ())
        }
        return {seed: value for seed, value in values.items() if value is not None}

    def values(self, method: str, metric: str) -> list[float]:
        """The values of `by_seed`."""
        return list(self.by_seed(method, metric).values())

    def mean(self, method: str, metric: str) -> float | None:
        """Mean over the seeds, or None without a value."""
        values = self.values(method, metric)
        return float(np.mean(values)) if values else None

    def deviation(self, method: str, metric: str) -> float | None:
        """Standard deviation over the seeds (n - 1), or None with fewer than two values."""
        values = self.values(method, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def chance_cmap(self) -> float | None:
        """Mean over the seeds of the cMAP of a guess without information."""
        chances = {
            result.seed: leakage.chance
            for entries in self.by_method.values()
            for result in entries
            for leakage in result.attackers[:1]
        }
        return float(np.mean(list(chances.values()))) if chances else None

    def raw_of(self, seed: int) -> MethodResult | None:
        """The raw row of a seed, to which the others are compared."""
        return next(
            (result for result in self.by_method.get("raw", ()) if result.seed == seed), None
        )

    def attributes(self) -> list[str]:
        """Attributes in the order of the files."""
        for entries in self.by_method.values():
            for result in entries:
                if result.leakage:
                    return list(result.leakage.per_attribute)
        return []

    def _value(self, result: MethodResult, metric: str) -> float | None:
        if ":" in metric and not metric.startswith("attribute:"):
            dataset, name = metric.split(":")
            detection = result.detection.get(dataset)
            return getattr(detection, name) if detection else None
        if metric == "feature_cmap":
            return result.feature_leakage.cmap if result.feature_leakage else None
        leakage = result.leakage
        if leakage is None:
            return None
        if metric.startswith("attribute:"):
            return leakage.per_attribute.get(metric.removeprefix("attribute:"))
        if metric == "leakage_removed":
            raw = self.raw_of(result.seed)
            if raw is None or raw.leakage is None or raw.leakage.cmap <= leakage.chance:
                return None
            return leakage_removed(raw.leakage.cmap, leakage.cmap, leakage.chance)
        return getattr(leakage, metric)


def collect_results(
    preset: str,
    seeds: Iterable[int],
    methods: Iterable[str],
    protocol: str = "validation",
    seconds: float = 0.0,
) -> Results:
    """Reads what there is; a method or seed without any file is left out.

    Raises:
        UserError: a file that is there cannot be read or lacks the protocol.
    """
    seeds = list(seeds)
    by_method: dict[str, list[MethodResult]] = {}
    for name in methods:
        entries = [_read(preset, seed, METHODS[name], protocol) for seed in seeds]
        entries = [
            entry
            for entry in entries
            if entry.attackers or entry.detection or entry.feature_leakage
        ]
        if entries:
            by_method[name] = entries
    return Results(preset, seeds, protocol, seconds, by_method)


def load_scores(preset: str, seed: int, method: str, dataset: str) -> dict[str, np.ndarray]:
    """Clip scores of the test videos, name -> (n_clips,); empty if there is no file."""
    path = anomaly_scores(preset, seed, method, dataset)
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read(preset: str, seed: int, method: Method, protocol: str) -> MethodResult:
    result = MethodResult(method, seed)
    for attacker in method.attackers:
        path = privacy_result(preset, seed, method.name, attacker)
        if path.is_file():
            result.attackers.append(_leakage(attacker, _with_protocol(path, protocol), protocol))
    path = privacy_result(preset, seed, method.name, FEATURE_ATTACKER)
    if path.is_file():
        result.feature_leakage = _leakage(
            FEATURE_ATTACKER, _with_protocol(path, protocol), protocol
        )
    for dataset in DATASETS:
        path = anomaly_result(preset, seed, method.name, dataset)
        if path.is_file():
            content = _with_protocol(path, protocol)
            scores = content["protocols"][protocol]
            result.detection[dataset] = Detection(
                scores["auc"], scores["ap"], content.get("per_category", {}), content
            )
    return result


def _with_protocol(path: Any, protocol: str) -> dict[str, Any]:
    content = read_json(path)
    if protocol not in content.get("protocols", {}):
        raise UserError(
            f"{path} has no protocol '{protocol}'; remove it and run reproduce.py again"
        )
    return content


def _leakage(attacker: Attacker, content: dict[str, Any], protocol: str) -> Leakage:
    scores, interval = content["protocols"][protocol], content.get("confidence_interval")
    return Leakage(
        attacker,
        cmap=scores["cmap"],
        f1=scores["f1"],
        per_attribute=scores["per_attribute"],
        interval=tuple(interval) if interval else None,
        chance=content["chance"]["cmap"],
        chance_per_attribute=content["chance"]["per_attribute"],
        raw_result=content,
    )
