"""Labels of the test videos, by name, from annotations and the frame counts of the manifest."""

import numpy as np
import pytest

from anomaly_detection_mgfn.feature_bags import open_feature_folder
from anomaly_detection_mgfn.ground_truth import match_videos
from anomaly_detection_mgfn.scoring import frame_scores
from aux_code.errors import UserError


def matched(small_set):
    return match_videos(str(small_set.dataset), open_feature_folder(small_set.features))


def keep_lines(path, word):
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if word in line]
    path.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")


def test_labels_and_events_are_those_of_the_annotation(small_set):
    """The release halves ShanghaiTech's truth and takes multiples of 32 frames, unlike these."""
    videos = matched(small_set)
    labels = {name: own for name, own in small_set.labels.items() if name.startswith("train")}
    assert {video.name: video.label for video in videos.train} == labels
    for truth in videos.test:
        expected = np.zeros(small_set.n_frames[truth.name], np.uint8)
        for start, end in small_set.events[truth.name]:
            expected[start:end] = 1
        assert truth.n_frames == len(expected)
        assert truth.positives.sum() == expected.sum()
        assert list(truth.events) == small_set.events[truth.name]
        scores = frame_scores(np.zeros(len(truth.positives)), truth.n_frames, 32)
        assert len(scores) == len(expected)


def test_label_is_a_column_and_not_a_line_number(small_set):
    """The release took the first lines of its lists as anomalous."""
    before = {video.name: video.label for video in matched(small_set).train}
    path = small_set.dataset / "train.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n", encoding="utf-8")
    after = matched(small_set).train
    assert [v.name for v in after] == list(reversed(before))
    assert {v.name: v.label for v in after} == before


def test_events_past_the_end_are_clipped(small_set):
    name = next(n for n in small_set.events if n.startswith("test") and small_set.events[n])
    start, _ = small_set.events[name][0]
    array, n_frames = small_set.arrays[name], small_set.n_frames[name]
    short = start + 10
    small_set.arrays[name], small_set.n_frames[name] = array[: -(-short // 32)], short
    small_set.write()
    truth = next(t for t in matched(small_set).test if t.name == name)
    assert truth.events == ((start, short),) and n_frames > short


def test_a_video_without_features_is_named(small_set):
    name = list(small_set.arrays)[1]
    array = small_set.arrays.pop(name)
    small_set.write()
    with pytest.raises(UserError, match=name):
        matched(small_set)
    small_set.write(failed={name: "cannot be decoded"})
    videos = matched(small_set)
    assert videos.missing == {name: "cannot be decoded"}
    assert name not in {video.name for video in videos.train} and len(array)


@pytest.mark.parametrize(
    "kept, word", [(",0,", "only normal"), (",1,", "only anomalous"), ("none", "no training")]
)
def test_training_needs_both_classes(small_set, kept, word):
    keep_lines(small_set.dataset / "train.csv", kept)
    with pytest.raises(UserError, match=f"train.csv: {word}"):
        matched(small_set)


def test_test_videos_need_both_classes(small_set):
    keep_lines(small_set.dataset / "test.csv", ",0,")
    with pytest.raises(UserError, match="test.csv: .*anomalous and normal frames"):
        matched(small_set)
