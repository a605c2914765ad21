"""The check of the data sets on small copies in the real layouts, whole and damaged."""

import json
import shutil
import time

import numpy as np
import pytest

from aux_code import config
from aux_code.datasets import check, ucf101, vispr
from tests.datasets.media import write_lines, write_pictures, write_video
from tests.datasets.test_ucf101 import make_ucf101

OFFICIAL = {
    "ucf101": (9537, 3783), "vispr": (10_000, 8_000), "ucf_crime": (1610, 290),
    "xd_violence": (3954, 800), "shanghaitech": (238, 199),
}  # fmt: skip


@pytest.fixture
def checked(capsys):
    """Runs the check on a command line, compares its exit code, and returns what it printed."""

    def run(code, line):
        assert check.main(str(line).split()) == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def small_ucf101(tmp_path, monkeypatch):
    monkeypatch.setattr(ucf101, "OFFICIAL_COUNTS", {"train": 4, "test": 4})
    root = make_ucf101(tmp_path / "UCF101", n_groups=1)
    for path in root.rglob("*.avi"):
        write_video(path, 5, codec="mpeg4")
    monkeypatch.setattr(config, "UCF101_ROOT", root)
    return root


def test_whole_damaged_and_missing_files_and_lists(small_ucf101, checked):
    video = small_ucf101 / "Videos" / "YoYo" / "v_YoYo_g02_c01.avi"
    expected = "train: 4 found, 4 expected\n  test: 4 found, 4 expected\n  complete"
    assert expected in checked(0, "ucf101 --decode")
    video.write_bytes(b"no video")
    checked(0, "ucf101")
    out = checked(3, "ucf101 --decode --workers 2")
    assert "1 files do not decode" in out and "v_YoYo_g02_c01.avi: cannot be opened" in out
    video.unlink()
    out = checked(3, "ucf101")
    assert "1 train files are missing" in out and "train: 3 found, 4 expected" in out
    assert str(video) in out
    write_video(video, 5, codec="mpeg4")
    (small_ucf101 / "ucfTrainTestlist" / "testlist01.txt").unlink()
    out = checked(3, "ucf101")
    lines = ("train: 4 found, 4 expected", "test: not counted, 4 expected", "testlist01.txt")
    assert all(line in out for line in lines)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_half_a_download_is_noticed(tmp_path, checked, name):
    """FFmpeg ends such files without an error; what they state says that something is missing."""
    options = {"movflags": "faststart", "g": "12"}
    path = write_video(tmp_path / name, 60, codec="mpeg4", options=options)
    write_lines(tmp_path / "test.csv", "video,label", f"{name},0")
    checked(0, f"{tmp_path} --decode")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.55)])
    assert "1 files do not decode, or not wholly" in checked(3, f"{tmp_path} --decode")


def test_vispr(tmp_path, monkeypatch, checked):
    monkeypatch.setattr(config, "VISPR_ROOT", tmp_path)
    monkeypatch.setattr(vispr, "OFFICIAL_COUNTS", {"train": 1, "test": 1})
    for split in ("train2017", "test2017"):
        write_pictures(tmp_path / split, [1], "2017_{}.jpg")
        (tmp_path / split / "2017_1.json").write_text(json.dumps({"labels": list(vispr.VISPR1)}))
    out = checked(0, "vispr --decode")
    assert "no labelled images in val2017: a tenth of train" in out and "train: 1 found" in out
    image = tmp_path / "test2017" / "2017_1.jpg"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    (tmp_path / "train2017" / "2017_9.json").write_text("{}")
    out = checked(3, "vispr --decode")
    assert "test2017/2017_1.jpg: not a readable image" in out
    assert f"train: 1 annotations have no image: {tmp_path / 'train2017' / '2017_9.jpg'}" in out
    shutil.copytree(tmp_path / "train2017", tmp_path / "val2017")
    assert "note: val: 1 found" in checked(3, "vispr")


