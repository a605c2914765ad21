"""Feature files: averaging to segments, checks of the folder, one array in memory."""

from pathlib import Path

import numpy as np
import pytest

from anomaly_detection_mgfn import feature_bags
from anomaly_detection_mgfn.feature_bags import (
    append_magnitude,
    check_anonymizer,
    load_segments,
    load_videos,
    open_feature_folder,
    segment_features,
)
from aux_code.artefacts import sha256
from aux_code.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "mgfn.npz"


@pytest.mark.parametrize("n_clips", [5, 31, 32, 33, 100])
def test_segments_equal_the_published_averages(n_clips):
    golden = np.load(GOLDEN)
    ours = segment_features(golden[f"segments_in_{n_clips}"], 32)
    np.testing.assert_allclose(ours, golden[f"segments_out_{n_clips}"], rtol=1e-5, atol=1e-7)


def test_segments_are_means_and_not_first_clips():
    features = np.array([[0.0], [2.0], [10.0], [20.0], [60.0]], dtype=np.float32)
    np.testing.assert_array_equal(segment_features(features, 2), [[1.0], [30.0]])


def test_segments_of_crops_equal_those_of_each_crop():
    features = np.random.default_rng(0).normal(size=(70, 10, 6)).astype(np.float32)
    together = segment_features(features, 32)
    for crop in range(10):
        alone = segment_features(features[:, crop], 32)
        np.testing.assert_allclose(together[:, crop], alone, rtol=1e-6)


def test_magnitude_is_the_last_channel():
    bag = append_magnitude(np.array([[3.0, 4.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(bag, [[3, 4, 5], [0, 1, 1]])
    assert bag.dtype == np.float32


def test_whole_videos_and_segments_are_those_of_the_files(small_set):
    source = open_feature_folder(small_set.features)
    names = list(small_set.arrays)[3:7]
    videos = load_videos(source, names, memory_limit_gib=1.0)
    segments = load_segments(source, names, 8, memory_limit_gib=1.0)
    for i, name in enumerate(names):
        array = small_set.arrays[name]
        np.testing.assert_array_equal(videos.bag(i)[0, :, :-1], array)
        np.testing.assert_allclose(videos.bag(i)[0, :, -1], np.sqrt((array**2).sum(1)), rtol=1e-6)
        pooled = append_magnitude(segment_features(array, 8))
        np.testing.assert_allclose(segments[i, 0], pooled, rtol=1e-6)


def test_above_the_limit_features_are_mapped_and_equal(small_set):
    source = open_feature_folder(small_set.features)
    names = list(small_set.arrays)
    mapped = load_videos(source, names, memory_limit_gib=0.0)
    assert isinstance(mapped.data, np.memmap)
    held = load_videos(source, names, memory_limit_gib=1.0)
    np.testing.assert_array_equal(mapped.data, held.data)


def test_ten_crops(tmp_path, make_set):
    small = make_set(tmp_path, n_crops=10)
    source = open_feature_folder(small.features)
    videos = load_videos(source, list(small.arrays)[:2], memory_limit_gib=1.0)
    first = next(iter(small.arrays.values()))
    assert videos.bag(0).shape == (10, len(first), first.shape[2] + 1)
    np.testing.assert_array_equal(videos.bag(0)[7, :, :-1], first[:, 7])


SPOILT = {
    "nan": lambda array: array * np.nan,
    "inf": lambda array: array + np.inf,
    "dimension": lambda array: array[:, :-1],
    "length": lambda array: array[:-1],
    "integers": lambda array: array.astype(np.int64),
    "pickled": lambda array: np.array([{"a": 1}], dtype=object),
}


@pytest.mark.parametrize("spoil", [*SPOILT, "text", "empty", "missing"])
def test_a_bad_file_is_named(small_set, spoil):
    name, array = list(small_set.arrays.items())[2]
    path = small_set.features / f"{name}.npy"
    if spoil in SPOILT:
        np.save(path, SPOILT[spoil](array), allow_pickle=True)
    else:
        path.write_text("no array" if spoil == "text" else "")
    if spoil == "missing":
        path.unlink()
    with pytest.raises(UserError, match=path.name):
        load_videos(open_feature_folder(small_set.features), [name], memory_limit_gib=1.0)


VIDEO = {"file": "a.npy", "n_clips": 1, "n_frames": 3}


@pytest.mark.parametrize(
    "words, changes",
    [
        ("frames_per_feature", {"frames_per_feature": 16}),
        ("stride", {"stride": 1}),
        ("frames_per_clip", {"frames_per_clip": 8}),
        ("lists no video", {"videos": {}}),
        ("'a'", {"videos": {"a": VIDEO | {"n_clips": "many"}}}),
        ("'a' has 3 clips", {"videos": {"a": VIDEO | {"n_clips": 3}}}),
        ("manifest.json", {"videos": [1]}),
        ("manifest.json", {"feature_dim": "x"}),
        ("manifest.json", {"n_crops": None}),
        ("manifest.json", {"anonymizer": "raw"}),
    ],
)
def test_a_manifest_of_other_features_or_spoiled_is_refused(small_set, words, changes):
    small_set.write(**changes)
    with pytest.raises(UserError, match=words):
        open_feature_folder(small_set.features)


def test_a_folder_without_manifest_is_refused(small_set, tmp_path):
    with pytest.raises(UserError, match="manifest.json does not exist"):
        open_feature_folder(tmp_path / "nothing")
    (small_set.features / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match="manifest.json is not a manifest"):
        open_feature_folder(small_set.features)


def test_features_of_another_anonymizer_are_refused(small_set, tmp_path):
    check_anonymizer(open_feature_folder(small_set.features), "raw")
    with pytest.raises(UserError, match="blur"):
        check_anonymizer(open_feature_folder(small_set.features), "blur")
    weights = tmp_path / "fa.pth"
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match="fa.pth"):
        check_anonymizer(open_feature_folder(small_set.features), str(weights))
    small_set.write(anonymizer={"name": "elsewhere/fa.pth", "sha256": sha256(weights)})
    check_anonymizer(open_feature_folder(small_set.features), str(weights))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"released")
    for recorded in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        small_set.write(anonymizer={"name": "X", "sha256": sha256(recorded)})
        check_anonymizer(open_feature_folder(small_set.features), str(tmp_path / "model"))


def test_an_empty_video_has_no_segments():
    with pytest.raises(ValueError, match="without clips"):
        feature_bags.segment_features(np.empty((0, 4), np.float32), 32)
