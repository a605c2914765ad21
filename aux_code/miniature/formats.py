"""Writes files in the real formats: MPEG-4 AVI, H.264 MP4, JPEG, lists, annotations, boxes."""

import csv
import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from aux_code.miniature.plan import ACTIONS, ATTRIBUTES, StillPlan, VideoPlan, ucf101_groups

BoxRow = tuple[str, int, int, int, int, int]  # file, frame, x0, y0, x1, y1


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> int:
    """Encodes uint8 (H, W, 3) RGB frames: MPEG-4 Part 2 for .avi, H.264 for .mp4; their number.

    One encoder thread and no time stamps, so that the same frames give the same bytes.
    """
    n = 0
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = _add_stream(container, path.suffix, fps)
        for n, pixels in enumerate(frames, 1):
            if n == 1:
                stream.height, stream.width = pixels.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return n


def _add_stream(container: av.container.OutputContainer, suffix: str, fps: int) -> av.VideoStream:
    if suffix == ".avi":
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.bit_rate = 1_200_000
    else:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        # x264's macroblock tree is not reproducible at this small width, so no look-ahead
        look_ahead = "threads=1:sync-lookahead=0:rc-lookahead=0:mbtree=0"
        stream.options = {"preset": "veryfast", "crf": "20", "x264-params": look_ahead}
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
    stream.pix_fmt = "yuv420p"
    return stream


def write_frame_folder(folder: Path, frames: Iterable[np.ndarray]) -> int:
    """Writes 000.jpg, 001.jpg, ... and returns their number."""
    folder.mkdir(parents=True)
    n = 0
    for n, pixels in enumerate(frames, 1):
        Image.fromarray(pixels).save(folder / f"{n - 1:03d}.jpg", quality=92)
    return n


def write_still(root: Path, plan: StillPlan, pixels: np.ndarray) -> None:
    """Writes <split>/<id>.jpg and its JSON; a rotated one lies on its side, EXIF orientation 6."""
    image, options = Image.fromarray(pixels), {"quality": 92}
    if plan.mode == "grey":
        image = image.convert("L")
    elif plan.mode == "cmyk":
        image = image.convert("CMYK")
    elif plan.mode == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        image, options = image.transpose(Image.Transpose.ROTATE_90), {"quality": 92, "exif": exif}
    image.save(root / plan.split / f"{plan.image_id}.jpg", **options)
    number = plan.image_id.removeprefix("2017_")
    labels = sorted(
        [name for name, on in zip(ATTRIBUTES, plan.attributes) if on] + list(plan.others),
        key=lambda name: int(name[1:].split("_")[0]),
    )
    record = {
        "image_path": f"images/{plan.split}/{plan.image_id}.jpg",
        "id": number,
        "labels": labels or ["a0_safe"],
        "url": f"https://example.org/miniature/{number}",
        "anno_time": 0,
    }
    file = root / plan.split / f"{plan.image_id}.json"
    file.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_ucf101_lists(root: Path, plans: list[VideoPlan], scale: float) -> None:
    """classInd.txt and three splits, each with the next test groups; 02 has CRLF line ends."""
    folder = root / "ucfTrainTestlist"
    folder.mkdir()
    _write_lines(folder / "classInd.txt", [f"{i} {name}" for i, name in enumerate(ACTIONS, 1)])
    n_test, n_groups, _ = ucf101_groups(scale)
    for split in (1, 2, 3):
        tests = {((split - 1) * n_test + i) % n_groups + 1 for i in range(n_test)}
        end = "\r\n" if split == 2 else "\n"
        train, test = "", ""
        for plan in plans:
            name = plan.file.removeprefix("Videos/")
            if int(name.split("_g")[1][:2]) in tests:
                test += name + end
            else:
                train += f"{name} {ACTIONS.index(plan.action) + 1}{end}"
        (folder / f"trainlist{split:02d}.txt").write_text(train, encoding="ascii", newline="")
        (folder / f"testlist{split:02d}.txt").write_text(test, encoding="ascii", newline="")


def write_ucf_crime_lists(root: Path, plans: list[VideoPlan]) -> None:
    """Two lists (some trailing blanks) and the temporal annotation, 1-based and inclusive."""
    for split in ("train", "test"):
        own = [p for p in plans if p.split == split]
        lines = [p.file.removeprefix("Videos/") + " " * (p.index % 7 == 0) for p in own]
        _write_lines(root / f"Anomaly_{split.capitalize()}.txt", lines)
    lines = []
    for plan in plans:
        if plan.split == "test":
            numbers = [n for start, end, _ in plan.events for n in (start + 1, end)]
            numbers += [-1] * (4 - len(numbers))
            kind = plan.events[0][2] if plan.events else "Normal"
            lines.append("  ".join([plan.file.rsplit("/", 1)[1], kind, *map(str, numbers)]) + "  ")
    _write_lines(root / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt", lines)


def write_xd_violence_lists(root: Path, plans: list[VideoPlan]) -> None:
    """annotations.txt: anomalous test videos, then start end pairs, 0-based, end exclusive."""
    lines = []
    for plan in plans:
        if plan.split == "test" and plan.events:
            numbers = " ".join(f"{start} {end}" for start, end, _ in plan.events)
            lines.append(f"{plan.file.removeprefix('test/').removesuffix('.mp4')} {numbers}")
    _write_lines(root / "annotations.txt", lines)


def write_shanghaitech_lists(root: Path, plans: list[VideoPlan]) -> None:
    """SH_Train.txt and SH_Test.txt (name,label) and one frame mask for each frame folder."""
    masks = root / "testing" / "test_frame_mask"
    masks.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = [f"{Path(p.file).stem},{int(bool(p.events))}" for p in plans if p.split == split]
        _write_lines(root / f"SH_{split.capitalize()}.txt", lines)
    for plan in plans:
        if plan.file.startswith("testing/"):
            mask = np.zeros(plan.n_frames, np.uint8)
            for start, end, _ in plan.events:
                mask[start:end] = 1
            np.save(masks / f"{Path(plan.file).name}.npy", mask)


def write_boxes(root: Path, rows: Iterable[BoxRow]) -> None:
    """person_boxes.csv: one row for each visible person in each frame."""
    with open(root / "person_boxes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "frame", "x0", "y0", "x1", "y1"))
        writer.writerows(rows)
