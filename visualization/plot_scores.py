"""Draws anomaly scores of one test video against time, the truth shaded, one curve per result
(paper, Figs. 5 and 8).

    python visualization/plot_scores.py VIDEO RESULTS.json [RESULTS.json ...] --output scores.png

VIDEO is a video's name in the results; RESULTS are what anomaly_detection_mgfn/main.py writes to
results/, with the `_scores.npz` of the same name beside them.
"""

import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(
        0, str(Path(__file__).resolve().parent.parent)
    )  # works in an uninstalled clone, from any folder

from aux_code.checkpoints import read_json, write_atomically
from aux_code.errors import UserError
from aux_code.parameters import CommonParams, check_ranges, parse
from aux_code.runs import run_script

TRUTH_COLOUR = "#9db8e8"
COLOURS = ("#c0392b", "#2a7f3f", "#7d5ba6", "#c98a1b", "#2c6fbb", "#6b6b6b")
"""Red for the first curve, green for the second: raw and anonymized in the paper's figures."""


@dataclass(frozen=True, kw_only=True)
class PlotScoresParams(CommonParams):
    """Which video and which results."""

    video: tyro.conf.Positional[str]
    """Name of a test video."""
    results: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files of main.py, one curve each."""
    output: Path = Path("scores.png")
    """Picture to write; .png, .svg or .pdf."""
    fps: float = 30.0
    """Frames per second of the video, for the axis."""

    def __post_init__(self) -> None:
        check_ranges(self, above={"fps": 0})


@dataclass(frozen=True)
class Curve:
    """Scores (n_frames,) of one method; `events`: true intervals [start, end) in frames."""

    label: str
    scores: np.ndarray
    events: list[tuple[int, int]]


PRESETS = {
    "paper": PlotScoresParams(video=tyro.MISSING, results=tyro.MISSING),
    "miniature": PlotScoresParams(preset="miniature", video=tyro.MISSING, results=tyro.MISSING),
}


def main() -> None:
    params = parse(PRESETS, description=__doc__)
    if params.output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {params.output}: the name must end in .png, .svg or .pdf")
    if not params.results:
        raise UserError("give at least one results file: results/anomaly_<dataset>_<run_id>.json")
    curves = [read_curve(path, params.video) for path in params.results]
    plot(curves, params.fps, params.output)
    sys.stderr.write(f"{params.output}: {len(curves)} curves\n")


def read_curve(results: Path, video: str) -> Curve:
    """The frame scores of one video: each clip's score repeated over its frames, cut to the video's
    length.

    Raises:
        UserError: no such file, another file than main.py's results or a damaged one, or the video
            is not in it (names that are near are listed).
    """
    content = read_json(results)
    try:
        videos = {entry["name"]: entry for entry in content["videos"]}
        frames_per_feature = content["frames_per_feature"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{results} is no result of main.py (results/anomaly_<dataset>_<run_id>.json)"
        ) from error
    entry = videos.get(video)
    if entry is None:
        near = [name for name in videos if video.lower() in name.lower()]
        raise UserError(
            f"{results} has no test video '{video}'; it has: {', '.join((near or list(videos))[:10])}"
        )
    path = results.with_name(f"{results.stem}_scores.npz")
    if not path.is_file():
        raise UserError(f"{path} does not exist; main.py writes it beside {results.name}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            clip_scores = archive[video].reshape(-1)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or of another run ({error}); run main.py again"
        ) from error
    scores = np.repeat(clip_scores, frames_per_feature)[: entry["n_frames"]]
    return Curve(
        content.get("run_id", results.stem), scores, [tuple(event) for event in entry["events"]]
    )


def plot(curves: list[Curve], fps: float, output: Path) -> None:
    """Writes the picture. All curves are of one video, so its truth is drawn once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for number, (start, end) in enumerate(curves[0].events):
        axes.axvspan(
            start / fps,
            end / fps,
            color=TRUTH_COLOUR,
            alpha=0.6,
            lw=0,
            label=None if number else "truth",
        )
    for i, curve in enumerate(curves):
        seconds = np.arange(len(curve.scores) + 1) / fps
        scores = np.append(curve.scores, curve.scores[-1:])
        axes.step(seconds, scores, where="post", color=COLOURS[i % len(COLOURS)], label=curve.label)
    axes.set(
        xlabel="seconds",
        ylabel="anomaly score",
        ylim=(0, 1.02),
        xlim=(0, len(curves[0].scores) / fps),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    kind = output.suffix[1:]
    write_atomically(output, lambda file: figure.savefig(file, format=kind, dpi=150))


if __name__ == "__main__":
    run_script(main)
