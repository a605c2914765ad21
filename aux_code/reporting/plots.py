"""The figures of the report, drawn with matplotlib without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aux_code.checkpoints import write_atomically
from aux_code.reporting.detail_tables import categories, category_auc
from aux_code.reporting.published import DATASET_LABELS, HEADLINE_METRIC
from aux_code.reporting.results import Results
from reproduction.methods import Method

INK, MUTED, GRID, BEST = "#1c1f24", "#6b7280", "#e5e7eb", "#eaf5ee"
TRUTH = "#9ec5f4"

_LOOKS = {
    "raw": ("#1c1f24", "o"),
    "downsample2x": ("#a9764f", "v"),
    "downsample4x": ("#70492c", "v"),
    "blur": ("#8f7cc0", "s"),
    "blacken": ("#5b4a91", "s"),
    "spact": ("#d98a00", "D"),
    "ted_spad": ("#1a8f4d", "^"),
    "ted_spad_plus": ("#0b62c4", "*"),
    "spact_equal_compute": ("#e3b96a", "D"),
    "reconstruction": ("#9aa3af", "o"),
}
"""Colour and marker of a method in every figure; chosen to differ in lightness too, for grey
printers."""

FIGURE_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#9aa3af",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


class Curve(NamedTuple):
    """Frame scores of one video under one method."""

    method: Method
    scores: np.ndarray
    """(n_frames,), in [0, 1]."""


class Strip(NamedTuple):
    """A row of frames below the curves."""

    label: str
    frames: np.ndarray
    """uint8 (n, H, W, 3)."""
    at: Sequence[int]
    """The frames' places in the video."""


