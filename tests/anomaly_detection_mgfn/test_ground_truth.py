"""Labels of the test videos, by name, from annotations and the frame counts of the manifest."""

import numpy as np
import pytest

from anomaly_detection_mgfn.feature_bags import open_feature_folder
from anomaly_detection_mgfn.ground_truth import match_videos
from aux_code.errors import UserError


def matched(small_set):
    return match_videos(str(small_set.dataset), open_feature_folder(small_set.features))


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


def test_a_video_without_features_is_named(small_set):
    name = list(small_set.arrays)[1]
    del small_set.arrays[name]
    small_set.write()
    with pytest.raises(UserError, match=name):
        matched(small_set)
    small_set.write(failed={name: "cannot be decoded"})
    videos = matched(small_set)
    assert videos.missing == {name: "cannot be decoded"}
    assert name not in {video.name for video in videos.train}


ONE_SIDED = [
    ("train", ",0,", "only normal"), ("train", ",1,", "only anomalous"),
    ("train", "none", "no training"), ("test", ",0,", ".*anomalous and normal frames"),
]  # fmt: skip


@pytest.mark.parametrize("split, kept, words", ONE_SIDED)
def test_both_classes_are_needed(small_set, split, kept, words):
    path = small_set.dataset / f"{split}.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    lines = [header, *(line for line in lines if kept in line)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"{split}.csv: {words}"):
        matched(small_set)
