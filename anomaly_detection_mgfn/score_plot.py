"""The picture of one scored video: its score curve, the truth where known, and anonymized frames
below (Figs. 5, 8)."""

import logging
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aux_code.checkpoints import write_atomically
from aux_code.datasets.decode import read_frames
from aux_code.datasets.transforms import evaluation_transform, transform_boxes
from aux_code.model_loaders import apply_anonymizer, load_anonymizer
from aux_code.models.obfuscation import Raw, read_boxes

log = logging.getLogger(__name__)

N_FRAMES_SHOWN = 6
SCORE_COLOUR, TRUTH_COLOUR = "#2a7f3f", "#9db8e8"
"""Green for scores of anonymized video and shaded blue for the truth, as in the paper's figures."""


@torch.inference_mode()
def anonymized_frames(
    video: Path, anonymizer: str, size: int, n_frames: int, boxes_csv: str = ""
) -> np.ndarray | None:
    """A few frames, evenly spread, as the detector saw them: uint8 (N, size, size, 3).

    Args:
        video: file or folder of frames.
        anonymizer: name or path.
        size: of the frames that f_A sees, pixels.
        n_frames: of the video.
        boxes_csv: person boxes for the anonymizers that need them.

    Returns:
        None where the frames would show people: of raw video, and without the boxes that blur and
        blacken need.
    """
    net = load_anonymizer(anonymizer)
    if isinstance(net, Raw):
        log.info("no frames below the curve: 'raw' anonymizes nothing")
        return None
    indices = ((np.arange(N_FRAMES_SHOWN) + 0.5) * n_frames / N_FRAMES_SHOWN).astype(np.int64)
    boxes = None
    if getattr(net, "requires_boxes", False):
        rows = _rows_of(video, boxes_csv)
        if rows is None:
            log.info(
                "no frames below the curve: '%s' needs person boxes of this video (--boxes)",
                anonymizer,
            )
            return None
        boxes = [rows.get(int(i), np.zeros((0, 4), np.float32)) for i in indices]
    frames = read_frames(video, indices)
    if boxes is not None:
        boxes = [
            torch.from_numpy(transform_boxes(own, frames.shape[1:3], size)).float() for own in boxes
        ]
    shown = apply_anonymizer(net, evaluation_transform(frames, size), boxes)
    return (shown.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _rows_of(video: Path, boxes_csv: str) -> dict[int, np.ndarray] | None:
    """frame -> boxes of the row whose `file` is the end of the video's path; None without one."""
    path = video.resolve().as_posix()
    found = read_boxes(boxes_csv).items() if boxes_csv else ()
    return next((rows for file, rows in found if path.endswith(f"/{file}")), None)


def plot_scores(
    path: Path,
    curve: tuple[np.ndarray, float],
    threshold: float,
    events: tuple[tuple[int, int], ...],
    frames: np.ndarray | None,
) -> None:
    """Writes the picture as PNG.

    Args:
        path: the file.
        curve: (scores (n_frames,) in [0, 1], frames per second).
        threshold: drawn as a dashed line.
        events: true intervals in frames, shaded.
        frames: uint8 (N, H, W, 3), drawn in a row below the curve at the times they stand for.
    """
    scores, fps = curve
    figure = Figure(figsize=(8, 2.2 if frames is None else 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2.2] if frames is None else [2.2, 1.4]
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    axes = rows[0, 0].subplots()
    for number, (start, end) in enumerate(events):
        axes.axvspan(
            start / fps,
            end / fps,
            color=TRUTH_COLOUR,
            alpha=0.6,
            lw=0,
            label=None if number else "truth",
        )
    axes.axhline(threshold, color="0.5", lw=0.8, ls="--", label="threshold")
    seconds = np.arange(len(scores) + 1) / fps
    axes.step(
        seconds, np.append(scores, scores[-1]), where="post", color=SCORE_COLOUR, label="score"
    )
    axes.set(xlabel="seconds", ylabel="anomaly score", ylim=(0, 1.02), xlim=(0, len(scores) / fps))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    if frames is not None:
        for axis, frame in zip(rows[1, 0].subplots(1, len(frames)), frames, strict=True):
            axis.imshow(frame, interpolation="nearest")
            axis.axis("off")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
