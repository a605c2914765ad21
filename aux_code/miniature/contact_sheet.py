"""A labelled sheet of what the benchmark shows: stills, and actions and events as strips."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aux_code.miniature import plan
from aux_code.miniature.plan import ATTRIBUTES, VideoPlan
from aux_code.miniature.render import video_frames
from aux_code.miniature.stills import render_still

ZOOM, LABEL, N_STRIP = 2, 14, 10


def _tile(sheet: Image.Image, pixels: np.ndarray, at: tuple[int, int], text: str) -> None:
    image = Image.fromarray(pixels)
    size = (image.width * ZOOM, image.height * ZOOM)
    sheet.paste(image.resize(size, Image.Resampling.NEAREST), (at[0], at[1] + LABEL))
    ImageDraw.Draw(sheet).text((at[0] + 2, at[1] + 1), text, fill=(255, 255, 255))


def stills_sheet(seed: int, n_columns: int = 6, n_rows: int = 4) -> Image.Image:
    """The first stills of the training split with their VISPR1 attributes."""
    cell = 128 * ZOOM + 6
    sheet = Image.new("RGB", (n_columns * cell, n_rows * (cell + LABEL)), (24, 24, 28))
    for i, still in enumerate(plan.plan_vispr(seed)[: n_columns * n_rows]):
        shown = [name for name, on in zip(ATTRIBUTES, still.attributes) if on]
        text = " ".join(name.split("_", 1)[1][:13] for name in shown) or "safe"
        at = (i % n_columns * cell, i // n_columns * (cell + LABEL))
        _tile(sheet, render_still(still, seed).pixels, at, text)
    return sheet


def _strip(
    sheet: Image.Image, video: VideoPlan, span: tuple[int, int], row: int, seed: int
) -> None:
    wanted = np.linspace(span[0], span[1] - 1, N_STRIP).round().astype(int).tolist()
    frames = {t: frame.pixels for t, frame in enumerate(video_frames(video, seed)) if t in wanted}
    for column, t in enumerate(wanted):
        name = video.action or (video.events or ((0, 0, "normal"),))[0][2]
        at = (column * (96 * ZOOM + 4), row * (72 * ZOOM + LABEL + 4))
        _tile(sheet, frames[t], at, f"{name} {t}")


def strips_sheet(seed: int) -> Image.Image:
    """One clip of each action, then one event of each anomaly, then a normal video."""
    clips = {video.action: video for video in plan.plan_ucf101(seed)}
    crimes = plan.plan_ucf_crime(seed)
    videos = {video.events[0][2] if video.events else "normal": video for video in crimes}
    jobs = [(video, (0, video.n_frames)) for video in clips.values()]
    for video in videos.values():
        start, end = video.events[0][:2] if video.events else (0, video.n_frames)
        jobs.append((video, (max(0, start - 6), min(video.n_frames, end + 6))))
    size = (N_STRIP * (96 * ZOOM + 4), len(jobs) * (72 * ZOOM + LABEL + 4))
    sheet = Image.new("RGB", size, (24, 24, 28))
    for row, (video, span) in enumerate(jobs):
        _strip(sheet, video, span, row, seed)
    return sheet


def write_contact_sheet(path: Path, seed: int = 0) -> None:
    """Writes one PNG: stills above, strips below."""
    upper, lower = stills_sheet(seed), strips_sheet(seed)
    size = (max(upper.width, lower.width), upper.height + lower.height)
    sheet = Image.new("RGB", size, (24, 24, 28))
    sheet.paste(upper, (0, 0))
    sheet.paste(lower, (0, upper.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
