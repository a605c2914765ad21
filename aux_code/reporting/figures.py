"""Figures that several scripts draw, with matplotlib and without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aux_code.checkpoints import write_atomically

INK, MUTED, GRID, TRUTH = "#1c1f24", "#6b7280", "#e5e7eb", "#9ec5f4"
COLOURS = ("#c0392b", "#2a7f3f", "#7d5ba6", "#c98a1b", "#2c6fbb", "#6b6b6b")
"""Red for the first curve, green for the second: raw and anonymized in the paper's figures."""
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9.5,
    "axes.edgecolor": "#9aa3af", "axes.linewidth": 0.8, "axes.labelcolor": INK,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "legend.frameon": False, "legend.fontsize": 8.5,
}  # fmt: skip
_ATTRIBUTES_IN_A_ROW = 7


class Curve(NamedTuple):
    """Frame scores of one video under one method."""

    label: str
    scores: np.ndarray
    """(n_frames,), in [0, 1]."""
    colour: str


class Strip(NamedTuple):
    """A row of frames below the curves."""

    label: str
    frames: np.ndarray
    """uint8 (n, H, W, 3)."""
    at: Sequence[int]
    """The frames' places in the video."""


class AttributeScores(NamedTuple):
    """Average precision per attribute of one attack, in [0, 1]."""

    label: str
    means: Mapping[str, float | None]
    colour: str
    deviations: Mapping[str, float | None] = {}


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes .png (160 dpi), .svg or .pdf, as the name ends."""
    FigureCanvasAgg(figure)
    kind = path.suffix[1:]
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=160))
    return path


def score_figure(
    curves: Sequence[Curve],
    events: Sequence[Sequence[int]],
    seconds: np.ndarray,
    strips: Sequence[Strip] = (),
    title: str = "",
    threshold: float | None = None,
) -> Figure:
    """Scores over a video's seconds, true events shaded, frames below at their places (Figs. 5, 8).

    Args:
        curves: of one video.
        events: true intervals [start, end) in frames.
        seconds: (n_frames + 1,) at which the frames are shown, and the video's end.
        strips: rows of frames.
        title: above the curves.
        threshold: drawn as a dashed line.
    """
    height = 2.6 + 1.05 * len(strips)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, height))
        grid = figure.add_gridspec(
            1 + len(strips), 1, height_ratios=[2.3, *[1.0] * len(strips)], hspace=0.3,
            left=0.135 if strips else 0.06, right=0.985, top=1 - 0.35 / height,
            bottom=(0.1 if strips else 0.5) / height,
        )  # fmt: skip
        axes = figure.add_subplot(grid[0])
        for number, (start, end) in enumerate(events):
            label = None if number else "anomalous (truth)"
            start, end = seconds[np.clip((start, end), 0, len(seconds) - 1)]
            axes.axvspan(start, end, color=TRUTH, alpha=0.55, lw=0, label=label)
        if threshold is not None:
            axes.axhline(threshold, color=MUTED, lw=0.8, ls="--", label="threshold")
        for label, scores, colour in curves:
            held = np.append(scores, scores[-1:])  # the last score lasts to the video's end
            axes.step(seconds[: len(held)], held, where="post", color=colour, lw=1.7, label=label)
        axes.set(xlim=(0, seconds[-1]), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
        axes.set(xlabel="seconds", ylabel="anomaly score", title=title)
        axes.tick_params(length=2, pad=2)
        axes.xaxis.set_label_coords(1, -0.1)
        axes.xaxis.label.set(ha="right", va="top", color=MUTED, fontsize=8.5)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=6, handlelength=1.5)
        for row, strip in enumerate(strips, 1):
            _draw_strip(figure.add_subplot(grid[row]), strip, seconds)
    return figure


def _draw_strip(axes: Axes, strip: Strip, seconds: np.ndarray) -> None:
    height, width = strip.frames.shape[1:3]
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    place = {"transform": axes.transAxes, "ha": "right", "va": "center"}
    axes.text(-0.012, 0.5, strip.label, **place, fontsize=8.5, color=INK)
    box, (figure_width, figure_height) = axes.get_position(), axes.figure.get_size_inches()
    share = box.height * figure_height * width / height / (box.width * figure_width)
    for frame, at in zip(strip.frames, strip.at, strict=True):
        centre = min(max(seconds[at] / seconds[-1], share / 2), 1 - share / 2)
        inset = axes.inset_axes((centre - share / 2, 0, share, 1))
        inset.imshow(frame, interpolation="nearest", aspect="auto")
        inset.set(xticks=[], yticks=[])
        inset.spines[:].set_visible(True)


def attribute_bars(attacks: Sequence[AttributeScores], chance: Mapping[str, float]) -> Figure:
    """Average precision of every attribute in `chance`, one bar per attack; dashed: chance.

    An attack without a value has no bar; where chance is 0 there is no positive test image.
    """
    n_rows = -(-max(1, len(chance)) // _ATTRIBUTES_IN_A_ROW)
    size = (11, 0.3 + n_rows * (0.6 + 0.3 * len(attacks)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        n_columns = max(1, min(_ATTRIBUTES_IN_A_ROW, len(chance)))
        all_axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
        for axes in all_axes.flat[len(chance) :]:
            axes.set_visible(False)
        for axes, (attribute, level) in zip(all_axes.flat, chance.items(), strict=False):
            for row, attack in enumerate(attacks):
                if (mean := attack.means.get(attribute)) is not None:
                    spread = 100 * (attack.deviations.get(attribute) or 0.0) or None
                    axes.barh(row, 100 * mean, xerr=spread, height=0.72, color=attack.colour)
            axes.axvline(100 * level, color="white", lw=2.4)
            axes.axvline(100 * level, color=INK, lw=1, ls=(0, (4, 2)))
            if level == 0:
                axes.text(4, 0, "no positive\ntest image", fontsize=7, va="center", color=MUTED)
            axes.set(xlim=(0, 100), xticks=[0, 50])
            axes.set_title(attribute.split("_", 1)[-1].replace("_", " "), fontsize=9)
            axes.tick_params(length=0)
        labels = [attack.label for attack in attacks]
        all_axes[0, 0].set_yticks(range(len(labels)), labels, color=INK)
        all_axes[0, 0].invert_yaxis()
        figure.supxlabel("average precision, %; dashed: chance", color=MUTED, fontsize=8.5)
    return figure