def test_shanghaitech_frames_masks_and_marker(tmp_path, monkeypatch, checked):
    monkeypatch.setattr(config, "SHANGHAITECH_ROOT", tmp_path)
    frames = write_pictures(tmp_path / "testing" / "frames" / "01_0014", range(4))
    mask = write_lines(tmp_path / "testing" / "test_frame_mask" / "01_0014.npy")
    write_video(tmp_path / "training" / "videos" / "01_001.avi", 3, codec="mpeg4")
    write_lines(tmp_path / "SH_Train.txt", "01_001")
    write_lines(tmp_path / "SH_Test.txt", "01_0014")
    np.save(mask, np.array([0, 1, 1, 0], np.uint8))
    checked(3, "shanghaitech")
    (tmp_path / "miniature.json").write_text(json.dumps({"counts": {"train": 1, "test": 1}}))
    checked(0, "shanghaitech --decode")
    np.save(mask, np.array([0, 1, 1, 0, 1], np.uint8))
    out = checked(3, "shanghaitech --decode")
    assert "1 annotations do not fit their videos" in out
    assert "01_0014: event 4-5 of a video of 4 frames" in out
    np.save(mask, np.array([0, 1, 1, 0, 0], np.uint8))
    assert "note: 1 annotations end past" in checked(0, "shanghaitech --decode")
    np.save(mask, np.zeros(37, np.uint8))
    out = checked(3, "shanghaitech --decode")
    assert out.count("01_0014: a mask of 37 values, a video of 4 frames") == 1
    (frames / "002.jpg").write_bytes((frames / "002.jpg").read_bytes()[:300])
    assert "01_0014: 002.jpg: not a readable image" in checked(3, "shanghaitech --decode")


def test_own_folder(tmp_path, checked):
    write_video(tmp_path / "a.mp4", 3)
    clipped = "note: 1 annotations end past the last frame and are clipped"
    for is_clipped, code, *rows in (
        (False, 0, "a.mp4,1,0-3"), (True, 0, "a.mp4,1,0-4"), (True, 3, "a.mp4,1,0-9", "b.mp4,0,"),
    ):  # fmt: skip
        write_lines(tmp_path / "test.csv", "video,label,anomalies", *rows)
        assert (clipped in checked(code, f"{tmp_path} --decode")) == is_clipped


@pytest.mark.parametrize("name", OFFICIAL)
def test_missing_and_empty_roots(tmp_path, monkeypatch, checked, name):
    constant, root = f"{name.upper()}_ROOT", tmp_path / "absent"
    train, test = (f"{count:,}" for count in OFFICIAL[name])
    monkeypatch.setattr(config, constant, root)
    out = checked(3, name)
    counts = f"train: 0 found, {train} expected\n  test: 0 found, {test} expected"
    for text in (f"Set {constant} in", "TED_SPAD_DATA_ROOT", "aux_code.miniature", counts):
        assert text in out
    root.mkdir()
    out = checked(3, name)
    assert f"{train} expected" in out and str(root) in out and constant in out


def test_xd_violence_names_annotated_videos_that_are_absent(tmp_path, monkeypatch, checked):
    monkeypatch.setattr(config, "XD_VIOLENCE_ROOT", tmp_path)
    names = ("A.Film__#1_label_B1-0-0", "Other = Film__#2_label_G-0-0")
    write_video(tmp_path / "videos" / f"{names[0]}.mp4", 3)
    write_lines(tmp_path / "annotations.txt", *(f"{name} 0 2" for name in names))
    out = checked(3, "xd_violence")
    assert "train: 0 found, 3,954 expected\n  test: 1 found, 800 expected" in out
    assert str(tmp_path / "videos" / f"{names[1]}.mp4") in out
    assert f"no training videos; unpack them into {tmp_path / 'train'}" in out


def test_ctrl_c_does_not_wait_for_the_files_in_line(tmp_path, monkeypatch):
    begun = []

    def decode_slowly(path):
        begun.append(path)
        if len(begun) == 2:
            raise KeyboardInterrupt
        time.sleep(0.05)
        return 1, ""

    monkeypatch.setattr(check, "_decode", decode_slowly)
    many = check.Findings("many", tmp_path, media=[tmp_path / str(i) for i in range(200)])
    with pytest.raises(KeyboardInterrupt):
        check.decode_all(many, n_workers=1)
    assert len(begun) < 10


def test_wrong_usage():
    for argv in (["ucf-101"], ["--workers", "0"]):
        with pytest.raises(SystemExit) as caught:
            check.main(argv)
        assert caught.value.code == 2
