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
from typing import NamedTuple

import numpy as np
import tyro

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    # works in an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aux_code.checkpoints import read_json
from aux_code.datasets.decode import frame_seconds
from aux_code.datasets.lists import refuse_all
from aux_code.errors import UserError
from aux_code.parameters import CommonParams, check_ranges, parse
from aux_code.reporting.figures import COLOURS, Curve, save_figure, score_figure
from aux_code.runs import run_script


@dataclass(frozen=True, kw_only=True)
class PlotScoresParams(CommonParams):
    """Which video and which results."""

    video: tyro.conf.Positional[str]
    """Name of a test video."""
    results: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files of main.py, one curve each."""
    output: Path = Path("scores.png")
    """Image to write; .png, .svg or .pdf."""
    fps: float = 30.0
    """Frames per second, for the axis, where the results do not lead to the video itself."""

    def __post_init__(self) -> None:
        check_ranges(self, above={"fps": 0})


PRESETS = dict.fromkeys(
    ("paper", "release", "ours", "miniature"),
    PlotScoresParams(video=tyro.MISSING, results=tyro.MISSING),
)


def main() -> None:
    params = parse(PRESETS, description=__doc__)
    if params.output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {params.output}: the name must end in .png, .svg or .pdf")
    if not params.results:
        raise UserError("give at least one results file: results/anomaly_<dataset>_<run_id>.json")
    results, broken = [], []
    for path in params.results:
        try:
            results.append(read_scores(path, params.video))
        except UserError as error:
            broken.append(error)
    refuse_all("results cannot be drawn", broken, "mend them or leave them out")
    curves = [Curve(r.label, r.scores, COLOURS[i % len(COLOURS)]) for i, r in enumerate(results)]
    # all are of one video, so its truth is drawn once
    n_frames = max(len(curve.scores) for curve in curves)
    seconds = seconds_of(params.results[0], params.video, n_frames, params.fps)
    save_figure(score_figure(curves, results[0].events, seconds), params.output)
    sys.stderr.write(f"{params.output}: {len(curves)} curves\n")


class VideoScores(NamedTuple):
    """Scores (n_frames,) of one video by one run; `events`: true [start, end) in frames."""

    label: str
    scores: np.ndarray
    events: list[tuple[int, int]]


def read_scores(results: Path, video: str) -> VideoScores:
    """One video's frame scores: those of its clips, repeated over their frames, cut to its length.

    Raises:
        UserError: no such file, not main.py's results, a damaged one, or without this video.
    """
    content = read_json(results)
    try:
        videos = {entry["name"]: entry for entry in content["videos"]}
        frames_per_feature = content["frames_per_feature"]
    except (KeyError, TypeError) as error:
        text = f"{results} is no result of main.py (results/anomaly_<dataset>_<run_id>.json)"
        raise UserError(text) from error
    entry = videos.get(video)
    if entry is None:
        near = [name for name in videos if video.lower() in name.lower()] or list(videos)
        raise UserError(f"{results} has no test video '{video}'; it has: {', '.join(near[:10])}")
    path = results.with_name(f"{results.stem}_scores.npz")
    if not path.is_file():
        raise UserError(f"{path} does not exist; main.py writes it beside {results.name}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            clip_scores = archive[video].reshape(-1)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or of another run ({error}); rerun main.py") from error
    scores = np.repeat(clip_scores, frames_per_feature)[: entry["n_frames"]]
    events = [tuple(event) for event in entry["events"]]
    return VideoScores(content.get("run_id", results.stem), scores, events)


def seconds_of(results: Path, video: str, n_frames: int, fps: float) -> np.ndarray:
    """(n_frames + 1,) seconds: the video's own where the manifest of the features leads to it, else
    at the rate that this states, else at `fps`."""
    try:
        manifest = read_json(Path(read_json(results)["inputs"]["manifest"]["path"]))
        entry = manifest["videos"][video]
        fps = entry["fps"] or fps
        return frame_seconds(entry["source"]["path"], n_frames)
    except (UserError, KeyError, TypeError):
        return np.arange(n_frames + 1) / fps


if __name__ == "__main__":
    run_script(main)
