"""Tables 2 to 6, 9 and 10 as one figure: what each variant changes against raw, here and in the
paper."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aux_code.reporting.plots import FIGURE_STYLE, GRID, INK, MUTED, look
from aux_code.reporting.published import ABLATION_TITLES, ABLATIONS, TABLE_8, relative_change
from aux_code.reporting.results import Results
from reproduction.methods import ABLATION_TABLES, METHODS

OURS, PAPER = look(METHODS["ted_spad"])[0], MUTED


class _Row(NamedTuple):
    label: str
    at: int
    changes: tuple[tuple[float | None, float | None], ...]
    """(ours, the paper's) in percent of raw, for cMAP and AUC."""


def ablation_changes(results: Results, numbers: Sequence[str]) -> Figure:
    """One line per variant, the tables below each other; left leakage, right detection.

    Args:
        results: what was measured.
        numbers: of the tables.
    """
    rows, titles, at = [], [], 0
    for number in numbers:
        titles.append((at, f"Table {number}: {ABLATION_TITLES[number]}"))
        for place, name in enumerate(ABLATION_TABLES[number], at + 1):
            rows.append(
                _Row(METHODS[name].label_in(results.preset), place, _changes(results, number, name))
            )
        at += len(ABLATION_TABLES[number]) + 1
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10.5, 1.0 + 0.25 * at))
        height = figure.get_figheight()
        all_axes = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(
            left=0.33, right=0.985, top=1 - 0.3 / height, bottom=0.7 / height, wspace=0.06
        )
        for column, (axes, title) in enumerate(
            zip(all_axes, ("VISPR cMAP", "UCF-Crime AUC"), strict=True)
        ):
            _panel(axes, rows, column, f"{title}, change against raw, %")
        all_axes[0].set_yticks(
            [row.at for row in rows], [row.label for row in rows], color=INK, fontsize=8.5
        )
        all_axes[0].set_ylim(at - 0.4, -0.6)
        for place, text in titles:
            all_axes[0].annotate(
                text, (0, place), xycoords=("axes fraction", "data"), xytext=(-6, 0), textcoords="offset points",
                ha="right", va="center", fontsize=8.5, fontweight="bold", color=INK,
            )  # fmt: skip
        figure.legend(
            *all_axes[0].get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=8.5
        )
    return figure


def _changes(
    results: Results, number: str, name: str
) -> tuple[tuple[float | None, float | None], ...]:
    raw = (TABLE_8["raw"].vispr_cmap, TABLE_8["raw"].ucf_crime_auc)
    other_networks = number == "10" and results.preset == "miniature" and name != "ted_spad"
    changes = []
    for metric, theirs, base in zip(
        ("cmap", "ucf_crime:auc"), ABLATIONS[number][name], raw, strict=True
    ):
        ours, ours_raw = results.mean(name, metric), results.mean("raw", metric)
        measured = None if ours is None or ours_raw is None else relative_change(ours, ours_raw)
        changes.append((measured, None if other_networks else relative_change(theirs, base)))
    return tuple(changes)


def _panel(axes: Axes, rows: Sequence[_Row], column: int, title: str) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    for row in rows:
        ours, paper = row.changes[column]
        if ours is not None and paper is not None:
            axes.plot((ours, paper), (row.at, row.at), color=GRID, linewidth=2.5, zorder=1)
    for place, (label, colour, marker, face) in enumerate(
        (("measured here", OURS, "o", OURS), ("paper", PAPER, "D", "white"))
    ):
        points = [
            (row.changes[column][place], row.at)
            for row in rows
            if row.changes[column][place] is not None
        ]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(
            x, y, linestyle="none", marker=marker, color=colour, markerfacecolor=face, markersize=6, label=label,
            zorder=3 - place,
        )  # fmt: skip
