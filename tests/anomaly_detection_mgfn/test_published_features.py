"""Features as circulated: lists, crops in one file or one each, labels by name, joined truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn.feature_bags import load_segments, load_videos
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import load_network
from anomaly_detection_mgfn.params_mgfn import MINIATURE
from anomaly_detection_mgfn.published_features import match_lists, open_feature_lists, read_list
from aux_code import config
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError


def labelled(names):
    return {f"{name}_x264_i3d": int("Normal" not in name) for name in names.split()}


TRAIN = labelled("Burglary001 Normal_Videos003 Abuse001 Normal_Videos001 RoadAccidents010")
TEST = labelled("Abuse028 Normal_Videos_010 Vandalism036")
XD = ({"A Film__#1_label_A": 0, "Old_label_B1-B2-0": 1}, {"v=x_label_G-0-0": 1, "News_label_A": 0})
SHANGHAI = ({"01_001": 0, "01_0014": 1, "02_001": 0, "03_0031": 1}, {"04_001": 0, "05_0017": 1})


class Published:
    """A list folder with its truth; `spread` writes one file per crop."""

    def __init__(self, root, names=(TRAIN, TEST), dtype="f4", n_crops=0, spread="", dimension=16):
        self.root, self.arrays, self.labels = root, {}, {}
        rng = np.random.default_rng(0)
        (root / "features").mkdir(parents=True)
        for split, own in zip(("train", "test"), names):
            lines = []
            for name, label in own.items():
                n_clips = int(rng.integers(9, 30))
                array = rng.random((n_clips, max(n_crops, 1), dimension)).astype(dtype)
                labels = np.zeros(16 * n_clips)
                if label:
                    labels[40:90] = 1
                    array[2:6, :, :4] += 2
                self.arrays[name], self.labels[name] = array, labels
                marks = [f"{spread}{i}" for i in range(n_crops)] if spread else [""]
                for i, mark in enumerate(marks):
                    content = array[:, i] if spread or not n_crops else array
                    np.save(root / "features" / f"{name}{mark}.npy", content)
                    lines.append(f"/somebody/else/{name}{mark}.npy")
            self.write_list(split, lines)
        np.save(root / "gt.npy", np.concatenate([self.labels[name] for name in names[1]]))

    def lines(self, split):
        return (self.root / f"{split}.list").read_text().splitlines()

    def write_list(self, split, lines, *columns):
        """`columns`: what stands behind the paths."""
        lines = [",".join(map(str, row)) for row in zip(lines, *columns)]
        (self.root / f"{split}.list").write_text("\n".join(lines) + "\n")

    def params(self, **changes):
        lists = tuple(str(self.root / f"{split}.list") for split in ("train", "test"))
        files = {"features": str(self.root / "features"), "ground_truth": str(self.root / "gt.npy")}
        return replace(MINIATURE, **{"features_list": lists, **files, **changes})

    def matched(self, **changes):
        params = self.params(**changes)
        source = open_feature_lists(params)
        return source, match_lists(params, source)

    def train_labels(self, **changes):
        return {video.name: video.label for video in self.matched(**changes)[1].train}


FORMS = {
    "n_d": {}, "float64": {"dtype": "f8", "dimension": 20}, "n_10_d": {"n_crops": 10},
    "ten_files": {"n_crops": 10, "spread": "_", "dtype": "f8"},
    "xd_violence": {"n_crops": 5, "spread": "__", "names": XD},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_features_labels_and_truth_are_those_of_the_files(tmp_path, form):
    published, own = Published(tmp_path, **FORMS[form]), FORMS[form]
    source, videos = published.matched()
    names = own.get("names", (TRAIN, TEST))
    assert {video.name: video.label for video in videos.train} == names[0]
    assert [truth.name for truth in videos.test] == list(names[1])
    assert (source.n_crops, source.frames_per_feature) == (own.get("n_crops", 1), 16)
    categories = [video.category for video in (*videos.train[:2], *videos.test)]
    expected = ["Burglary", "Normal", "Abuse", "Normal", "Vandalism"]
    xd_violence = ["Normal", "Fighting", "Explosion", "Normal"]
    assert categories == (xd_violence if form == "xd_violence" else expected)
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


@pytest.mark.parametrize("first_axis", ["clips", "crops"])
def test_crops_may_stand_on_either_axis(tmp_path, first_axis):
    published = Published(tmp_path, n_crops=10)
    for name, array in published.arrays.items():
        swapped = array.swapaxes(0, 1) if first_axis == "crops" else array
        np.save(tmp_path / "features" / f"{name}.npy", swapped)
    source, _ = published.matched()
    assert source.n_crops == 10
    for name, array in published.arrays.items():
        np.testing.assert_array_equal(source.read(name), array)


PLACES = ("G:\\UCF_ten_crop\\", "E:/code/features/", "\\\\nas\\share\\", "test\\", "features/deep/")


@pytest.mark.parametrize("place", PLACES)
def test_lists_from_other_systems(tmp_path, place):
    published = Published(tmp_path, n_crops=5, spread="__")
    for split in ("train", "test"):
        lines = published.lines(split)
        published.write_list(split, [line.replace("/somebody/else/", place) for line in lines])
    assert published.train_labels() == TRAIN


def test_vadclips_lists_have_a_header_kinds_and_one_crop_of_each_test_video(tmp_path, caplog):
    published = Published(tmp_path, n_crops=10, spread="__", dtype="f2", dimension=512)
    for split in ("train", "test"):
        lines = [n for n in published.lines(split) if split == "train" or n.endswith("__5.npy")]
        kinds = ["Normal" if "Normal" in line else "Abuse" for line in lines]
        published.write_list(split, ["path", *lines], ["label", *kinds])
    source, videos = published.matched()
    assert {video.name: video.label for video in videos.train} == TRAIN
    assert [truth.name for truth in videos.test] == list(TEST)
    assert (source.n_crops, source.feature_dim) == (1, 512) and "crops [5]" in caplog.text
    for name, array in published.arrays.items():
        np.testing.assert_array_equal(source.read(name)[:, 0], array[:, 5])


def test_pel4vads_lists_have_labels_as_numbers_with_a_point(tmp_path):
    published = Published(tmp_path, SHANGHAI, n_crops=10, spread="_")
    for split, labels in zip(("train", "test"), SHANGHAI):
        names = [line.rpartition("/")[2] for line in published.lines(split)]
        rows = [f"{split}/{name} {labels[name[:-6]]:.1f}" for name in names]
        published.write_list(split, rows)
    assert published.train_labels(dataset="nowhere") == SHANGHAI[0]


def test_all_broken_files_and_lines_are_named_at_once(tmp_path):
    published = Published(tmp_path)
    for name in list(TRAIN)[:2]:
        (tmp_path / "features" / f"{name}.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="2 feature files are broken.*Burglary001.*Videos003"):
        published.matched()
    calm, *crimes = ("Normal_Videos001", "Abuse001", "RoadAccidents010")
    lines = [f"features/{name}_x264_i3d.npy" for name in (calm, *crimes)]
    published.write_list("test", lines, [1, 0, 1])
    with pytest.raises(UserError, match="2 videos are listed in .*test.list against .*001.*Abuse"):
        published.matched(eval_only=True)
    published.write_list("train", ["features/gone1.npy", "features/gone2.npy"])
    with pytest.raises(UserError, match="2 files of .*train.list.*gone1.*gone2.*--features"):
        published.matched()
    (tmp_path / "train.list").write_text("\n")
    with pytest.raises(UserError, match="train.list is empty"):
        published.matched()


def test_names_that_tell_nothing_need_a_column_or_annotations(tmp_path):
    published, own = Published(tmp_path, SHANGHAI), tmp_path / "own"
    with pytest.raises(UserError, match="'01_001' is normal; add 0 or 1"):
        published.matched(dataset="nowhere")
    own.mkdir()
    for split, labels in zip(("train", "test"), SHANGHAI):
        rows = [f"{name}.avi,{label}" for name, label in labels.items()]
        (own / f"{split}.csv").write_text("\n".join(["video,label", *rows]))
    assert published.train_labels(dataset=str(own)) == SHANGHAI[0]
    for split, labels in zip(("train", "test"), SHANGHAI):
        lines = zip(published.lines(split), labels.values())
        published.write_list(split, [f"{line} {label}" for line, label in lines])
    assert published.train_labels(dataset="nowhere") == SHANGHAI[0]


def test_lengths_are_checked_per_video_against_the_truth_and_the_lists_counts(tmp_path, caplog):
    published, gt = Published(tmp_path), np.load(tmp_path / "gt.npy")
    for truth, words in (
        (gt[16:], f"{len(gt) - 16} frames.*{len(gt)}"),
        (np.roll(gt, 400), "1 normal videos have anomalous frames in .*gt.npy: Normal_Videos_010"),
        (gt * 2, "expected 0 and 1"),
    ):
        np.save(tmp_path / "gt.npy", truth)
        with pytest.raises(UserError, match=words):
            published.matched()
    assert all(any(name in message for message in caplog.messages) for name in TEST)
    lines, counts = published.lines("test"), [len(published.labels[name]) - 5 for name in TEST]
    np.save(tmp_path / "gt.npy", np.concatenate([published.labels[name][:-5] for name in TEST]))
    published.write_list("test", lines, TEST.values(), counts)
    assert [truth.n_frames for truth in published.matched()[1].test] == counts
    published.write_list("test", lines, TEST.values(), [count + 100 for count in counts])
    with pytest.raises(UserError, match="Abuse028.*Vandalism036"):
        published.matched()


def test_names_of_lists_stand_for_the_files_of_crops_and_broken_ones_are_named(tmp_path):
    published = Published(tmp_path, n_crops=3, spread="_")
    (tmp_path / "short.list").write_text("features/Abuse001_x264_i3d.npy\n")
    video = read_list(tmp_path / "short.list", None)[0]
    assert video.name == "Abuse001_x264_i3d" and len(video.files) == 3
    lines, of_crop_1 = published.lines("train"), "Abuse001_x264_i3d_1.npy"
    two_crops = [line for line in lines if of_crop_1 not in line]
    for changed, words in (
        ([*lines, "no array"], "train.list, line 16.*no array"),
        (two_crops, r"Abuse001_x264_i3d' has the crops \[0, 2\]"),
        ([*lines, *published.lines("test")], "in the training list too"),
    ):
        published.write_list("train", changed)
        with pytest.raises(UserError, match=words):
            published.matched()
    published.write_list("train", lines)
    file = tmp_path / "features" / of_crop_1
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


def test_training_and_a_published_detector(tmp_path, run_main):
    params = Published(tmp_path / "data", n_crops=2).params()
    lists = params.features_list
    common = ["--epochs", 2, "--features", params.features, "--ground_truth", params.ground_truth]
    assert run_main(*common, "--run_id", "a", "--features_list", *lists) == 0
    net = MGFN(feature_dim=16, dims=(16, 24, 32), depths=(2, 1, 3))
    weights, state = tmp_path / "mgfn.pth", net.state_dict()
    save_checkpoint(weights, {f"module.{key}": value for key, value in state.items()})
    evaluate = ["--run_id", "e", "--eval_only", "--pretrained_ckpt", weights]
    assert run_main(*common, *evaluate, "--features_list", lists[1]) == 0
    loaded = load_network(weights).net.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())
    for run_id, protocols in (("a", {"last", "validation", "best_on_test"}), ("e", {"checkpoint"})):
        path = config.RESULTS_ROOT / f"anomaly_ucf_crime_{run_id}.json"
        found = json.loads(path.read_text())
        assert set(found["protocols"]) == protocols and found["frames_per_feature"] == 16
        assert [video["name"] for video in found["videos"]] == list(TEST)
