"""The rendered files, read back; what is kept, made again and refused."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aux_code import config
from aux_code.datasets import ucf_crime
from aux_code.datasets.shanghaitech import mask_events
from aux_code.datasets.surveillance import read_surveillance
from aux_code.errors import UserError
from aux_code.miniature import plan, render
from aux_code.miniature.__main__ import main
from aux_code.miniature.formats import write_video
from aux_code.miniature.render import DATA_SETS, MARKER, PARTIAL_FOLDER, render_benchmark

SCALE = 0.03


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Its root, with seed 0."""
    root = tmp_path_factory.mktemp("miniature") / "data"
    render_benchmark(root, seed=0, scale=SCALE, workers=1)
    return root


def decode(path) -> tuple[str, float, list[np.ndarray]]:
    """Codec, frames per second, RGB frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), frames


def lines_of(path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def boxes_of(folder) -> list[dict[str, str]]:
    with open(folder / "person_boxes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ("ucf101", "ucf_crime", "xd_violence", "shanghaitech"))
def test_videos_decode_with_the_planned_codec_rate_and_length(tiny, name):
    folder, make = DATA_SETS[name]
    expected = "mpeg4" if name in ("ucf101", "shanghaitech") else "h264"
    videos = [v for v in make(0, SCALE) if (tiny / folder / v.file).is_file()]
    assert videos
    for video in videos[::4]:
        codec, fps, frames = decode(tiny / folder / video.file)
        assert (codec, fps, len(frames)) == (expected, video.fps, video.n_frames)
        assert frames[0].shape == (72, 96, 3) and np.std(frames[0]) > 8, "a picture, not a plane"
        if video.action != "Stand":
            change = np.abs(np.stack(frames[1:]).astype(int) - frames[0]).mean(axis=3)
            assert (change > 16).any(axis=0).sum() > 40, "something moves; noise stays below 16"


def test_encoding_keeps_the_picture(tmp_path):
    y, x = np.mgrid[:72, :96]
    channels = [[x * 2, y * 3, np.full_like(x, 10 * t)] for t in range(9)]
    frames = list(np.stack(channels).transpose(0, 2, 3, 1).astype(np.uint8))
    for name in ("a.avi", "a.mp4"):
        assert write_video(tmp_path / name, frames, 25) == 9
        decoded = decode(tmp_path / name)[2]
        assert np.abs(np.stack(decoded).astype(int) - np.stack(frames)).mean() < 4


def test_ucf101_lists(tiny):
    root, videos = tiny / "UCF101" / "ucfTrainTestlist", tiny / "UCF101" / "Videos"
    classes = dict(reversed(line.split()) for line in lines_of(root / "classInd.txt"))
    assert classes["CrouchPick"] == "1"
    everything = {p.relative_to(videos).as_posix() for p in videos.glob("*/*.avi")}
    tests = []
    for split in ("01", "02", "03"):
        train = dict(line.split() for line in lines_of(root / f"trainlist{split}.txt"))
        test = lines_of(root / f"testlist{split}.txt")
        assert all(classes[name.split("/")[0]] == index for name, index in train.items())
        assert {*train, *test} == everything
        groups, held_out = ({name.rsplit("_", 1)[0] for name in part} for part in (train, test))
        assert not groups & held_out
        tests.append(set(test))
    assert tests[0] != tests[1] and b"\r\n" in (root / "trainlist02.txt").read_bytes()


def test_vispr_pictures_and_labels(tiny):
    root = tiny / "VISPR"
    for split in ("train2017", "val2017", "test2017"):
        stills = {s.image_id: s for s in plan.plan_vispr(0, SCALE) if s.split == split}
        assert {p.stem for p in (root / split).glob("*.jpg")} == set(stills)
        modes = set()
        for image_id, still in stills.items():
            labels = json.loads((root / split / f"{image_id}.json").read_text())["labels"]
            assert tuple(name in labels for name in plan.ATTRIBUTES) == still.attributes
            assert ("a0_safe" in labels) == (labels == ["a0_safe"])
            with Image.open(root / split / f"{image_id}.jpg") as image:
                turned = image.getexif().get(0x0112) == 6
                assert (image.size[::-1] if turned else image.size) == still.size
                modes.add("rotated" if turned else image.mode)
        assert {"RGB", "CMYK", "rotated"} <= modes


@pytest.mark.parametrize("name", ("ucf_crime", "xd_violence", "shanghaitech"))
def test_lists_and_annotations_say_what_is_planned(tiny, name):
    root, videos = tiny / DATA_SETS[name].folder, DATA_SETS[name].plan(0, SCALE)
    data = read_surveillance(name, root)
    assert not data.report and not data.missing
    found = {v.path: (v.split, v.label, v.events) for v in data.videos}
    events = {v.file: tuple(event[:2] for event in v.events) for v in videos}
    shown = {v.file: events[v.file] if v.split == "test" else () for v in videos}
    assert found == {root / v.file: (v.split, bool(v.events), shown[v.file]) for v in videos}
    for video in videos:
        if (root / video.file).is_dir():  # ShanghaiTech's test videos
            mask = np.load(root / "testing/test_frame_mask" / f"{Path(video.file).name}.npy")
            frames = sorted(path.name for path in (root / video.file).iterdir())
            assert frames == [f"{t:03d}.jpg" for t in range(video.n_frames)]
            assert len(mask) == video.n_frames and mask_events(mask) == events[video.file]
    if name == "ucf_crime":
        rows = [line.split()[:2] for line in lines_of(root / ucf_crime.ANNOTATIONS)]
        tests = {Path(v.file).name: v.events for v in videos if v.split == "test"}
        assert dict(rows) == {n: own[0][2] if own else "Normal" for n, own in tests.items()}
    if name == "xd_violence":
        names = "".join(video.file for video in plan.plan_xd_violence(0))
        assert all(c in names for c in "#=. ") and not names.isascii()


def test_boxes_lie_inside_existing_files_and_cover_those_who_move(tiny):
    corners = ("x0", "y0", "x1", "y1")
    for name, (folder, _) in DATA_SETS.items():
        rows = boxes_of(tiny / folder)
        assert list(rows[0]) == ["file", "frame", *corners]
        assert all((tiny / folder / path).exists() for path in {row["file"] for row in rows})
        limit = 128 if name == "vispr" else 96
        for x0, y0, x1, y1 in ([int(row[key]) for key in corners] for row in rows):
            assert 0 <= x0 < x1 <= limit and 0 <= y0 < y1 <= 128
    inside = outside = 0
    rows = [row for row in boxes_of(tiny / "UCF101") if "/Walk/" in row["file"]]
    for name in sorted({row["file"] for row in rows})[:4]:
        frames = decode(tiny / "UCF101" / name)[2]
        first, last = frames[0].astype(int), frames[-1].astype(int)
        covered = np.zeros((72, 96), bool)
        for row in rows:
            if row["file"] == name and int(row["frame"]) in (0, len(frames) - 1):
                x0, y0, x1, y1 = (int(row[key]) for key in corners)
                covered[y0:y1, x0:x1] = True
        moved = np.abs(last - first).mean(axis=2) > 45
        inside, outside = inside + (moved & covered).sum(), outside + (moved & ~covered).sum()
    assert inside > 10 * max(1, outside)


def digests(root) -> dict[str, str]:
    """Hash of every file but the markers, which hold times."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name != MARKER)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_workers_give_the_same_bytes_as_one(tiny, tmp_path):
    sets = ["vispr", "xd_violence", "shanghaitech"]
    render_benchmark(tmp_path, seed=0, scale=SCALE, only=sets, workers=2)
    for name in sets:
        folder = DATA_SETS[name].folder
        assert digests(tmp_path / folder) == digests(tiny / folder)
    assert set(json.loads((tiny / MARKER).read_text())["sets"]) == set(DATA_SETS)


