"""Annotations and the manifest's frame counts -> labels per video and frame; off by one nowhere."""

from functools import partial

import numpy as np
import pytest

from anomaly_detection_mgfn.feature_bags import open_feature_folder
from anomaly_detection_mgfn.ground_truth import match_videos
from aux_code import config
from aux_code.errors import UserError
from tests.anomaly_detection_mgfn.conftest import clip_count, write_features
from tests.datasets.media import write_lines


def matched(small_set):
    return match_videos(str(small_set.dataset), open_feature_folder(small_set.features))


def test_labels_and_events_are_those_of_the_annotation_and_videos_without_features_named(small_set):
    """The release halves ShanghaiTech's truth and takes multiples of 32 frames, unlike these."""
    videos = matched(small_set)
    labels = {name: own for name, own in small_set.labels.items() if name.startswith("train")}
    assert {video.name: video.label for video in videos.train} == labels
    for truth in videos.test:
        events = small_set.events[truth.name]
        assert truth.n_frames == small_set.n_frames[truth.name] and list(truth.events) == events
        assert truth.positives.sum() == sum(end - start for start, end in events)
    name = list(small_set.arrays)[1]
    del small_set.arrays[name]
    small_set.write()
    with pytest.raises(UserError, match=name):
        matched(small_set)
    small_set.write(failed={name: "cannot be decoded"})
    videos = matched(small_set)
    assert videos.missing == {name: "cannot be decoded"}
    assert name not in {video.name for video in videos.train}
    assert videos.n_test_videos == len(videos.test)


def test_more_than_a_hundredth_of_failed_test_videos_ends_it_unless_allowed(small_set):
    """Once two of eight were scored, and the AUC stood in a table beside those of eight."""
    name, n_test = matched(small_set).test[0].name, matched(small_set).n_test_videos
    del small_set.arrays[name]
    small_set.write(failed={name: "torn"})
    with pytest.raises(UserError, match=f"1 of {n_test} test videos failed: {name}; .*--allow_mis"):
        matched(small_set)
    source = open_feature_folder(small_set.features)
    videos = match_videos(str(small_set.dataset), source, allow_missing=True)
    assert len(videos.test) == n_test - 1 and videos.n_test_videos == n_test


ONE_SIDED = [
    ("train", ",0,", "only normal"), ("train", ",1,", "only anomalous"),
    ("train", "none", "no video is listed"), ("test", ",0,", ".*anomalous and normal frames"),
]  # fmt: skip


@pytest.mark.parametrize("split, kept, words", ONE_SIDED)
def test_both_classes_are_needed(small_set, split, kept, words):
    path = small_set.dataset / f"{split}.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    lines = [header, *(line for line in lines if kept in line)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"{split}.csv: {words}"):
        matched(small_set)


@pytest.mark.parametrize("start, end, fits", [
    (-40, 32, True), (-1, 32, True), (-40, 33, False), (0, 1, False),
])  # fmt: skip
def test_events_reach_a_feature_past_the_end_at_most(small_set, caplog, start, end, fits):
    """The official lists need that much; what lies farther is of another video."""
    path, names = small_set.dataset / "test.csv", ("test 01#ö", "test 03#ö")
    text = path.read_text(encoding="utf-8")
    for name in names:
        (before,), n = small_set.events[name], small_set.n_frames[name]
        row = f"videos/{name}.mp4,1,"
        text = text.replace(f"{row}{before[0]}-{before[1]}", f"{row}{n + start}-{n + end}")
    path.write_text(text, encoding="utf-8")
    if not fits:
        with pytest.raises(UserError, match=f"2 annotations .*{names[0]}: event .*{names[1]}"):
            matched(small_set)
        return
    truth = {truth.name: truth for truth in matched(small_set).test}[names[0]]
    assert truth.events == ((truth.n_frames + start, truth.n_frames),)
    assert f"{names[0]}: event" in caplog.text


write_crlf = partial(write_lines, line_end=" \r\n")
N_FRAMES = 100
CASES = {
    "from the first frame": ([(0, 40)], N_FRAMES), "to the last frame": ([(60, 100)], N_FRAMES),
    "a feature past the end": ([(60, 132)], N_FRAMES),
    "two events": ([(10, 20), (63, 65)], N_FRAMES),
    "the whole video": ([(0, 100)], N_FRAMES), "one frame": ([(31, 32)], N_FRAMES),
    "shorter than a clip": ([(2, 5)], 7), "of one frame": ([(0, 1)], 1),
}  # fmt: skip
NAMES = {
    "ucf_crime": "Abuse{:03d}_x264", "shanghaitech": "01_{:04d}",
    "xd_violence": "Film = No. {}__#00-01_label_B1-0-0",
}  # fmt: skip


