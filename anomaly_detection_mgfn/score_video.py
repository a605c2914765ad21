"""--score: from own videos to frame scores, intervals, plots. Nothing unanonymized is written."""

import csv
import io
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_detection_mgfn.feature_bags import (
    FeatureSource,
    check_detector,
    has_content,
    load_videos,
    open_feature_folder,
)
from anomaly_detection_mgfn.mgfn_files import load_network
from anomaly_detection_mgfn.params_mgfn import MgfnParams, extraction_preset
from anomaly_detection_mgfn.score_plot import anonymized_frames
from anomaly_detection_mgfn.scoring import anomalous_intervals, frame_scores, score_videos
from aux_code import config
from aux_code.artefacts import describe_inputs
from aux_code.checkpoints import write_atomically, write_json
from aux_code.datasets.decode import frame_seconds
from aux_code.datasets.media_files import unique_names, walk
from aux_code.datasets.surveillance import (
    SurveillanceVideo,
    list_surveillance,
    load_surveillance,
)
from aux_code.errors import UserError
from aux_code.progress import progress
from aux_code.reporting.figures import COLOURS, Curve, save_figure, score_figure
from aux_code.runs import start_run

log = logging.getLogger(__name__)

EXTRACTION_SCRIPT = "feature_extraction/dali_extraction.py"
COPY_SCRIPT = "visualization/anonymize_video.py"


@dataclass(frozen=True)
class Networks:
    """With what videos become features: as the training features of the detector were made."""

    anonymizer: str
    utility: str
    features: dict[str, Any]
    """The manifest fields that the checkpoint carries."""


@dataclass(frozen=True)
class ScoredVideo:
    """One video's result."""

    path: Path
    fps: float
    scores: np.ndarray
    """(n_frames,) in [0, 1]."""


def score_command(params: MgfnParams) -> int:
    """Extracts, scores and reports the videos of --score; the exit status (3: some failed).

    Raises:
        UserError: no --checkpoint, no video, networks other than those of the training features,
            nothing extracted.
    """
    if not params.checkpoint:
        raise UserError("--score needs --checkpoint PATH: saved_models/<run>/mgfn_*/best.pth")
    if not Path(params.score).exists():
        raise UserError(f"--score {params.score} does not exist; give a video or a folder")
    params = replace(params, run_id=params.run_id or f"main_{params.preset}_score")
    loaded = load_network(params.checkpoint)
    networks = find_networks(params, loaded.meta)
    if params.anonymized_copy and networks.anonymizer == "raw":
        raise UserError("--anonymized_copy: this detector's features are raw: nothing to anonymize")
    default = config.RESULTS_ROOT / f"scores_{params.run_id}"
    output = Path(params.output) if params.output else default
    run = start_run(params, "main_score")
    partly = extract(params, networks, output / "features")
    source = open_feature_folder(output / "features")
    check_detector(source, networks.features, params.checkpoint)
    paths = video_paths(params, source)
    features = load_videos(source, list(paths), params.memory_limit_gib)
    run.write_parameters(params)
    net = loaded.net.to(run.device)
    clip_scores = score_videos(net, features, run.device, params.clips_per_pass)
    # shells dislike other characters; the first name is taken
    own = [[re.sub(r"[^\w.+-]", "_", name)] for name in features.names]
    folders = dict(zip(features.names, unique_names([["features"], *own])[1:], strict=True))
    for name, scores in zip(progress(features.names, "report"), clip_scores, strict=True):
        n_frames, fps = source.entries[name].n_frames, source.manifest["videos"][name].get("fps")
        of_frames = frame_scores(scores, n_frames, source.frames_per_feature, name)
        video = ScoredVideo(paths[name], float(fps or 25.0), of_frames)
        report_video(params, networks, video, output / folders[name])
    log.info("results in %s", output)
    return 3 if partly else 0


def find_networks(params: MgfnParams, meta: dict[str, Any]) -> Networks:
    """Names the networks for the extraction.

    Raises:
        UserError: the checkpoint does not say how its features were made, a network's file is gone,
            or --anonymizer or --utility is another one than that of the training features.
    """
    features = meta.get("features")
    if not features:
        text = f"{params.checkpoint} does not say how its features were made"
        raise UserError(f"{text}; give one of main.py's")
    chosen = {}
    for role, given in (("anonymizer", params.anonymizer), ("utility", params.utility)):
        recorded = features.get(role) or {}
        name, digest = recorded.get("name") or recorded.get("path") or "", recorded.get("sha256")
        path = given or (find_file(name, digest) if digest else name)
        if digest and not given and not Path(path).exists():
            text = f"{role} '{path}' of the training features is not there"
            raise UserError(f"{text}; give it as --{role} PATH")
        if not (has_content(path, digest) if digest else path == name):
            raise UserError(
                f"--{role} {path}: {params.checkpoint} was trained on features of another {role} "
                f"({name}); give that one or the detector made for this one"
            )
        chosen[role] = path
    return Networks(**chosen, features=features)


def find_file(name: str, digest: str) -> str:
    """The recorded file where it is, or one of its name and content below saved_models/."""
    if Path(name).exists():
        return name
    candidates = sorted(config.SAVED_MODELS_ROOT.rglob(Path(name).name)) if name else []
    return next((str(path) for path in candidates if has_content(path, digest)), name)


