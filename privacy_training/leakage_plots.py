"""Figures of an attack: precision per attribute, released images with what was read."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from aux_code.reporting.figures import COLOURS, AttributeScores, attribute_bars, save_figure

MAX_LINES = 14
"""Attributes below a sample image, at most."""
_COLUMNS, _IMAGE_INCHES, _LINE_POINTS = 4, 2.4, 11


def plot_attributes(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Bars of average precision per attribute, at the epoch by validation, chance as lines; a PNG.

    Of `results` (label -> content of a results file) the first gives attributes and chance.
    """
    attacks = []
    for i, (label, result) in enumerate(results.items()):
        scores = result["protocols"]["validation"]
        label = f"{label} (cMAP {scores['cmap']:.3f})"
        attacks.append(AttributeScores(label, scores["per_attribute"], COLOURS[i % len(COLOURS)]))
    chance = next(iter(results.values()))["chance"]["per_attribute"]
    save_figure(attribute_bars(attacks, chance), path)


def sample_figure(
    images: Tensor, probabilities: Tensor, labels: Tensor, names: list[str]
) -> Figure:
    """A grid of what the attacker got, each image with its attributes (bold) and probabilities.

    Green: right at a threshold of 0.5; red: wrong. At most MAX_LINES attributes stand below one.

    Args:
        images: (n, 3, H, W), clamped to [0, 1].
        probabilities, labels: (n, n_attributes).
        names: the attributes.
    """
    n_rows, n_lines = -(-len(images) // _COLUMNS), min(len(names), MAX_LINES)
    text_inches = n_lines * _LINE_POINTS / 72 + 0.2
    figure = Figure(figsize=(3 * _COLUMNS, n_rows * (_IMAGE_INCHES + text_inches)))
    space = {"hspace": text_inches / _IMAGE_INCHES}
    grid = figure.subplots(n_rows, _COLUMNS, squeeze=False, gridspec_kw=space).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, scores, truth in zip(grid, images, probabilities, labels, strict=False):
        pixels = image.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        axes.imshow(pixels, interpolation="nearest")
        for line, i in enumerate(_shown(scores, truth, n_lines)):
            score, present = float(scores[i]), bool(truth[i])
            axes.annotate(
                f"{score:.2f} {names[i]}", (0, 0), (0, -_LINE_POINTS * (line + 1)),
                xycoords="axes fraction", textcoords="offset points", annotation_clip=False,
                color="green" if (score >= 0.5) == present else "red",
                weight="bold" if present else "normal", fontsize=7,
            )  # fmt: skip
    return figure


def _shown(scores: Tensor, truth: Tensor, n_lines: int) -> list[int]:
    """All attributes, in their order; of too many those of the image, then the most probable."""
    order = sorted(range(len(scores)), key=lambda i: (-float(truth[i]), -float(scores[i])))
    return sorted(order[:n_lines])


def sample_indices(n_images: int, n_samples: int = 12) -> Tensor:
    """Evenly spread indices, the same for every anonymizer, so that grids compare."""
    return torch.linspace(0, n_images - 1, min(n_samples, n_images)).round().long()