def name_of(case, dataset):
    return NAMES[dataset].format(list(CASES).index(case) + 1)


def write_ucf_crime(root):
    """Frames from 1, both ends inclusive."""
    test = ["Testing_Normal_Videos_Anomaly/Normal_x264.mp4"]
    annotations = ["Normal_x264.mp4  Normal  -1  -1  -1  -1"]
    for case, (events, _) in CASES.items():
        file = f"{name_of(case, 'ucf_crime')}.mp4"
        bounds = [bound for start, end in events for bound in (start + 1, end)]
        bounds += [-1] * (4 - len(bounds))
        test.append(f"Abuse/{file}")
        annotations.append("  ".join([file, "Abuse", *map(str, bounds)]))
    write_crlf(root / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt", *annotations)
    write_crlf(root / "Anomaly_Test.txt", *test)
    train = ["Abuse/train_x264.mp4", "Training_Normal_Videos_Anomaly/calm_x264.mp4"]
    write_crlf(root / "Anomaly_Train.txt", *train)
    return "Normal_x264", ["train_x264", "calm_x264"]


def write_xd_violence(root):
    """Frames from 0, end exclusive."""
    names = [name_of(case, "xd_violence") for case in CASES]
    bounds = [" ".join(f"{start} {end}" for start, end in events) for events, _ in CASES.values()]
    write_crlf(root / "annotations.txt", *map(" ".join, zip(names, bounds, strict=True)))
    normal, train = "Film__#2_label_A", ["a__#1_label_G-0-0", "b__#1_label_A"]
    for split, own in (("test", [*names, normal]), ("train", train)):
        (root / split).mkdir()
        for name in own:
            (root / split / f"{name}.mp4").touch()
    return normal, train


def write_shanghaitech(root):
    """One 0 or 1 per frame, so that nothing lies past the end."""
    masks = {name_of(case, "shanghaitech"): expected_labels(case) for case in CASES}
    masks["02_0001"] = np.ones(9, np.uint8)
    folder = root / "testing" / "test_frame_mask"
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        np.save(folder / f"{name}.npy", mask)
    write_crlf(root / "SH_Test.txt", *(name for name in masks if name != "02_0001"), "01_001")
    write_crlf(root / "SH_Train.txt", "02_0001 1", "01_002,0")
    return "01_001", ["02_0001", "01_002"]


def expected_labels(case):
    events, n_frames = CASES[case]
    inside = [any(start <= i < end for start, end in events) for i in range(n_frames)]
    return np.array(inside, np.uint8)


WRITERS = {
    "ucf_crime": (write_ucf_crime, "Abuse"), "xd_violence": (write_xd_violence, "Fighting"),
    "shanghaitech": (write_shanghaitech, "Anomaly"),
}  # fmt: skip


@pytest.mark.parametrize("dataset", WRITERS)
def test_frame_labels_from_the_original_annotations(tmp_path, monkeypatch, caplog, dataset):
    root = tmp_path / "data"
    monkeypatch.setattr(config, f"{dataset.upper()}_ROOT", root)
    write, category = WRITERS[dataset]
    normal, train = write(root)
    n_frames = {name_of(case, dataset): n for case, (_, n) in CASES.items()}
    n_frames |= dict.fromkeys([normal, *train], 50)
    features = {name: np.zeros((clip_count(n), 16), np.float32) for name, n in n_frames.items()}
    write_features(tmp_path / "features", features, n_frames, dataset=dataset)

    matched = match_videos(dataset, open_feature_folder(tmp_path / "features"))
    truths = {truth.name: truth for truth in matched.test}
    assert truths.keys() == n_frames.keys() - set(train)
    for case, (events, n) in CASES.items():
        name, expected = name_of(case, dataset), expected_labels(case)
        truth, positives = truths[name], [expected[i : i + 32].sum() for i in range(0, n, 32)]
        np.testing.assert_array_equal(truth.positives, positives, err_msg=case)
        assert (truth.label, truth.n_frames) == (1, n), case
        assert (truth.positives + truth.negatives).sum() == n, case
        clipped = tuple((start, min(end, n)) for start, end in events if start < n)
        assert (truth.events, truth.category) == (clipped, category), case
        is_clipped = dataset != "shanghaitech" and events[-1][1] > n
        assert (f"{name}: event" in caplog.text) == is_clipped
    assert (truths[normal].label, truths[normal].category) == (0, "Normal")
    assert not truths[normal].positives.any()