def extract(params: MgfnParams, networks: Networks, folder: Path) -> bool:
    """Stage 3 on the videos, which keeps what is there of the same files; whether some failed."""
    options = {
        "preset": extraction_preset(params), "dataset": Path(params.score).resolve(),
        "anonymizer": networks.anonymizer, "utility": networks.utility, "output": folder,
        "run_id": f"{params.run_id}_extraction",
        **{key: networks.features.get(key) for key in ("size", "crop", "n_crops")},
    }  # fmt: skip
    words = [*_words(options), *common_options(params)]
    return run_repository_script(EXTRACTION_SCRIPT, words) == 3


def common_options(params: MgfnParams) -> list[str]:
    """Options that the other stages' scripts take as this one does."""
    names = ("device", "n_threads", "boxes", "detector_weights")
    return _words({name: getattr(params, name) for name in names})


def _words(options: dict[str, Any]) -> list[str]:
    given = {name: value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def run_repository_script(script: str, arguments: list[str]) -> int:
    """Runs another stage's script as a process: stages hand over through the disk only.

    Raises:
        UserError: it ended with another status than 0 or 3; its own message stands above.
    """
    command = [sys.executable, str(config.REPOSITORY_ROOT / script), *arguments]
    log.info("%s", shlex.join(command))
    status = subprocess.run(command, check=False).returncode
    if status not in (0, 3):
        raise UserError(f"status {status}, see the message above, of {shlex.join(command)}")
    return status


def video_paths(params: MgfnParams, source: FeatureSource) -> dict[str, Path]:
    """Name in the manifest -> file or folder of frames, of the videos that --score names alone.

    Raises:
        UserError: there is none.
    """
    root = Path(params.score)
    files = walk(root)
    below = (root, *sorted({*files, *(file.parent for file in files)}))
    below = [path.resolve() for path in (*below, *(Path(v.path) for v in own_list(params)))]
    videos = source.manifest["videos"].items()
    sources = {name: Path(video["source"]["path"]).resolve() for name, video in videos}
    named = set(below)
    paths = {name: path for name, path in sources.items() if path in named}
    for name in sources.keys() - paths.keys():  # perhaps the same file, which lay elsewhere then
        same = (own for own in below if own.name == sources[name].name)
        moved = next((own for own in same if own not in paths.values()), None)
        paths |= {name: moved} if moved else {}
    if not paths:
        raise UserError(f"no video of --score could be extracted; see above and {source.location}")
    return {name: paths[name] for name in sources if name in paths}


def own_list(params: MgfnParams) -> Sequence[SurveillanceVideo]:
    """The videos that train.csv or test.csv in the folder of --score list; none without them."""
    has_list = any((Path(params.score) / name).is_file() for name in ("train.csv", "test.csv"))
    return list_surveillance(params.score).videos if has_list else ()


def known_events(params: MgfnParams, video: Path) -> list[list[int]] | None:
    """True intervals [start, end) in frames of a test video of --dataset or of its own folder."""
    try:
        known = own_list(params) or load_surveillance(params.dataset).videos
    except UserError:
        return None  # most people's own videos: no data set is installed, and none is needed
    for own in known:
        if own.split == "test" and Path(own.path).resolve() == video.resolve():
            return [[int(start), int(end)] for start, end in own.events]
    return None


def report_video(params: MgfnParams, networks: Networks, video: ScoredVideo, folder: Path) -> None:
    """Writes scores.csv, intervals.csv, scores.json, scores.png and, on request, anonymized.mp4."""
    fps, scores, path = video.fps, video.scores, video.path
    events, seconds = known_events(params, path), frame_seconds(path, len(scores))
    min_frames = max(1, round(params.min_interval * fps))
    header = ["start", "end", "start_seconds", "end_seconds", "peak"]
    spans = [
        [start, end, *(round(float(t), 3) for t in seconds[[start, end]]), round(float(peak), 6)]
        for start, end in anomalous_intervals(scores, params.threshold, 1)
        if round((seconds[end] - seconds[start]) * fps) >= min_frames
        for peak in [scores[start:end].max()]
    ]
    frames = [[i, f"{seconds[i]:.3f}", f"{score:.6f}"] for i, score in enumerate(scores)]
    _write_csv(folder / "scores.csv", ["frame", "seconds", "score"], frames)
    _write_csv(folder / "intervals.csv", header, spans)
    roles = {"anonymizer": networks.anonymizer, "utility": networks.utility}
    content = {
        "video": path.name, "n_frames": len(scores), "fps": fps, "threshold": params.threshold,
        "min_interval_seconds": params.min_interval,
        "intervals": [dict(zip(header, span, strict=True)) for span in spans], "events": events,
        "inputs": describe_inputs({"checkpoint": params.checkpoint, **roles}),
    }  # fmt: skip
    write_json(folder / "scores.json", content)
    size = int(networks.features.get("size") or 224)
    strip = anonymized_frames(path, networks.anonymizer, size, len(scores), params.boxes)
    curve, strips = Curve("score", scores, COLOURS[1]), [strip] if strip else []
    figure = score_figure([curve], events or (), seconds, strips, threshold=params.threshold)
    save_figure(figure, folder / "scores.png")
    if params.anonymized_copy:
        words = [str(path), str(folder / "anonymized.mp4"), "--anonymizer", networks.anonymizer]
        run_repository_script(COPY_SCRIPT, [*words, *common_options(params)])
    log.info("%s: %d anomalous intervals", path.name, len(spans))


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
