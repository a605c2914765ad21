"""The digest of a data set follows its lists, annotations and listed files, and nothing else."""

import shutil

import numpy as np
import pytest

from aux_code.datasets.digest import dataset_digest
from aux_code.errors import UserError
from tests.datasets.media import write_lines

FILES = {
    "UCF101": {
        "ucfTrainTestlist/classInd.txt": "1 Run", "Videos/Run/v_Run_g01_c01.avi": "clip",
        "ucfTrainTestlist/trainlist01.txt": "Run/v_Run_g01_c01.avi 1",
        "ucfTrainTestlist/testlist01.txt": "Run/v_Run_g02_c01.avi",
    },
    "VISPR": {
        "train2017/a.jpg": "image", "train2017/a.json": '{"labels": []}',
        "annotations/test2017/b.json": '{"labels": ["a4_gender"]}', "test2017/b.jpg": "image",
    },
    "ucf_crime": {
        "Anomaly_Train.txt": "Abuse/Abuse001_x264.mp4", "Videos/Abuse/Abuse001_x264.mp4": "video",
        "Temporal_Anomaly_Annotation_for_Testing_Videos.txt": "Abuse028_x264.mp4 Abuse 1 2 -1 -1",
        "Anomaly_Test.txt": "Abuse/Abuse028_x264.mp4",
    },
    "xd_violence": {
        "annotations.txt": "x_label_B1-0-0 3 9", "train/y_label_A.mp4": "video",
        "test/x_label_B1-0-0.mp4": "video",
    },
    "shanghaitech": {
        "SH_Train.txt": "01_001", "SH_Test.txt": "01_0014",
        "training/videos/01_001.avi": "video", "testing/frames/01_0014/000.jpg": "frame",
        "testing/test_frame_mask/01_0014.npy": np.array([0, 1]),
    },
    "/my/videos": {
        "train.csv": "video,label\na.mp4,normal", "a.mp4": "video",
        "test.csv": "video,label,anomalies\nb.mp4,anomalous,1-2", "b.mp4/000.jpg": "frame",
    },
}  # fmt: skip


def write(path, content):
    write_lines(path, str(content))
    if isinstance(content, np.ndarray):
        np.save(path, content)


def digest(name, root):
    dataset_digest.cache_clear()
    return dataset_digest(name, root)


@pytest.mark.parametrize("name", FILES)
def test_digest(name, tmp_path):
    root = tmp_path / "one"
    for file, content in FILES[name].items():
        write(root / file, content)
    first = digest(name, root)
    assert len(first) == 64
    for unlisted in ("README.md", "person_boxes.csv", "notes/a.txt"):
        write(root / unlisted, "nothing of the data set")
    assert digest(name, root) == first
    shutil.copytree(root, tmp_path / "two")
    assert digest(name, tmp_path / "two") == first, "it does not matter where the data set lies"

    digests = {first}
    for file in FILES[name]:
        before = (root / file).read_bytes()
        if not file.endswith(".npy"):  # one character more: a list changes, a medium grows
            (root / file).write_bytes(before + b"\n")
        else:
            np.save(root / file, np.array([1, 1]))
        digests.add(digest(name, root))
        (root / file).write_bytes(before)
    assert len(digests) == len(FILES[name]) + 1
    assert digest(name, root) == first
    if name == "UCF101":
        clip = root / "Videos/Run/v_Run_g01_c01.avi"
        write(clip, "CLIP")
        assert digest(name, root) == first, "media are told by name and size, at any time"
        clip.unlink()
        assert digest(name, root) not in digests, "a listed file that vanishes counts too"
        write(clip, "clip")
        write(root / "ucfTrainTestlist/testlist01.txt", "Run/v_Run_g03_c01.avi")
        assert digest(name, root) not in digests, "lists count by their content"
    if name == "shanghaitech":
        write(root / "testing/frames/01_0014/001.jpg", "frame")
        assert digest(name, root) not in digests, "so does a new frame"
    with pytest.raises(UserError, match="no data set at|unknown data set"):
        digest(name, tmp_path / "absent")


def test_own_videos_may_lie_elsewhere(tmp_path):
    for name in "ab":
        write(tmp_path / "v" / f"{name}.mp4", "video")
    write(tmp_path / "lists" / "train.csv", f"video,label\n{tmp_path}/v/a.mp4,0\n../v/b.mp4,0")
    first = digest("own", tmp_path / "lists")
    write(tmp_path / "v" / "a.mp4", "another video")
    assert digest("own", tmp_path / "lists") != first
