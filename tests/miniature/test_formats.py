"""The rendered files, read back by independent means."""

import csv
import json

import av
import numpy as np
import pytest
from PIL import Image

from aux_code.miniature import plan
from aux_code.miniature.formats import write_video

from .conftest import SCALE


def decode(path) -> tuple[str, float, list[np.ndarray]]:
    """Codec, frames per second, RGB frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), frames


@pytest.mark.parametrize(
    ("folder", "make", "codec"),
    (
        ("UCF101", plan.plan_ucf101, "mpeg4"),
        ("UCF_Crime", plan.plan_ucf_crime, "h264"),
        ("XD_Violence", plan.plan_xd_violence, "h264"),
        ("ShanghaiTech", plan.plan_shanghaitech, "mpeg4"),
    ),
)
def test_videos_decode_with_the_planned_codec_rate_and_length(tiny, folder, make, codec):
    videos = [v for v in make(0, SCALE) if (tiny / folder / v.file).is_file()]
    assert videos
    for video in videos[::4]:
        name, fps, frames = decode(tiny / folder / video.file)
        assert (name, fps, len(frames)) == (codec, video.fps, video.n_frames)
        assert frames[0].shape == (72, 96, 3)
        assert np.std(frames[0]) > 8  # a picture, not a plane
        if video.action != "Stand":
            change = np.abs(np.stack(frames[1:]).astype(int) - frames[0]).mean(axis=3)
            # something moves; noise alone stays below 16
            assert (change > 16).any(axis=0).sum() > 40


def test_encoding_keeps_the_picture(tmp_path):
    y, x = np.mgrid[:72, :96]
    channels = [[x * 2, y * 3, np.full_like(x, 10 * t)] for t in range(9)]
    frames = list(np.stack(channels).transpose(0, 2, 3, 1).astype(np.uint8))
    for name in ("a.avi", "a.mp4"):
        assert write_video(tmp_path / name, frames, 25) == 9
        decoded = decode(tmp_path / name)[2]
        assert np.abs(np.stack(decoded).astype(int) - np.stack(frames)).mean() < 4


def test_ucf101_lists(tiny):
    root = tiny / "UCF101" / "ucfTrainTestlist"
    lines = (root / "classInd.txt").read_text().splitlines()
    classes = dict(reversed(line.split()) for line in lines)
    assert classes["CrouchPick"] == "1"
    videos = tiny / "UCF101/Videos"
    everything = {p.relative_to(videos).as_posix() for p in videos.glob("*/*.avi")}
    tests = []
    for split in ("01", "02", "03"):
        train = [line.split() for line in (root / f"trainlist{split}.txt").read_text().splitlines()]
        test = (root / f"testlist{split}.txt").read_text().splitlines()
        assert all(classes[name.split("/")[0]] == index for name, index in train)
        names = {name for name, _ in train}
        assert names | set(test) == everything
        groups, held_out = ({name.rsplit("_", 1)[0] for name in part} for part in (names, test))
        assert not groups & held_out
        tests.append(set(test))
    assert tests[0] != tests[1]
    assert b"\r\n" in (root / "trainlist02.txt").read_bytes()


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


def test_ucf_crime_annotation_is_one_based_and_inclusive(tiny):
    root = tiny / "UCF_Crime"
    lines = (root / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt").read_text().splitlines()
    fields = {line.split()[0]: line.split()[1:] for line in lines}
    listed = [line.strip() for line in (root / "Anomaly_Test.txt").read_text().splitlines()]
    assert set(fields) == {name.split("/")[1] for name in listed}
    for video in plan.plan_ucf_crime(0, SCALE):
        assert (root / video.file).is_file()
        if video.split == "test":
            kind, *numbers = fields[video.file.split("/")[-1]]
            assert kind == (video.events[0][2] if video.events else "Normal")
            expected = [n for start, end, _ in video.events for n in (start + 1, end)]
            assert [int(n) for n in numbers] == (expected + [-1] * 4)[:4]


def test_xd_violence_names_and_annotation(tiny):
    root = tiny / "XD_Violence"
    lines = (root / "annotations.txt").read_text(encoding="utf-8").splitlines()
    listed = {}
    for head, _, tail in (line.rpartition("label_") for line in lines):
        code, *numbers = tail.split()
        listed[f"{head}label_{code}"] = [int(n) for n in numbers]
    tests = [v for v in plan.plan_xd_violence(0, SCALE) if v.split == "test"]
    anomalous = {v.file[5:-4]: v for v in tests if v.events}
    assert set(listed) == set(anomalous)
    for name, video in anomalous.items():
        assert (root / "test" / f"{name}.mp4").is_file()
        assert listed[name] == [n for start, end, _ in video.events for n in (start, end)]
    names = "".join(v.file for v in plan.plan_xd_violence(0))
    assert all(c in names for c in "#=. ") and not names.isascii()


def test_shanghaitech_masks_have_one_value_per_frame(tiny):
    root = tiny / "ShanghaiTech"
    lists = [(root / f"SH_{name}.txt").read_text() for name in ("Train", "Test")]
    listed = [line.split(",")[0] for line in "\n".join(lists).splitlines()]
    for video in plan.plan_shanghaitech(0, SCALE):
        name = video.file.split("/")[-1].removesuffix(".avi")
        assert name in listed
        if video.file.startswith("testing"):
            frames = sorted(p.name for p in (root / video.file).iterdir())
            assert frames == [f"{t:03d}.jpg" for t in range(video.n_frames)]
            mask = np.load(root / "testing/test_frame_mask" / f"{name}.npy")
            assert mask.shape == (video.n_frames,)
            expected = [t for start, end, _ in video.events for t in range(start, end)]
            assert np.flatnonzero(mask).tolist() == expected


@pytest.mark.parametrize("folder", ("UCF101", "VISPR", "UCF_Crime", "XD_Violence", "ShanghaiTech"))
def test_boxes_lie_inside_existing_files(tiny, folder):
    with open(tiny / folder / "person_boxes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "frame", "x0", "y0", "x1", "y1"]
    assert all((tiny / folder / name).exists() for name in {row["file"] for row in rows})
    limit = 128 if folder == "VISPR" else 96
    for x0, y0, x1, y1 in ([int(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in rows):
        assert 0 <= x0 < x1 <= limit and 0 <= y0 < y1 <= 128


def test_boxes_cover_those_who_move(tiny):
    """In a clip of walking, what changes between frames lies inside the boxes."""
    with open(tiny / "UCF101/person_boxes.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "/Walk/" in row["file"]]
    inside = outside = 0
    for name in sorted({row["file"] for row in rows})[:4]:
        frames = decode(tiny / "UCF101" / name)[2]
        first, last = frames[0].astype(int), frames[-1].astype(int)
        covered = np.zeros((72, 96), bool)
        for row in rows:
            if row["file"] == name and int(row["frame"]) in (0, len(frames) - 1):
                covered[int(row["y0"]) : int(row["y1"]), int(row["x0"]) : int(row["x1"])] = True
        moved = np.abs(last - first).mean(axis=2) > 45
        inside, outside = inside + (moved & covered).sum(), outside + (moved & ~covered).sum()
    assert inside > 20 * max(1, outside) / 2
