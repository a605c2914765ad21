"""--score: from videos of one's own to frame scores, anomalous intervals and plots. Nothing
unanonymized is written."""

import csv
import io
import logging
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomaly_detection_mgfn.feature_bags import FeatureSource, load_videos, open_feature_folder
from anomaly_detection_mgfn.mgfn_files import load_network
from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.score_plot import anonymized_frames, plot_scores
from anomaly_detection_mgfn.scoring import anomalous_intervals, frame_scores, score_videos
from anomaly_detection_mgfn.stage_data import extraction_preset
from aux_code import config
from aux_code.artefacts import describe_inputs, sha256
from aux_code.checkpoints import read_json, write_atomically, write_json
from aux_code.datasets.surveillance import load_surveillance
from aux_code.errors import UserError
from aux_code.models.obfuscation import OBFUSCATIONS
from aux_code.progress import progress
from aux_code.runs import start_run

log = logging.getLogger(__name__)

EXTRACTION_SCRIPT = "feature_extraction/dali_extraction.py"
COPY_SCRIPT = "visualization/anonymize_video.py"


@dataclass(frozen=True)
class Recipe:
    """How videos become features: as the training features of the detector were made."""

    anonymizer: str
    utility: str
    features: dict[str, Any]
    """The manifest fields that the checkpoint carries."""


@dataclass(frozen=True)
class ScoredVideo:
    """One video's result."""

    name: str
    path: Path
    fps: float
    scores: np.ndarray
    """(n_frames,) in [0, 1]."""
    events: tuple[tuple[int, int], ...] | None
    """True intervals where known."""


def score_command(params: MgfnParams) -> int:
    """Extracts, scores and reports the videos that --score names; returns the exit status (3: some
    videos failed).

    Raises:
        UserError: no --checkpoint, no video, networks other than those of the training features,
            nothing extracted.
    """
    if not params.checkpoint:
        raise UserError(
            "--score needs --checkpoint PATH, a file of main.py's (saved_models/<run>/mgfn_*/best.pth)"
        )
    if not Path(params.score).exists():
        raise UserError(
            f"--score {params.score} does not exist; give a video, a folder of frames or one of videos"
        )
    params = replace(params, run_id=params.run_id or f"main_{params.preset}_score")
    loaded = load_network(params.checkpoint)
    recipe = find_recipe(params, loaded.meta)
    if params.anonymized_copy and recipe.anonymizer == "raw":
        raise UserError(
            "--anonymized_copy: this detector's features are raw, so there is nothing to anonymize with"
        )
    output = (
        Path(params.output) if params.output else config.RESULTS_ROOT / f"scores_{params.run_id}"
    )
    run = start_run(params, "main_score")
    extracted = extract_videos(params, recipe, output / "features")
    source = extracted.source
    features = load_videos(source, list(extracted.paths), params.memory_limit_gib)
    clip_scores = score_videos(
        loaded.net.to(run.device), features, run.device, params.clips_per_pass
    )
    folders = result_folders(output, features.names)
    for name, scores in zip(progress(features.names, "report"), clip_scores, strict=True):
        path = extracted.paths[name]
        video = ScoredVideo(
            name=name,
            path=path,
            fps=float(source.manifest["videos"][name].get("fps") or 25.0),
            scores=frame_scores(
                scores, source.entries[name].n_frames, source.frames_per_feature, name
            ),
            events=known_events(params, path),
        )
        report_video(params, recipe, video, folders[name])
    log.info("results in %s", output)
    return 3 if extracted.partly else 0


class Extracted(NamedTuple):
    """The videos that could be extracted."""

    source: FeatureSource
    paths: dict[str, Path]
    """Name in the manifest -> file or folder of frames."""
    partly: bool
    """Whether others could not."""


def extract_videos(params: MgfnParams, recipe: Recipe, folder: Path) -> Extracted:
    """Features of the videos that --score names; those that stand already are kept if they are of
    the same files."""
    candidates = candidate_paths(Path(params.score))
    sources = ExtractedSources(folder)
    sources.forget_changed(candidates)
    partly = extract(params, recipe, folder)
    source = open_feature_folder(folder)
    paths = video_paths(candidates, source)
    sources.record(paths)
    return Extracted(source, paths, partly)


def safe_name(name: str) -> str:
    """A folder name for a video's results, without characters that shells or file systems
    dislike."""
    return re.sub(r"[^\w.+-]", "_", name)


