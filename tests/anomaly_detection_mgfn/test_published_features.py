"""Features as circulated: lists, crops in one file or one each, labels by name, joined truth."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from anomaly_detection_mgfn import main as script
from anomaly_detection_mgfn.feature_bags import load_segments, load_videos
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.params_mgfn import MINIATURE
from anomaly_detection_mgfn.published_features import match_lists, open_feature_lists, read_list
from aux_code import config
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError


def labelled(*names):
    return {f"{name}_x264_i3d": int("Normal" not in name) for name in names}


TRAIN = labelled(
    *("Burglary001", "Normal_Videos003", "Abuse001"),
    *("Normal_Videos001", "RoadAccidents010", "Normal_Videos900"),
)
TEST = labelled("Abuse028", "Normal_Videos_010", "Vandalism036")


class Published:
    """A list folder with its truth; `spread` writes one file per crop."""

    def __init__(
        self, root, dtype=np.float32, n_crops=0, spread="", names=(TRAIN, TEST), dimension=16
    ):
        rng = np.random.default_rng(0)
        self.root, self.arrays, self.labels = root, {}, {}
        (root / "features").mkdir(parents=True)
        truth = []
        for split, own in zip(("train", "test"), names):
            lines = []
            for name, label in own.items():
                n_clips = int(rng.integers(9, 30))
                array = rng.random((n_clips, max(n_crops, 1), dimension)).astype(dtype)
                labels = np.zeros(16 * n_clips)
                if label:
                    labels[40:90] = 1
                    array[2:6, :, :4] += 2
                if split == "test":
                    truth.append(labels)
                self.arrays[name], self.labels[name] = array, labels
                marks = [f"{spread}{i}" for i in range(n_crops)] if spread else [""]
                files = [f"{name}{mark}.npy" for mark in marks]
                for i, file in enumerate(files):
                    own_crop = array[:, i] if spread or not n_crops else array
                    np.save(root / "features" / file, own_crop)
                lines += [f"/somebody/else/{file}" for file in files]
            (root / f"{split}.list").write_text("\n".join(lines) + "\n")
        np.save(root / "gt.npy", np.concatenate(truth))

    def params(self, **changes):
        lists = (str(self.root / "train.list"), str(self.root / "test.list"))
        files = {"features": str(self.root / "features"), "ground_truth": str(self.root / "gt.npy")}
        return replace(MINIATURE, **{"features_list": lists, **files, **changes})

    def matched(self, **changes):
        params = self.params(**changes)
        source = open_feature_lists(params)
        return source, match_lists(params, source)


XD = (
    {"A Film__#1_label_A": 0, "Other_label_B1-B2-0": 1},
    {"v=x_label_G-0-0": 1, "News_label_A": 0},
)
FORMS = [
    {},
    {"dtype": np.float64, "dimension": 20},
    {"n_crops": 10},
    {"n_crops": 10, "spread": "_", "dtype": np.float64},
    {"n_crops": 5, "spread": "__", "names": XD},
]


@pytest.mark.parametrize(
    "form", FORMS, ids=["n_d", "float64", "n_10_d", "ten_files", "xd_violence"]
)
def test_features_labels_and_truth_are_those_of_the_files(tmp_path, form):
    published = Published(tmp_path, **form)
    source, videos = published.matched()
    names = form.get("names", (TRAIN, TEST))
    assert {video.name: video.label for video in videos.train} == names[0]
    assert [truth.name for truth in videos.test] == list(names[1])
    assert (source.n_crops, source.frames_per_feature) == (form.get("n_crops", 1), 16)
    loaded = load_videos(source, list(published.arrays), memory_limit_gib=1.0)
    assert loaded.data.dtype == np.float32
    for i, array in enumerate(published.arrays.values()):
        expected = array.astype(np.float32).swapaxes(0, 1)
        np.testing.assert_array_equal(loaded.bag(i)[..., :-1], expected)
    segments = load_segments(source, list(names[0]), 8, 1.0)
    assert segments.shape[:3] == (len(names[0]), source.n_crops, 8)
    for truth in videos.test:
        assert truth.events == (((40, 90),) if truth.label else ())
        assert truth.n_frames == len(published.labels[truth.name])


def test_categories(tmp_path):
    _, videos = Published(tmp_path / "ucf").matched()
    assert [truth.category for truth in videos.test] == ["Abuse", "Normal", "Vandalism"]
    _, videos = Published(tmp_path / "xd", names=XD).matched()
    assert [video.category for video in videos.train] == ["Normal", "Fighting"]


def test_labels_do_not_depend_on_the_order_of_the_list(tmp_path):
    """The release takes the first lines as anomalous; ShanghaiTech's lists are alphabetical."""
    published = Published(tmp_path)
    path = tmp_path / "train.list"
    path.write_text("\n".join(sorted(path.read_text().splitlines(), reverse=True)))
    assert {video.name: video.label for video in published.matched()[1].train} == TRAIN


SHANGHAI = ({"01_001": 0, "01_0014": 1, "02_001": 0, "03_0031": 1}, {"04_001": 0, "05_0017": 1})


