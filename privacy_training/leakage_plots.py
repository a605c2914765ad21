"""Pictures of an attack: average precision per attribute beside chance, and released pictures with what was read."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aux_code.checkpoints import write_atomically


def plot_attributes(path: Path, results: dict[str, dict[str, Any]], protocol: str = "validation") -> None:
    """Bars of average precision per attribute, one colour per result, with the chance level as lines; a PNG.

    An attribute without a positive test picture has no bar, which is written there; one that a result lacks neither.

    Args:
        path: the file.
        results: label -> content of a results file of this stage; the first one's attributes and chance are drawn.
        protocol: last, validation or best_on_test.
    """
    chance = next(iter(results.values()))["chance"]["per_attribute"]
    places, width = np.arange(len(chance)), 0.8 / len(results)
    figure = Figure(figsize=(1.6 * len(chance) + 2, 4))
    axes = figure.subplots()
    for i, (label, result) in enumerate(results.items()):
        scores = result["protocols"][protocol]
        values = [np.nan if (ap := scores["per_attribute"].get(name)) is None else ap for name in chance]
        offset = (i - (len(results) - 1) / 2) * width
        axes.bar(places + offset, values, width, label=f"{label} (cMAP {scores['cmap']:.3f})")
    axes.hlines(list(chance.values()), places - 0.45, places + 0.45, colors="black", linestyles="--", label="chance")
    for place, level in zip(places, chance.values(), strict=True):
        if level == 0:
            axes.text(place, 0.02, "no positive\ntest picture", ha="center", fontsize=7)
    axes.set_xticks(places, list(chance), rotation=20, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("average precision")
    axes.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def plot_samples(path: Path, pictures: Tensor, probabilities: Tensor, labels: Tensor, names: list[str]) -> None:
    """A grid of what the attacker got, each picture with the attributes it has (bold) and the attacker's probabilities.

    Args:
        path: the PNG.
        pictures: (n, 3, H, W), clamped to [0, 1].
        probabilities, labels: (n, n_attributes).
        names: the attributes.
    """
    n_columns = 4
    figure = Figure(figsize=(3 * n_columns, 3.6 * -(-len(pictures) // n_columns)))
    grid = figure.subplots(-(-len(pictures) // n_columns), n_columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, scores, truth in zip(grid, pictures, probabilities, labels, strict=False):
        axes.imshow(picture.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
        for i, (name, score, present) in enumerate(zip(names, scores.tolist(), truth.tolist(), strict=True)):
            weight = "bold" if present else "normal"
            right = (score >= 0.5) == bool(present)
            place = {"x": 0, "y": -0.08 - 0.07 * i, "transform": axes.transAxes, "fontsize": 7}
            axes.text(s=f"{score:.2f} {name}", weight=weight, color="green" if right else "red", **place)
    _save(figure, path)


def sample_indices(n_pictures: int, n_samples: int = 12) -> Tensor:
    """Evenly spread indices, the same for every anonymizer, so that grids compare."""
    return torch.linspace(0, n_pictures - 1, min(n_samples, n_pictures)).round().long()


def _save(figure: Figure, path: Path) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