def result_folders(output: Path, names: list[str]) -> dict[str, Path]:
    """A folder of its own for each video's results, whatever their names have in common."""
    folders: dict[str, Path] = {}
    for name in names:
        own, number = output / safe_name(name), 2
        while own in folders.values():
            own, number = output / f"{safe_name(name)}_{number}", number + 1
        folders[name] = own
    return folders


def find_recipe(params: MgfnParams, meta: dict[str, Any]) -> Recipe:
    """Names the networks for the extraction.

    Raises:
        UserError: the checkpoint does not say how its features were made, a network's file is gone,
            or --anonymizer or --utility is another one than that of the training features.
    """
    features = meta.get("features")
    if not features:
        raise UserError(
            f"{params.checkpoint} does not say how its features were made; use a checkpoint of main.py's"
        )
    chosen = {}
    for role, given in (("anonymizer", params.anonymizer), ("utility", params.utility)):
        recorded = features.get(role) or {}
        digest = recorded.get("sha256", "")
        path = given or find_file(recorded.get("path") or recorded.get("name") or "", digest)
        if digest and path not in OBFUSCATIONS and not Path(path).is_file():
            raise UserError(
                f"{role} '{path}' of the training features is not there; give its file as --{role} PATH"
            )
        found = sha256(path) if digest and Path(path).is_file() else path
        if found != (digest or recorded.get("name")):
            raise UserError(
                f"--{role} {path}: {params.checkpoint} was trained on features of another {role} "
                f"({recorded.get('name') or recorded.get('path')}); give that one or the detector made for this one"
            )
        chosen[role] = path
    return Recipe(chosen["anonymizer"], chosen["utility"], features)


def find_file(name: str, digest: str) -> str:
    """The recorded file where it is, or one of its name and content below saved_models/; names such
    as raw stay."""
    if not digest or Path(name).is_file():
        return name
    candidates = sorted(config.SAVED_MODELS_ROOT.rglob(Path(name).name)) if name else []
    return next((str(path) for path in candidates if sha256(path) == digest), name)


def extract(params: MgfnParams, recipe: Recipe, folder: Path) -> bool:
    """Runs stage 3 on the videos, as its own process; returns whether some of them failed."""
    arguments = ["--preset", extraction_preset(params)]
    arguments += ["--dataset", str(Path(params.score).resolve()), "--anonymizer", recipe.anonymizer]
    arguments += [
        "--utility",
        recipe.utility,
        "--output",
        str(folder),
        "--run_id",
        f"{params.run_id}_extraction",
    ]
    for key in ("size", "crop", "n_crops"):
        if recipe.features.get(key) is not None:
            arguments += [f"--{key}", str(recipe.features[key])]
    return run_repository_script(EXTRACTION_SCRIPT, [*arguments, *common_options(params)]) == 3


def common_options(params: MgfnParams) -> list[str]:
    """Options that the other stages' scripts take as this one does."""
    people = {"--boxes": params.boxes, "--detector_weights": params.detector_weights}
    given = [
        word for option, path in people.items() if path is not None for word in (option, str(path))
    ]
    return ["--device", params.device, "--n_threads", str(params.n_threads), *given]


def run_repository_script(script: str, arguments: list[str]) -> int:
    """Runs a script of the repository as a process of its own: stages hand over through the disk
    only.

    Raises:
        UserError: it ended with another status than 0 or 3; its own message stands above.
    """
    command = [sys.executable, str(config.REPOSITORY_ROOT / script), *arguments]
    log.info("%s", shlex.join(command))
    status = subprocess.run(command, check=False).returncode
    if status not in (0, 3):
        raise UserError(
            f"status {status}, see the message above, of the command {shlex.join(command)}"
        )
    return status


def candidate_paths(path: Path) -> dict[str, Path]:
    """What --score names: every name that the extraction may give to a video -> its file or folder
    of frames."""
    if path.is_file():
        return {path.stem: path}
    if any((path / name).is_file() for name in ("train.csv", "test.csv")):
        videos = load_surveillance(str(path))
        return {video.name: Path(video.path) for video in (*videos.train, *videos.test)}
    candidates = {path.resolve().name: path}
    for item in sorted(path.rglob("*")):
        relative = item.relative_to(path)
        candidates[relative.as_posix().replace("/", "__")] = item
        candidates.setdefault(item.name, item)
        if item.is_file():
            candidates[relative.with_suffix("").as_posix().replace("/", "__")] = item
            candidates.setdefault(item.stem, item)
    return candidates


