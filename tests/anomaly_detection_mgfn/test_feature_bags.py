"""Feature files: averaging to segments, checks of the folder, one array in memory."""

from dataclasses import replace

import numpy as np
import pytest

from anomaly_detection_mgfn import feature_bags as bags
from aux_code.artefacts import sha256
from aux_code.errors import UserError
from tests.anomaly_detection_mgfn.conftest import FEATURE_DIM, make_small_set
from tests.fill import GOLDEN


@pytest.mark.parametrize("n_clips", [5, 31, 32, 33, 100])
def test_segments_equal_the_published_averages(n_clips):
    golden = np.load(GOLDEN / "mgfn.npz")
    ours = bags.segment_features(golden[f"segments_in_{n_clips}"], 32)
    np.testing.assert_allclose(ours, golden[f"segments_out_{n_clips}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_crops", [1, 10])
def test_whole_videos_and_segments_are_those_of_the_files(tmp_path, n_crops):
    small = make_small_set(tmp_path, n_crops)
    source, names = bags.open_feature_folder(small.features), list(small.arrays)[3:7]
    videos = bags.load_videos(source, names, memory_limit_gib=1.0)
    segments = bags.load_segments(source, names, 8, memory_limit_gib=1.0)
    assert videos.data.dtype == segments.dtype == np.float32
    for i, name in enumerate(names):
        crops = small.arrays[name].reshape(-1, n_crops, FEATURE_DIM).swapaxes(0, 1)
        np.testing.assert_array_equal(videos.bag(i)[..., :-1], crops)
        np.testing.assert_allclose(videos.bag(i)[..., -1], np.sqrt((crops**2).sum(-1)), rtol=1e-6)
        pooled = [bags.append_magnitude(bags.segment_features(crop, 8)) for crop in crops]
        np.testing.assert_allclose(segments[i], pooled, rtol=1e-6)
    above_the_limit = bags.load_videos(source, names, memory_limit_gib=0.0).data
    assert isinstance(above_the_limit, np.memmap)
    np.testing.assert_array_equal(above_the_limit, videos.data)


def test_a_bad_file_is_named_and_an_empty_video_has_no_segments(small_set):
    name, array = list(small_set.arrays.items())[2]
    path, source = small_set.features / f"{name}.npy", bags.open_feature_folder(small_set.features)
    integers, pickled = array.astype(np.int64), np.array([{"a": 1}], dtype=object)
    spoilt = [array * np.nan, array + np.inf, array[:, :-1], array[:-1], integers, pickled]
    for content in (*spoilt, "no array", "", None):
        path.unlink()
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            np.save(path, content, allow_pickle=True)
        with pytest.raises(UserError, match=path.name):
            bags.load_videos(source, [name], memory_limit_gib=1.0)
    np.save(path, array)
    source.entries[name] = replace(source.entries[name], sha256="0" * 64)
    with pytest.raises(UserError, match="is not what stage 3 wrote; delete it and run"):
        source.read(name)
    source.entries[name] = replace(source.entries[name], sha256=sha256(path))
    assert len(source.read(name)) == len(array)
    with pytest.raises(ValueError, match="without clips"):
        bags.segment_features(np.empty((0, 4), np.float32), 32)


VIDEO = {"file": "a.npy", "n_clips": 1, "n_frames": 3}
SPOILT = [
    ("frames_per_feature", {"frames_per_feature": 16}), ("stride", {"stride": 1}),
    ("frames_per_clip", {"frames_per_clip": 8}), ("lists no video", {"videos": {}}),
    ("'a'", {"videos": {"a": VIDEO | {"n_clips": "many"}}}),
    ("'a' has 3 clips", {"videos": {"a": VIDEO | {"n_clips": 3}}}),
    ("manifest.json", {"videos": [1]}), ("manifest.json", {"feature_dim": "x"}),
    ("manifest.json", {"n_crops": None}), ("manifest.json", {"anonymizer": "raw"}),
]  # fmt: skip


def test_a_manifest_of_others_spoiled_or_absent_is_refused(small_set, tmp_path):
    for words, changes in SPOILT:
        small_set.write(**changes)
        with pytest.raises(UserError, match=words):
            bags.open_feature_folder(small_set.features)
    with pytest.raises(UserError, match="manifest.json does not exist"):
        bags.open_feature_folder(tmp_path / "nothing")
    (small_set.features / "manifest.json").write_text("[1]")
    with pytest.raises(UserError, match="manifest.json is not a manifest"):
        bags.open_feature_folder(small_set.features)
    small_set.write()
    source, weights = bags.open_feature_folder(small_set.features), tmp_path / "fa.pth"
    weights.write_bytes(b"weights")
    bags.check_anonymizer(source, "raw")
    for other, words in (("blur", "blur"), (str(weights), "fa.pth")):
        with pytest.raises(UserError, match=words):
            bags.check_anonymizer(source, other)
    small_set.write(anonymizer={"name": "elsewhere/fa.pth", "sha256": sha256(weights)})
    bags.check_anonymizer(bags.open_feature_folder(small_set.features), str(weights))
