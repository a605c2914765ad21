"""Do our rows come out in the paper's order? Computed from the values, and said beside every
table."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from aux_code.reporting import published
from aux_code.reporting.published import DATASET_LABELS, HEADLINE_METRIC
from aux_code.reporting.results import Results
from reproduction.methods import METHODS

MAX_ROWS_SPELLED_OUT = 5
"""Of longer tables only the pairs with TeD-SPAD are named."""

OrderNotes = tuple[tuple[str, ...], tuple[str, ...]]
"""(sentences on what agrees or cannot be said, sentences on what differs)"""


class Agreement(NamedTuple):
    """Pairs of rows, by method name; the first of each pair is the smaller one in the paper."""

    agreeing: list[tuple[str, str]]
    differing: list[tuple[str, str]]
    """Ours are the other way round or equal."""


def compare_orders(ours: Mapping[str, float | None], paper: Mapping[str, float]) -> Agreement:
    """Every pair of rows that both have; pairs that are equal in the paper do not count."""
    names = sorted((name for name in paper if ours.get(name) is not None), key=paper.__getitem__)
    pairs = [(low, high) for low, high in combinations(names, 2) if paper[low] < paper[high]]
    agreeing = [pair for pair in pairs if ours[pair[0]] < ours[pair[1]]]
    return Agreement(agreeing, [pair for pair in pairs if pair not in agreeing])


def main_order_notes(results: Results) -> OrderNotes:
    """Of Table 8, one sentence for each of its columns."""
    columns = [("vispr_cmap", "cmap", "VISPR cMAP")]
    for dataset, label in DATASET_LABELS.items():
        metric = HEADLINE_METRIC[dataset]
        columns.append((f"{dataset}_{metric}", f"{dataset}:{metric}", f"{label} {metric.upper()}"))
    rows = published.TABLE_8.items()
    named = [
        (label, metric, {m: getattr(row, name) for m, row in rows})
        for name, metric, label in columns
    ]
    return _notes(results, named, whole=False)


def ablation_order_notes(results: Results, number: str) -> OrderNotes:
    """Of Table 2, 3, 4, 5, 6, 9 or 10."""
    if number == "10" and results.preset == "miniature":
        return (
            "Other networks than the paper's, made for small pictures: there is no order to compare.",
        ), ()
    rows = published.ABLATIONS[number].items()
    columns = (("vispr_cmap", "cmap", "cMAP"), ("ucf_crime_auc", "ucf_crime:auc", "AUC"))
    return _notes(
        results,
        ((label, metric, {m: getattr(row, n) for m, row in rows}) for n, metric, label in columns),
    )


def feature_order_notes(results: Results) -> OrderNotes:
    """Of Table 1."""
    return _notes(results, [("cMAP", "feature_cmap", published.TABLE_1)])


def _notes(
    results: Results, columns: Iterable[tuple[str, str, Mapping[str, float]]], whole: bool = True
) -> OrderNotes:
    """Sentences for columns (label, metric, the paper's values); `whole`: every row belongs to the
    comparison."""
    agree, differ = [], []
    for label, metric, paper in columns:
        ours = {name: results.mean(name, metric) for name in paper}
        if None in ours.values() and whole:
            agree.append(f"{label}: not every row was measured.")
            continue
        agreement = compare_orders(ours, paper)
        if agreement.differing:
            differ.append(_difference(results, label, metric, ours, paper, agreement))
        elif agreement.agreeing:
            agree.append(f"{label}: the rows come out in the paper's order.")
    return tuple(agree), tuple(differ)


def _difference(
    results: Results, label: str, metric: str, ours: Mapping[str, float | None], paper: Mapping[str, float],
    agreement: Agreement,
) -> str:  # fmt: skip
    measured = [name for name in paper if ours[name] is not None]
    n_pairs = len(agreement.agreeing) + len(agreement.differing)
    text = f"{label}: the rows come out in another order than in the paper; "
    text += f"{len(agreement.agreeing)} of {n_pairs} pairs agree"
    if len(measured) <= MAX_ROWS_SPELLED_OUT:
        orders = [sorted(measured, key=values.__getitem__) for values in (ours, paper)]
        here, there = (
            " < ".join(METHODS[name].label_in(results.preset) for name in order) for order in orders
        )
        text += f": here {here}, there {there}"
    else:
        others = [
            low if high == "ted_spad" else high
            for low, high in agreement.differing
            if "ted_spad" in (low, high)
        ]
        if others:
            names = ", ".join(METHODS[name].label_in(results.preset) for name in others)
            text += f"; TeD-SPAD stands on the other side of: {names}"
    if len(results.seeds) > 1:
        n_small = sum(_within_deviation(results, metric, *pair) for pair in agreement.differing)
        text += (
            f"; {n_small} of the {len(agreement.differing)} others differ by less than the seeds do"
        )
    return text + "."


def _within_deviation(results: Results, metric: str, low: str, high: str) -> bool:
    """Whether the difference of two rows, seed by seed, has a mean below its standard deviation."""
    first, second = results.by_seed(low, metric), results.by_seed(high, metric)
    differences = [second[seed] - first[seed] for seed in first if seed in second]
    return len(differences) > 1 and abs(np.mean(differences)) < np.std(differences, ddof=1)
