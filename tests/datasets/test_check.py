"""The check of the data sets on small copies in the real layouts, whole and damaged."""

import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from aux_code import config
from aux_code.datasets import check, ucf101, vispr
from tests.datasets.media import painted_frame, write_video

OFFICIAL = {
    "ucf101": (9537, 3783), "vispr": (10_000, 8_000), "ucf_crime": (1610, 290),
    "xd_violence": (3954, 800), "shanghaitech": (238, 199),
}  # fmt: skip


@pytest.fixture
def small_ucf101(tmp_path, monkeypatch):
    root = tmp_path / "UCF101"
    monkeypatch.setattr(config, "UCF101_ROOT", root)
    monkeypatch.setattr(ucf101, "OFFICIAL_COUNTS", {"train": 3, "test": 1})
    names = [f"YoYo/v_YoYo_g{group:02d}_c01.avi" for group in range(1, 5)]
    for name in names:
        write_video(root / "Videos" / name, 5, codec="mpeg4")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 YoYo\n")
    (lists / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in names[1:]))
    (lists / "testlist01.txt").write_text(names[0] + "\n")
    return root


def test_complete(small_ucf101, capsys):
    assert check.main(["ucf101", "--decode"]) == 0
    expected = "train: 3 found, 3 expected\n  test: 1 found, 1 expected\n  complete"
    assert expected in capsys.readouterr().out


def test_official_counts_are_those_of_the_papers():
    found = {name: tuple(m.OFFICIAL_COUNTS.values()) for name, (_, m) in check.CHECKS.items()}
    assert found == OFFICIAL


def test_missing_files_are_named_and_counted(small_ucf101, capsys):
    (small_ucf101 / "Videos" / "YoYo" / "v_YoYo_g03_c01.avi").unlink()
    assert check.main(["ucf101"]) == 3
    out = capsys.readouterr().out
    assert "1 train files are missing" in out and "train: 2 found, 3 expected" in out
    assert str(small_ucf101 / "Videos" / "YoYo" / "v_YoYo_g03_c01.avi") in out


def test_one_missing_list_does_not_hide_the_other(small_ucf101, capsys):
    (small_ucf101 / "ucfTrainTestlist" / "testlist01.txt").unlink()
    assert check.main(["ucf101"]) == 3
    out = capsys.readouterr().out
    lines = ("train: 3 found, 3 expected", "test: not counted, 1 expected", "testlist01.txt")
    assert all(line in out for line in lines)


def test_decode_names_what_does_not_decode(small_ucf101, capsys):
    (small_ucf101 / "Videos" / "YoYo" / "v_YoYo_g03_c01.avi").write_bytes(b"no video")
    assert check.main(["ucf101"]) == 0
    assert check.main(["ucf101", "--decode", "--workers", "2"]) == 3
    out = capsys.readouterr().out
    assert "1 files do not decode" in out and "v_YoYo_g03_c01.avi: cannot be opened" in out


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.avi", {})]
)
def test_half_a_download_is_noticed(tmp_path, capsys, name, options):
    """FFmpeg ends such files without an error; what they state says that something is missing."""
    path = write_video(tmp_path / name, 60, codec="mpeg4", options={**options, "g": "12"})
    (tmp_path / "test.csv").write_text(f"video,label\n{name},0\n")
    assert check.main([str(tmp_path), "--decode"]) == 0
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.55)])
    assert check.main([str(tmp_path), "--decode"]) == 3
    assert "1 files do not decode, or not wholly" in capsys.readouterr().out


def test_a_miniature_is_compared_with_its_own_marker(small_ucf101, monkeypatch):
    monkeypatch.setattr(ucf101, "OFFICIAL_COUNTS", {"train": 9537, "test": 3783})
    assert check.main(["ucf101"]) == 3
    (small_ucf101 / "miniature.json").write_text(json.dumps({"counts": {"train": 3, "test": 1}}))
    assert check.main(["ucf101"]) == 0