def rendered(root, *only: str, seed=0, force=False) -> dict:
    return render_benchmark(root, seed, 0.005, list(only), force, workers=1)


def test_what_stands_there_is_kept_completed_or_with_force_replaced(tmp_path):
    rendered(tmp_path, "vispr")
    first, marker = digests(tmp_path), tmp_path / "VISPR" / MARKER
    made = marker.stat().st_mtime_ns
    with pytest.raises(UserError, match="--force"):
        rendered(tmp_path, "vispr", seed=1)
    assert digests(tmp_path) == first
    record = rendered(tmp_path, "vispr", "xd_violence")
    assert set(record["sets"]) == {"vispr", "xd_violence"}
    made_of_all = (tmp_path / MARKER).stat().st_mtime_ns
    assert rendered(tmp_path, "vispr") == record == json.loads((tmp_path / MARKER).read_text())
    assert (tmp_path / MARKER).stat().st_mtime_ns == made_of_all
    assert marker.stat().st_mtime_ns == made
    vispr = digests(tmp_path / "VISPR")
    rendered(tmp_path, "vispr", seed=1, force=True)
    assert digests(tmp_path / "VISPR") != vispr


def test_what_is_refused_is_left_alone(tmp_path, caplog):
    (tmp_path / "real" / "UCF101").mkdir(parents=True)
    files = {tmp_path / "thesis.tex", tmp_path / "real" / "UCF101" / "mine.txt"}
    for path in files:
        path.write_text("real data")
    for root, options, expected in (
        ("real", "--scale 0.005 --force", "UCF101 exists and is not a miniature rendering"),
        ("", "--scale 0.005", "is not empty"),
        ("thesis.tex", "--scale 0.005", "is not a folder"),
        ("new", "--scale 0", "--scale 0.0 must be in"),
        ("new", "--seed -1", "--seed -1 not negative"),
    ):
        assert main([str(tmp_path / root), *options.split()]) == 2 and expected in caplog.text
        assert {p for p in tmp_path.rglob("*") if p.is_file()} == files
        assert not (tmp_path / "new").exists()


def test_an_interrupted_rendering_is_done_again(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rendered(whole, "vispr")
    real, calls = render.render_image, []

    def dies_at_the_tenth(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(render, "render_image", dies_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        rendered(cut, "vispr")
    assert not (cut / MARKER).exists() and not (cut / "VISPR").exists()
    assert any((cut / PARTIAL_FOLDER).rglob("*.jpg"))
    monkeypatch.undo()
    rendered(cut, "vispr")
    assert digests(cut) == digests(whole) and not (cut / PARTIAL_FOLDER).exists()


def test_rendering_does_not_import_torch():
    code = "import sys, aux_code.miniature.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=config.REPOSITORY_ROOT, check=True)