def look(method: Method) -> tuple[str, str]:
    """Colour and marker of a method."""
    return _LOOKS.get(method.name, ("#c0392b", "P"))


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG at 160 dpi."""
    FigureCanvasAgg(figure)
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=160, facecolor="white")
    )
    return path


def trade_off(results: Results) -> Figure:
    """Leakage against detection (the paper's Fig. 3): one large panel for UCF-Crime, a small one
    per other data set."""
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10.5, 5.4))
        grid = figure.add_gridspec(
            2, 2, width_ratios=(2.1, 1), left=0.07, right=0.985, top=0.93, bottom=0.2
        )
        grid.update(hspace=0.5, wspace=0.2)
        cells = [grid[:, 0], grid[0, 1], grid[1, 1]]
        for place, dataset in enumerate(results.datasets[:3]):
            axes = figure.add_subplot(cells[place])
            _trade_off_panel(axes, results, dataset, labelled=place == 0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="lower center",
            ncols=5,
            fontsize=8.5,
            handletextpad=0.3,
            columnspacing=1.4,
        )
    return figure


def _trade_off_panel(axes: Axes, results: Results, dataset: str, labelled: bool) -> None:
    metric = f"{dataset}:{HEADLINE_METRIC[dataset]}"
    points = []
    for method in [*results.main_methods(control=False), *results.main_methods(control=True)]:
        x, y = results.mean(method.name, "cmap"), results.mean(method.name, metric)
        if x is None or y is None:
            continue
        colour, marker = look(method)
        spread = [results.deviation(method.name, m) or 0.0 for m in ("cmap", metric)]
        axes.errorbar(
            100 * x, 100 * y, xerr=100 * spread[0] or None, yerr=100 * spread[1] or None, color=colour, marker=marker,
            markersize=(13 if marker == "*" else 8) * (1 if labelled else 0.7), linestyle="none", elinewidth=0.9,
            markerfacecolor="white" if method.control else colour, label=method.label, zorder=3,
        )  # fmt: skip
        points.append((100 * x, 100 * y, method))
    chance = results.chance_cmap()
    _frame_trade_off(
        axes, [p[:2] for p in points], 100 * chance if chance is not None else None, labelled
    )
    axes.set_title(f"{DATASET_LABELS[dataset]} {HEADLINE_METRIC[dataset].upper()}, %")
    if labelled:
        axes.set_xlabel("private attributes leaked: VISPR cMAP, %  (less is better →)")
        axes.set_ylabel("anomalies detected, %  (more is better →)")


def _frame_trade_off(
    axes: Axes, points: list[tuple[float, float]], chance: float | None, labelled: bool
) -> None:
    """Leakage falls to the right, so the best corner is the upper right one."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    if not points:
        return
    xs, ys = np.array(points).T
    left, right = xs.max(), min(xs.min(), chance if chance is not None else xs.min())
    pad_x, pad_y = max(1.0, 0.08 * (left - right)), max(1.0, 0.15 * (ys.max() - ys.min()))
    axes.set_xlim(left + pad_x, right - pad_x)
    axes.set_ylim(ys.min() - pad_y, ys.max() + pad_y)
    if chance is not None:
        axes.axvline(chance, ymax=0.93, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if labelled:
            axes.annotate(
                "chance", (chance, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="bottom",
                color=MUTED, fontsize=8.5, xytext=(-2, 0), textcoords="offset points",
            )  # fmt: skip
    corner = axes.imshow(
        _corner_gradient(),
        extent=(0.6, 1, 0.55, 1),
        transform=axes.transAxes,
        aspect="auto",
        zorder=0,
    )
    corner.set_clip_on(True)
    if labelled:
        axes.text(
            0.985, 0.985, "best corner", transform=axes.transAxes, ha="right", va="top", color="#2f7d4f", fontsize=9,
            fontweight="bold",
        )  # fmt: skip


def _corner_gradient() -> np.ndarray:
    """RGBA (64, 64, 4): green that fades away from the upper right corner."""
    y, x = np.mgrid[1:0:64j, 0:1:64j]
    alpha = 0.35 * np.clip(1 - np.hypot(1 - x, 1 - y), 0, 1)
    return np.dstack([np.full_like(x, c) for c in (0.30, 0.69, 0.42)] + [alpha])


def attribute_bars(results: Results, methods: Sequence[Method]) -> Figure:
    """Average precision of every attribute under these methods; a dashed line marks chance."""
    attributes = results.attributes()
    chances = next(
        (
            r.leakage.chance_per_attribute
            for e in results.by_method.values()
            for r in e
            if r.leakage
        ),
        {},
    )
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(11, 0.9 + 0.3 * len(methods)))
        all_axes = figure.subplots(1, max(1, len(attributes)), sharey=True, squeeze=False)[0]
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=0.17, right=0.99, top=1 - 0.3 / height, bottom=0.5 / height, wspace=0.14
        )
        for axes, attribute in zip(all_axes, attributes, strict=False):
            for row, method in enumerate(methods):
                mean = results.mean(method.name, f"attribute:{attribute}")
                if mean is not None:
                    deviation = results.deviation(method.name, f"attribute:{attribute}")
                    error = 100 * deviation if deviation is not None else None
                    axes.barh(
                        row, 100 * mean, xerr=error, height=0.72, color=look(method)[0], alpha=0.9
                    )
            if chances.get(attribute) is not None:
                axes.axvline(100 * chances[attribute], color="white", linewidth=2.4)
                axes.axvline(
                    100 * chances[attribute], color=INK, linewidth=1, linestyle=(0, (4, 2))
                )
            axes.set_xlim(0, 100)
            axes.set_xticks([0, 50])
            axes.set_title(attribute.split("_", 1)[-1].replace("_", " "), fontsize=9)
            axes.tick_params(length=0)
        all_axes[0].set_yticks(
            range(len(methods)), [method.label_in(results.preset) for method in methods], color=INK
        )
        all_axes[0].invert_yaxis()
        figure.text(0.17, 0.015, "average precision, %; dashed: chance", color=MUTED, fontsize=8.5)
    return figure


def category_bars(results: Results, dataset: str, methods: Sequence[Method]) -> Figure:
    """Frame AUC per category of anomaly, raw beside anonymized (the paper's Figs. 6 and 7).

    Args:
        results: what was measured.
        dataset: which one.
        methods: one bar of each per category.
    """
    names = categories(results, dataset)
    methods = [
        m for m in methods if any(category_auc(results, m, dataset, c) is not None for c in names)
    ]
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10.5, 3.2))
        axes = figure.add_axes((0.06, 0.24, 0.93, 0.64))
        width = 0.8 / max(1, len(methods))
        for number, method in enumerate(methods):
            values = [category_auc(results, method, dataset, category) for category in names]
            at = np.arange(len(names)) + (number - (len(methods) - 1) / 2) * width
            heights = [np.nan if value is None else 100 * value for value in values]
            axes.bar(at, heights, width=0.92 * width, color=look(method)[0], label=method.label)
        axes.axhline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", color=INK)
        axes.set(ylim=(0, 100), ylabel="frame AUC, %")
        axes.tick_params(length=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8.5)
    return figure


