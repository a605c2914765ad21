"""Pictures of an attack: average precision per attribute beside chance, and released pictures with
what was read."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aux_code.checkpoints import write_atomically

MAX_LINES = 14
"""Attributes below a sample picture, at most."""
_COLUMNS, _PICTURE_INCHES, _LINE_POINTS = 4, 2.4, 11


def plot_attributes(
    path: Path, results: dict[str, dict[str, Any]], protocol: str = "validation"
) -> None:
    """Bars of average precision per attribute, one colour per result, with the chance level as
    lines; a PNG.

    An attribute without a positive test picture has no bar, which is written there; one that a
    result lacks neither.

    Args:
        path: the file.
        results: label -> content of a results file of this stage; the first one's attributes and
            chance are drawn.
        protocol: last, validation or best_on_test.
    """
    chance = next(iter(results.values()))["chance"]["per_attribute"]
    places, width = np.arange(len(chance)), 0.8 / len(results)
    figure = Figure(figsize=(1.6 * len(chance) + 2, 4))
    axes = figure.subplots()
    for i, (label, result) in enumerate(results.items()):
        scores = result["protocols"][protocol]
        values = [
            np.nan if (ap := scores["per_attribute"].get(name)) is None else ap for name in chance
        ]
        offset = (i - (len(results) - 1) / 2) * width
        axes.bar(places + offset, values, width, label=f"{label} (cMAP {scores['cmap']:.3f})")
    axes.hlines(
        list(chance.values()),
        places - 0.45,
        places + 0.45,
        colors="black",
        linestyles="--",
        label="chance",
    )
    for place, level in zip(places, chance.values(), strict=True):
        if level == 0:
            axes.text(place, 0.02, "no positive\ntest picture", ha="center", fontsize=7)
    axes.set_xticks(places, list(chance), rotation=20, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("average precision")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(results) + 1, frameon=False, fontsize=8
    )
    _save(figure, path)


def plot_samples(
    path: Path, pictures: Tensor, probabilities: Tensor, labels: Tensor, names: list[str]
) -> None:
    """A grid of what the attacker got, each picture with the attributes it has (bold) and the
    attacker's probabilities.

    Green: right at a threshold of 0.5; red: wrong. At most MAX_LINES attributes stand below a
    picture.

    Args:
        path: the PNG.
        pictures: (n, 3, H, W), clamped to [0, 1].
        probabilities, labels: (n, n_attributes).
        names: the attributes.
    """
    n_rows, n_lines = -(-len(pictures) // _COLUMNS), min(len(names), MAX_LINES)
    text_inches = n_lines * _LINE_POINTS / 72 + 0.2
    figure = Figure(figsize=(3 * _COLUMNS, n_rows * (_PICTURE_INCHES + text_inches)))
    grid = figure.subplots(
        n_rows, _COLUMNS, squeeze=False, gridspec_kw={"hspace": text_inches / _PICTURE_INCHES}
    )
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, picture, scores, truth in zip(
        grid.ravel(), pictures, probabilities, labels, strict=False
    ):
        axes.imshow(
            picture.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest"
        )
        for line, i in enumerate(_shown(scores, truth, n_lines)):
            score, present = float(scores[i]), bool(truth[i])
            colour = "green" if (score >= 0.5) == present else "red"
            place = {
                "xycoords": "axes fraction",
                "textcoords": "offset points",
                "annotation_clip": False,
            }
            place |= {"xytext": (0, -_LINE_POINTS * (line + 1)), "fontsize": 7}
            weight = "bold" if present else "normal"
            axes.annotate(f"{score:.2f} {names[i]}", (0, 0), color=colour, weight=weight, **place)
    _save(figure, path)


def _shown(scores: Tensor, truth: Tensor, n_lines: int) -> list[int]:
    """All attributes, in their order; of too many those that the picture has, then the most
    probable."""
    order = sorted(range(len(scores)), key=lambda i: (-float(truth[i]), -float(scores[i])))
    return sorted(order[:n_lines])


def sample_indices(n_pictures: int, n_samples: int = 12) -> Tensor:
    """Evenly spread indices, the same for every anonymizer, so that grids compare."""
    return torch.linspace(0, n_pictures - 1, min(n_samples, n_pictures)).round().long()


def _save(figure: Figure, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
