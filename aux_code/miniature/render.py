"""Renders data sets into a folder: in parallel, each whole or not at all; what exists is kept."""

import json
import logging
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np

from aux_code.errors import UserError
from aux_code.miniature import formats, plan
from aux_code.miniature.drawing import draw_frames
from aux_code.miniature.events import clip_story, surveillance_story
from aux_code.miniature.plan import StillPlan, VideoPlan
from aux_code.miniature.stills import render_still
from aux_code.progress import progress

log = logging.getLogger(__name__)

FORMAT_VERSION = 6  # raised whenever a rendered file changes: older renderings are made anew
MARKER = "miniature.json"
PARTIAL_FOLDER = ".miniature_partial"
_SEED_KEYS = {"ucf101": 31, "ucf_crime": 37, "xd_violence": 41, "shanghaitech": 43}


class DataSet(NamedTuple):
    """One set: its folder below the root and the function (seed, scale) that plans it."""

    folder: str
    plan: Callable[[int, float], list]


DATA_SETS = {
    "ucf101": DataSet("UCF101", plan.plan_ucf101),
    "vispr": DataSet("VISPR", plan.plan_vispr),
    "ucf_crime": DataSet("UCF_Crime", plan.plan_ucf_crime),
    "xd_violence": DataSet("XD_Violence", plan.plan_xd_violence),
    "shanghaitech": DataSet("ShanghaiTech", plan.plan_shanghaitech),
}


def video_frames(video: VideoPlan, seed: int) -> Iterator:
    """The rendered frames (pixels and boxes) of a video plan."""
    rng = np.random.default_rng([seed, _SEED_KEYS[video.dataset], video.index])
    story = clip_story(video, rng) if video.dataset == "ucf101" else surveillance_story(video, rng)
    return draw_frames(story, video.n_frames, video.camera, seed, rng)


def render_video(video: VideoPlan, root: Path, seed: int) -> list[formats.BoxRow]:
    """Writes one video (or frame folder) below `root`; returns the rows of its people's boxes."""
    rows: list[formats.BoxRow] = []

    def pixels() -> Iterator[np.ndarray]:
        for t, frame in enumerate(video_frames(video, seed)):
            rows.extend((video.file, t, *box) for box in frame.boxes)
            yield frame.pixels

    path = root / video.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        formats.write_video(path, pixels(), video.fps)
    else:
        formats.write_frame_folder(path, pixels())
    return rows


def render_image(still: StillPlan, root: Path, seed: int) -> list[formats.BoxRow]:
    """Writes one still and its labels below `root`; returns the rows of its people's boxes."""
    drawn = render_still(still, seed)
    formats.write_still(root, still, drawn.pixels)
    return [(f"{still.split}/{still.image_id}.jpg", 0, *box) for box in drawn.boxes]


def _render_item(item: StillPlan | VideoPlan, root: Path, seed: int) -> list[formats.BoxRow]:
    return (render_image if isinstance(item, StillPlan) else render_video)(item, root, seed)


def _start_worker() -> None:
    """Ctrl-C is the parent's business; a worker whose parent was killed ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """map() in this process or, in order all the same, over worker processes."""
    if workers <= 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield partial(pool.map, chunksize=8)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_lists(name: str, root: Path, plans: list, scale: float) -> None:
    if name == "ucf101":
        formats.write_ucf101_lists(root, plans, scale)
    elif name != "vispr":
        getattr(formats, f"write_{name}_lists")(root, plans)


def _render_set(name: str, folder: Path, stamp: dict, mapper: Callable) -> dict:
    """Renders one set into a folder that does not exist yet; returns what its marker says."""
    started, seed, scale = time.perf_counter(), stamp["seed"], stamp["scale"]
    plans = DATA_SETS[name].plan(seed, scale)
    folder.mkdir(parents=True)
    if name == "vispr":
        for split in ("train2017", "val2017", "test2017"):
            (folder / split).mkdir()
    jobs = mapper(partial(_render_item, root=folder, seed=seed), plans)
    rows = [row for rows in progress(jobs, f"render {name}", len(plans)) for row in rows]
    _write_lists(name, folder, plans, scale)
    formats.write_boxes(folder, rows)
    counts = dict(Counter(item.split for item in plans))
    seconds = round(time.perf_counter() - started, 2)
    record = {**stamp, "set": name, "counts": counts, "seconds": seconds}
    _write_json(folder / MARKER, record)
    return record


def _write_json(path: Path, record: dict) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _read_marker(folder: Path) -> dict | None:
    """What a rendered set's marker says; None if the folder is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} exists and is not a miniature rendering; name another, or move it"
        ) from None