def score_figure(
    title: str, curves: list[Curve], events: Sequence[Sequence[int]], strips: list[Strip]
) -> Figure:
    """Scores over a video with the true events shaded, and frames below at their places (the
    paper's Figs. 5 and 8)."""
    n_frames = max(len(curve.scores) for curve in curves)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10.5, 2.5 + 1.05 * len(strips)))
        heights = [2.3, *[1.0] * len(strips)]
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights, hspace=0.26)
        figure.subplots_adjust(left=0.135, right=0.985, top=0.9, bottom=0.03)
        axes = figure.add_subplot(grid[0])
        for number, (start, end) in enumerate(events):
            axes.axvspan(
                start,
                end,
                color=TRUTH,
                alpha=0.55,
                linewidth=0,
                label=None if number else "anomalous (truth)",
            )
        for curve in curves:
            x = np.repeat(np.arange(len(curve.scores) + 1), 2)[1:-1]
            axes.plot(
                x,
                np.repeat(curve.scores, 2),
                color=look(curve.method)[0],
                linewidth=1.7,
                label=curve.method.label,
            )
        axes.set(xlim=(0, n_frames), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1], ylabel="anomaly score")
        axes.set_title(title)
        axes.tick_params(length=2, pad=2)
        axes.text(
            1.0,
            -0.19,
            "frame",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=8.5,
            color=MUTED,
        )
        axes.legend(
            loc="upper left", bbox_to_anchor=(0.35, 1.19), ncols=5, fontsize=8.5, handlelength=1.5
        )
        for row, strip in enumerate(strips, 1):
            _draw_strip(figure.add_subplot(grid[row]), strip, n_frames)
    return figure


def _draw_strip(axes: Axes, strip: Strip, n_frames: int) -> None:
    height, width = strip.frames.shape[1:3]
    axes.set(xlim=(0, n_frames), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.text(
        -0.012,
        0.5,
        strip.label,
        transform=axes.transAxes,
        ha="right",
        va="center",
        fontsize=8.5,
        color=INK,
    )
    box = axes.get_position()
    figure_width, figure_height = axes.figure.get_size_inches()
    share = box.height * figure_height * width / height / (box.width * figure_width)
    for frame, at in zip(strip.frames, strip.at, strict=True):
        centre = min(max(at / n_frames, share / 2), 1 - share / 2)
        inset = axes.inset_axes((centre - share / 2, 0, share, 1))
        inset.imshow(frame, interpolation="nearest", aspect="auto")
        inset.set(xticks=[], yticks=[])
        inset.spines[:].set_visible(True)


def picture_grid(rows: list[tuple[str, np.ndarray]], columns: Sequence[str]) -> Figure:
    """The same pictures under every method: rows (label, uint8 (n, H, W, 3)), one column per
    picture."""
    n = len(columns)
    with matplotlib.rc_context(FIGURE_STYLE):
        headline = 0.1 + 0.13 * max(text.count("\n") + 1 for text in columns)
        figure = Figure(figsize=(1.9 + 1.02 * n, headline + 0.05 + 1.02 * len(rows)))
        left = 1.8 / figure.get_figwidth()
        top = 1 - headline / figure.get_figheight()
        figure.subplots_adjust(
            left=left, right=0.995, top=top, bottom=0.005, wspace=0.04, hspace=0.04
        )
        all_axes = figure.subplots(len(rows), n, squeeze=False)
        for (label, pictures), row in zip(rows, all_axes, strict=True):
            for picture, axes in zip(pictures, row, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            row[0].text(
                -0.06,
                0.5,
                label,
                transform=row[0].transAxes,
                ha="right",
                va="center",
                fontsize=8.5,
                color=INK,
            )
        for axes, text in zip(all_axes[0], columns, strict=True):
            axes.set_title(
                text, fontsize=7.5, fontweight="normal", loc="center", color=MUTED, pad=3
            )
    return figure
