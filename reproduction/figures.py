"""The figures of the report that no stage draws: trade-off, ablations, categories, image grids."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aux_code.reporting.figures import GRID, INK, MUTED, STYLE
from aux_code.reporting.published import ABLATION_TITLES, DATASET_LABELS, relative_change
from reproduction.methods import ABLATION_TABLES, CONTROL_TABLE, METHODS, MOSAICS, Method
from reproduction.results import Results
from reproduction.tables import Column, ablation_columns, main_columns

_LOOKS = {
    "raw": ("#1c1f24", "o"), "downsample2x": ("#a9764f", "v"), "downsample4x": ("#70492c", "v"),
    "blur": ("#8f7cc0", "s"), "blacken": ("#5b4a91", "s"), "spact": ("#d98a00", "D"),
    "ted_spad": ("#1a8f4d", "^"), "ted_spad_plus": ("#0b62c4", "*"),
    "reconstruction": ("#9aa3af", "o"), "mosaic4_grey_noise0.05": ("#6b7280", "X"),
    "narrow_reconstruction": ("#6fa8dc", "h"), "narrow_spact": ("#e3b96a", "p"),
    "full_width": ("#76c7a0", "*"),
}  # fmt: skip


def look(method: Method) -> tuple[str, str]:
    """Colour and marker of a method in every figure; they differ in lightness, for grey prints."""
    return _LOOKS.get(method.name, ("#c0392b", "P"))


def trade_off(results: Results) -> Figure:
    """Leakage against detection (Fig. 3): a large panel for the first data set, small others."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.4), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(2.1, 1))
        for place, column in enumerate(main_columns(results)[2:]):
            axes = figure.add_subplot(grid[:, 0] if place == 0 else grid[place - 1, 1])
            _trade_off_panel(axes, results, results.main_methods(), column, large=place == 0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def unlearned_curve(results: Results) -> Figure:
    """The trade-off of mosaics of every size, which learn nothing, and every other row on it."""
    column, mosaics = main_columns(results)[2], set()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.4), layout="constrained")
        axes = figure.subplots()
        for grey, colour, label in (("_grey", MUTED, "grey"), ("", "#a9764f", "colour")):
            names = [f"mosaic{pixels}{grey}" for pixels in MOSAICS]
            mosaics |= set(names)
            points = [
                [results.mean(n, metric) for metric in ("cmap", column.metric)] for n in names
            ]
            points = 100 * np.array(points, float)  # (n, 2); None becomes NaN: no point
            axes.plot(*points.T, ".-", color=colour, lw=1.2, label=f"mosaics, {label}")
            for pixels, point in zip(MOSAICS, points, strict=True):
                if np.isfinite(point).all():
                    axes.annotate(f"1/{pixels}", point, fontsize=7.5, color=colour)
        others = [METHODS[n] for n in CONTROL_TABLE if n in results.by_method and n not in mosaics]
        _trade_off_panel(axes, results, others, column, large=True)
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _trade_off_panel(
    axes: Axes, results: Results, methods: Sequence[Method], column: Column, large: bool
) -> None:
    for method in methods:
        (x, dx), (y, dy) = (results.spread(method.name, m) for m in ("cmap", column.metric))
        if x is not None and y is not None:
            colour, marker = look(method)
            size = (13 if marker == "*" else 8) * (1 if large else 0.7)
            style = {"color": colour, "marker": marker, "markersize": size, "elinewidth": 0.9}
            style |= {"linestyle": "none", "label": method.label}
            style |= {"markerfacecolor": "white" if method.control else colour}
            spread = {"xerr": 100 * dx if dx else None, "yerr": 100 * dy if dy else None}
            axes.errorbar(100 * x, 100 * y, **spread, **style)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(f"{column.label[:-2]}, %")
    if (chance := results.chance_cmap()) is not None:
        axes.axvline(100 * chance, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.margins(0.1)
    axes.invert_xaxis()  # leakage falls to the right, so the best corner is the upper right one
    if large:
        leaked = "private attributes leaked: VISPR cMAP, %  (less is better →; dashed: chance)"
        axes.set(xlabel=leaked, ylabel="anomalies detected, %  (more is better →)")
        place = {"transform": axes.transAxes, "ha": "right", "va": "top", "fontweight": "bold"}
        axes.text(0.985, 0.985, "best corner", color="#2f7d4f", **place)


def category_bars(results: Results, dataset: str, methods: Sequence[Method]) -> Figure:
    """Frame AUC per category of anomaly, one bar per method that was measured (Figs. 6 and 7)."""
    names = results.categories(dataset)
    values = {m: [results.mean(m.name, f"{dataset}:auc:{n}") for n in names] for m in methods}
    values = {method: own for method, own in values.items() if set(own) != {None}}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        axes, width = figure.subplots(), 0.8 / max(1, len(values))
        for number, (method, own) in enumerate(values.items()):
            at = np.arange(len(names)) + (number - (len(values) - 1) / 2) * width
            heights = 100 * np.array(own, float)  # None becomes NaN: no bar
            axes.bar(at, heights, width=0.92 * width, color=look(method)[0], label=method.label)
        axes.axhline(50, color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", color=INK)
        axes.set(ylim=(0, 100), ylabel="frame AUC, %", title=DATASET_LABELS[dataset])
        axes.tick_params(length=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5)
    return figure


def ablation_changes(results: Results, numbers: Sequence[str]) -> Figure:
    """What each variant of these tables changes against raw, here and in the paper, in percent."""
    columns = {number: ablation_columns(number, results.preset) for number in numbers}
    lines = [(number, name) for number in numbers for name in ("", *ABLATION_TABLES[number])]
    titles = {number: f"Table {number}: {ABLATION_TITLES[number]}" for number in numbers}
    labels = [METHODS[n].label_in(results.preset) if n else titles[number] for number, n in lines]
    green, at = look(METHODS["ted_spad"])[0], range(len(lines))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 1.2 + 0.25 * len(lines)), layout="constrained")
        all_axes = figure.subplots(1, 2, sharey=True)
        for place, axes in enumerate(all_axes):
            changes = [_changes(results, columns[n][place], name) for n, name in lines]
            here, paper = zip(*changes, strict=True)
            axes.hlines(at, here, paper, color=GRID, linewidth=2.5, zorder=1)
            axes.plot(here, at, "o", color=green, label="measured here")
            axes.plot(paper, at, "D", color=MUTED, markerfacecolor="white", label="paper")
            axes.axvline(0, color=INK, lw=0.8)
            axes.grid(axis="x", color=GRID, linewidth=0.7)
            axes.tick_params(length=0)
            axes.set_title(("VISPR cMAP", "UCF-Crime AUC")[place] + ", change against raw, %")
        all_axes[0].set_yticks(at, labels, color=INK, fontsize=8.5)
        for tick, (_, name) in zip(all_axes[0].get_yticklabels(), lines, strict=True):
            tick.set_fontweight("normal" if name else "bold")
        all_axes[0].set_ylim(len(lines) - 0.4, -0.6)
        handles, names = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def _changes(results: Results, column: Column, name: str) -> tuple[float, float]:
    """(ours, the paper's) against raw, percent; NaN where there is none."""
    ours, raw = np.array([results.mean(n, column.metric) for n in (name, "raw")], float)
    theirs = column.paper.get(name, np.nan)
    return relative_change(ours, raw), relative_change(theirs, column.paper_raw)


def image_grid(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str]) -> Figure:
    """Rows (label, uint8 (n, H, W, 3)) of the same n images under every method, titles above."""
    headline = 0.1 + 0.13 * max(text.count("\n") + 1 for text in columns)
    width, height = 1.9 + 1.02 * len(columns), headline + 0.05 + 1.02 * len(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        all_axes = figure.subplots(len(rows), len(columns), squeeze=False)
        figure.subplots_adjust(left=1.8 / width, right=0.995, wspace=0.04, hspace=0.04)
        figure.subplots_adjust(top=1 - headline / height, bottom=0.005)
        for (label, images), row in zip(rows, all_axes, strict=True):
            for image, axes in zip(images, row, strict=True):
                axes.imshow(image, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            row[0].set_ylabel(label, rotation=0, ha="right", va="center", color=INK, fontsize=8.5)
        for axes, text in zip(all_axes[0], columns, strict=True):
            axes.set_title(text, fontsize=7.5, fontweight="normal", loc="center", color=MUTED)
    return figure