def video_paths(candidates: dict[str, Path], source: FeatureSource) -> dict[str, Path]:
    """The extracted videos among the candidates: name in the manifest -> file or folder of frames.

    Raises:
        UserError: there is none.
    """
    there = (
        name
        for name, entry in source.entries.items()
        if name in candidates and entry.path.is_file()
    )
    found = {name: candidates[name] for name in there}
    if not found:
        raise UserError(
            f"no video of --score could be extracted; see the messages above and {source.location}"
        )
    return found


class ExtractedSources:
    """Which file each extracted video came from: another one of the same name must not be given its
    features.

    Args:
        folder: of the features; it holds this record as sources.json.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "sources.json"
        self.known: dict[str, list] = read_json(self.path) if self.path.is_file() else {}

    def forget_changed(self, candidates: dict[str, Path]) -> None:
        """Removes the features of videos that are another file now, or of which nothing is
        known."""
        for file in self.folder.glob("*.npy"):
            path = candidates.get(file.stem)
            if path is not None and self.known.get(file.stem) != file_signature(path):
                log.info("%s is another file than before: extracted again", path)
                file.unlink()

    def record(self, paths: dict[str, Path]) -> None:
        """Notes where the features that stand now came from."""
        self.known |= {name: file_signature(path) for name, path in paths.items()}
        write_json(self.path, self.known)


def file_signature(path: Path) -> list:
    """[path, bytes, time of change] of a file; of a folder of frames the sums over its files."""
    files = (
        [path] if path.is_file() else [item for item in sorted(path.iterdir()) if item.is_file()]
    )
    states = [file.stat() for file in files]
    return [str(path.resolve()), sum(s.st_size for s in states), sum(s.st_mtime_ns for s in states)]


def known_events(params: MgfnParams, video: Path) -> tuple[tuple[int, int], ...] | None:
    """True anomalous intervals in frames, if the video belongs to the data set of --dataset or of
    its own folder."""
    has_list = any((Path(params.score) / name).is_file() for name in ("train.csv", "test.csv"))
    try:
        videos = load_surveillance(params.score if has_list else params.dataset)
    except UserError:
        return None  # most people's own videos: no data set is installed, and none is needed
    for known in videos.test:
        if Path(known.path).resolve() == video.resolve():
            return tuple((int(start), int(end)) for start, end in known.events)
    return None


def report_video(params: MgfnParams, recipe: Recipe, video: ScoredVideo, folder: Path) -> None:
    """Writes scores.csv, intervals.csv, scores.json, scores.png and, on request, anonymized.mp4."""
    min_frames = max(1, round(params.min_interval * video.fps))
    spans = anomalous_intervals(video.scores, params.threshold, min_frames)
    intervals = [describe_interval(span, video) for span in spans]
    frames = [[i, f"{i / video.fps:.3f}", f"{score:.6f}"] for i, score in enumerate(video.scores)]
    write_csv(folder / "scores.csv", ["frame", "seconds", "score"], frames)
    header = ["start", "end", "start_seconds", "end_seconds", "peak"]
    write_csv(
        folder / "intervals.csv", header, [[item[key] for key in header] for item in intervals]
    )
    roles = {
        "checkpoint": params.checkpoint,
        "anonymizer": recipe.anonymizer,
        "utility": recipe.utility,
    }
    content = {
        "video": video.path.name,
        "n_frames": len(video.scores),
        "fps": video.fps,
        "threshold": params.threshold,
        "min_interval_seconds": params.min_interval,
        "intervals": intervals,
        "events": None if video.events is None else [list(event) for event in video.events],
        "inputs": describe_inputs(roles),
    }
    write_json(folder / "scores.json", content)
    size = int(recipe.features.get("size") or 224)
    strip = anonymized_frames(video.path, recipe.anonymizer, size, len(video.scores), params.boxes)
    curve = (video.scores, video.fps)
    plot_scores(folder / "scores.png", curve, params.threshold, video.events or (), strip)
    if params.anonymized_copy:
        target = [
            str(video.path),
            str(folder / "anonymized.mp4"),
            "--anonymizer",
            recipe.anonymizer,
        ]
        run_repository_script(COPY_SCRIPT, [*target, *common_options(params)])
    log.info("%s: %d anomalous intervals", video.name, len(intervals))


def describe_interval(span: tuple[int, int], video: ScoredVideo) -> dict[str, float]:
    """An interval [start, end) in frames and seconds, with its highest score."""
    start, end = span
    peak = float(video.scores[start:end].max())
    seconds = {
        "start_seconds": round(start / video.fps, 3),
        "end_seconds": round(end / video.fps, 3),
    }
    return {"start": start, "end": end, **seconds, "peak": round(peak, 6)}


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    """Writes a CSV file atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