def test_vispr(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "VISPR_ROOT", tmp_path)
    monkeypatch.setattr(vispr, "OFFICIAL_COUNTS", {"train": 1, "test": 1})
    for split in ("train2017", "test2017"):
        (tmp_path / split).mkdir()
        Image.fromarray(painted_frame(1)).save(tmp_path / split / "2017_1.jpg")
        (tmp_path / split / "2017_1.json").write_text(json.dumps({"labels": list(vispr.VISPR1)}))
    assert check.main(["vispr", "--decode"]) == 0
    out = capsys.readouterr().out
    assert "no labelled images in val2017: a tenth of train" in out and "train: 1 found" in out
    whole = (tmp_path / "test2017" / "2017_1.jpg").read_bytes()
    (tmp_path / "test2017" / "2017_1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train2017" / "2017_9.json").write_text("{}")
    assert check.main(["vispr", "--decode"]) == 3
    out = capsys.readouterr().out
    assert "test2017/2017_1.jpg: not a readable image" in out
    assert f"train: 1 annotations have no image: {tmp_path / 'train2017' / '2017_9.jpg'}" in out
    shutil.copytree(tmp_path / "train2017", tmp_path / "val2017")
    assert check.main(["vispr"]) == 3
    assert "note: val: 1 found" in capsys.readouterr().out


def test_shanghaitech_masks_are_compared_with_the_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "SHANGHAITECH_ROOT", tmp_path)
    frames = tmp_path / "testing" / "frames" / "01_0014"
    masks = tmp_path / "testing" / "test_frame_mask"
    frames.mkdir(parents=True)
    masks.mkdir()
    for number in range(4):
        Image.fromarray(painted_frame(number)).save(frames / f"{number:03d}.jpg")
    np.save(masks / "01_0014.npy", np.array([0, 1, 1, 0, 1], np.uint8))
    write_video(tmp_path / "training" / "videos" / "01_001.avi", 3, codec="mpeg4")
    (tmp_path / "SH_Train.txt").write_text("01_001\n")
    (tmp_path / "SH_Test.txt").write_text("01_0014\n")
    (tmp_path / "miniature.json").write_text(json.dumps({"counts": {"train": 1, "test": 1}}))
    assert check.main(["shanghaitech", "--decode"]) == 3
    out = capsys.readouterr().out
    assert "01_0014: 4 frames, 5 values in its mask" in out
    assert "01_0014: 4 frames, event 4-5" in out
    np.save(masks / "01_0014.npy", np.array([0, 1, 1, 0], np.uint8))
    assert check.main(["shanghaitech", "--decode"]) == 0
    (frames / "002.jpg").write_bytes((frames / "002.jpg").read_bytes()[:300])
    assert check.main(["shanghaitech", "--decode"]) == 3
    assert "01_0014: 002.jpg: not a readable image" in capsys.readouterr().out


def test_own_folder(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", 3)
    (tmp_path / "test.csv").write_text("video,label,anomalies\na.mp4,1,0-3\n")
    assert check.main([str(tmp_path), "--decode"]) == 0
    (tmp_path / "test.csv").write_text("video,label,anomalies\na.mp4,1,0-4\n")
    assert check.main([str(tmp_path), "--decode"]) == 0
    assert "note: 1 events end past the last frame and are clipped" in capsys.readouterr().out
    (tmp_path / "test.csv").write_text("video,label,anomalies\na.mp4,1,0-9\nb.mp4,0,\n")
    assert check.main([str(tmp_path), "--decode"]) == 3


@pytest.mark.parametrize("name", OFFICIAL)
def test_missing_and_empty_roots(tmp_path, monkeypatch, capsys, name):
    constant, counts = f"{name.upper()}_ROOT", [f"{count:,}" for count in OFFICIAL[name]]
    monkeypatch.setattr(config, constant, tmp_path / "absent")
    assert check.main([name]) == 3
    out = capsys.readouterr().out
    for text in (f"Set {constant} in", "TED_SPAD_DATA_ROOT", "aux_code.miniature"):
        assert text in out
    assert f"train: 0 found, {counts[0]} expected\n  test: 0 found, {counts[1]} expected" in out
    (tmp_path / "absent").mkdir()
    assert check.main([name]) == 3
    out = capsys.readouterr().out
    assert f"{counts[0]} expected" in out and str(tmp_path / "absent") in out and constant in out


def test_xd_violence_names_annotated_videos_that_are_absent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "XD_VIOLENCE_ROOT", tmp_path)
    write_video(tmp_path / "videos" / "A.Film__#1_label_B1-0-0.mp4", 3)
    lines = ["A.Film__#1_label_B1-0-0 0 2", "Other = Film__#2_label_G-0-0 0 2"]
    (tmp_path / "annotations.txt").write_text("\n".join(lines) + "\n")
    assert check.main(["xd_violence"]) == 3
    out = capsys.readouterr().out
    assert "train: 0 found, 3,954 expected\n  test: 1 found, 800 expected" in out
    assert str(tmp_path / "videos" / "Other = Film__#2_label_G-0-0.mp4") in out
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