def test_names_that_tell_nothing_need_a_column_or_annotations(tmp_path):
    published = Published(tmp_path, names=SHANGHAI)
    with pytest.raises(UserError, match="'01_001' is normal; add 0 or 1"):
        published.matched(dataset="nowhere")
    for split, own in zip(("train", "test"), SHANGHAI):
        path = tmp_path / f"{split}.list"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(f"{line} {label}" for line, label in zip(lines, own.values())))
    train = published.matched(dataset="nowhere")[1].train
    assert {video.name: video.label for video in train} == SHANGHAI[0]


def test_annotations_of_the_data_set_label_what_names_do_not(tmp_path):
    published = Published(tmp_path, names=SHANGHAI)
    (tmp_path / "own").mkdir()
    for split, own in zip(("train", "test"), SHANGHAI):
        rows = [f"{name}.avi,{label}" for name, label in own.items()]
        (tmp_path / "own" / f"{split}.csv").write_text("\n".join(["video,label", *rows]))
    videos = published.matched(dataset=str(tmp_path / "own"))[1]
    assert {video.name: video.label for video in videos.train} == SHANGHAI[0]


def test_lengths_that_do_not_fit_are_reported_per_video(tmp_path, caplog):
    published = Published(tmp_path)
    gt = np.load(tmp_path / "gt.npy")
    np.save(tmp_path / "gt.npy", gt[16:])
    with pytest.raises(UserError, match=f"{len(gt) - 16} frames.*{len(gt)}"):
        published.matched()
    assert all(any(name in message for message in caplog.messages) for name in TEST)
    np.save(tmp_path / "gt.npy", np.roll(gt, 400))
    with pytest.raises(UserError, match="anomalous frames in normal videos: Normal_Videos_010"):
        published.matched()
    np.save(tmp_path / "gt.npy", gt * 2)
    with pytest.raises(UserError, match="expected 0 and 1"):
        published.matched()


def test_frame_counts_of_the_list_are_used_and_checked(tmp_path):
    published = Published(tmp_path)
    path = tmp_path / "test.list"
    counts = [len(published.labels[name]) - 5 for name in TEST]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{row},{y},{n}" for row, y, n in zip(lines, TEST.values(), counts)))
    np.save(tmp_path / "gt.npy", np.concatenate([published.labels[name][:-5] for name in TEST]))
    assert [truth.n_frames for truth in published.matched()[1].test] == counts
    rows = zip(lines, TEST.values(), counts)
    path.write_text("\n".join(f"{row},{y},{n + 100}" for row, y, n in rows))
    with pytest.raises(UserError, match="Abuse028.*Vandalism036"):
        published.matched()


def test_broken_lists_and_files_are_named(tmp_path):
    published = Published(tmp_path, n_crops=3, spread="_")
    path = tmp_path / "train.list"
    text = path.read_text()
    path.write_text(text + "no array\n")
    with pytest.raises(UserError, match="train.list, line 19.*no array"):
        published.matched()
    path.write_text(text.replace("/somebody/else/Abuse001_x264_i3d_1.npy\n", ""))
    with pytest.raises(UserError, match=r"Abuse001_x264_i3d' has the crops \[0, 2\]"):
        published.matched()
    path.write_text(text + (tmp_path / "test.list").read_text())
    with pytest.raises(UserError, match="in the training list too"):
        published.matched()
    path.write_text(text)
    file = tmp_path / "features" / "Abuse001_x264_i3d_1.npy"
    array = np.load(file)
    np.save(file, array[:-1])
    with pytest.raises(UserError, match="Abuse001_x264_i3d_0.npy: expected"):
        published.matched()
    array[2, 3] = np.nan
    np.save(file, array)
    with pytest.raises(UserError, match="Abuse001_x264_i3d_0.npy: NaN"):
        load_videos(open_feature_lists(published.params()), list(TRAIN), 1.0)
    file.unlink()
    with pytest.raises(UserError, match="line .*--features"):
        published.matched()


def test_a_listed_name_stands_for_the_files_of_its_crops(tmp_path):
    Published(tmp_path, n_crops=3, spread="__")
    (tmp_path / "short.list").write_text("features/Abuse001_x264_i3d.npy\n")
    video = read_list(tmp_path / "short.list", None)[0]
    assert video.name == "Abuse001_x264_i3d" and len(video.files) == 3


def test_training_and_a_published_detector(tmp_path, monkeypatch):
    for name in ("SAVED_MODELS_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / name)
    published = Published(tmp_path / "data", n_crops=2)
    params, lists = published.params(), published.params().features_list
    common = "main.py --preset miniature --device cpu --n_threads 1 --epochs 2".split()
    common += ["--features", params.features, "--ground_truth", params.ground_truth]
    monkeypatch.setattr(sys, "argv", [*common, "--run_id", "a", "--features_list", *lists])
    assert script.main() == 0
    net = MGFN(feature_dim=16, dims=(8, 8, 8), depths=(1, 1, 1))
    save_checkpoint(tmp_path / "mgfn.pth", net.state_dict())
    evaluate = ["--run_id", "e", "--eval_only", "--pretrained_ckpt", str(tmp_path / "mgfn.pth")]
    monkeypatch.setattr(sys, "argv", [*common, *evaluate, "--features_list", lists[1]])
    assert script.main() == 0
    for run_id in "ae":
        path = tmp_path / "RESULTS_ROOT" / f"anomaly_ucf_crime_{run_id}.json"
        found = json.loads(path.read_text())
        assert found["frames_per_feature"] == 16
        assert [video["name"] for video in found["videos"]] == list(TEST)