def _missing(root: Path, names: list[str], stamp: dict, force: bool) -> list[str]:
    """The sets that are to be rendered; refuses what would destroy something."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is not a folder; name a folder to render into")
    if root.exists() and any(root.iterdir()) and not _ours(root):
        raise UserError(f"{root} is not empty and holds no rendering; name an empty folder")
    missing = []
    for name in names:
        folder = root / DATA_SETS[name].folder
        marker = _read_marker(folder)
        if marker is None or force or marker.get("format_version") != stamp["format_version"]:
            missing.append(name)
        elif any(marker.get(key) != value for key, value in stamp.items()):
            has = f"seed {marker.get('seed')} and scale {marker.get('scale')}"
            raise UserError(f"{folder} has {has}; --force renders it again")
    return missing


def _ours(root: Path) -> bool:
    """Whether a folder holds a rendering, whole or interrupted, or the folder of a data set."""
    ours = {MARKER, PARTIAL_FOLDER} | {data_set.folder for data_set in DATA_SETS.values()}
    return not ours.isdisjoint(entry.name for entry in root.iterdir())


def render_benchmark(
    root: Path,
    seed: int = 0,
    scale: float = 1.0,
    only: list[str] | None = None,
    force: bool = False,
    workers: int | None = None,
) -> dict:
    """Renders the sets named in `only` (default all) below `root` and returns the content of
    root/miniature.json.

    A set is rendered in a hidden folder and renamed when complete, so an interrupted one is
    rendered again; a complete one of the same seed, scale and format version is kept. The output
    does not depend on `workers` (default: one per core, at most 2). Raises UserError where `root`
    holds something else, or a rendering of another seed or scale (unless `force`).
    """
    started, root = time.perf_counter(), Path(root)
    names = list(dict.fromkeys(only or DATA_SETS))
    if unknown := [name for name in names if name not in DATA_SETS]:
        raise UserError(f"unknown set {', '.join(unknown)}; there are {', '.join(DATA_SETS)}")
    if not 0 < scale <= 100 or seed < 0:
        raise UserError(f"--scale {scale} must be in (0, 100] and --seed {seed} not negative")
    stamp = {"format_version": FORMAT_VERSION, "seed": seed, "scale": float(scale)}
    missing = _missing(root, names, stamp, force)
    if not missing and (root / MARKER).exists():
        log.info("%s: already rendered", root)
        return json.loads((root / MARKER).read_text(encoding="utf-8"))
    (root / PARTIAL_FOLDER).mkdir(parents=True, exist_ok=True)
    (root / MARKER).unlink(missing_ok=True)
    with _mapper(min(2, os.cpu_count() or 1) if workers is None else workers) as mapper:
        for name in missing:
            _replace_set(root, name, stamp, mapper)
    shutil.rmtree(root / PARTIAL_FOLDER)
    sets = {}
    for name, data_set in DATA_SETS.items():
        if (root / data_set.folder / MARKER).exists():
            marker = _read_marker(root / data_set.folder)
            sets[name] = {key: marker[key] for key in ("counts", "seconds")}
    seconds = round(time.perf_counter() - started, 2)
    _write_json(root / MARKER, {**stamp, "sets": sets, "seconds": seconds})
    return json.loads((root / MARKER).read_text(encoding="utf-8"))


def _replace_set(root: Path, name: str, stamp: dict, mapper: Callable) -> None:
    folder = root / DATA_SETS[name].folder
    partial_folder = root / PARTIAL_FOLDER / folder.name
    shutil.rmtree(partial_folder, ignore_errors=True)
    _render_set(name, partial_folder, stamp, mapper)
    if folder.exists():
        shutil.rmtree(folder)
    partial_folder.rename(folder)
