"""Clips: which frames, which part of them, and that all readers agree."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from aux_code.datasets.clip_sampling import consecutive_clips
from aux_code.datasets.transforms import evaluation_transform, transform_boxes
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.errors import UserError
from feature_extraction.clip_views import ClipGeometry
from feature_extraction.readers import VideoEnd, clips_of, make_reader, resolve_reader
from feature_extraction.video_inputs import VideoInput
from tests.datasets import media
from tests.feature_extraction.videos import painted, write_video

GEOMETRY = ClipGeometry(size=32)
CPU = torch.device("cpu")


def _read(path, reader="pyav", geometry=GEOMETRY):
    """([clips], end) of a file; without DALI its tests are skipped."""
    if reader == "dali":
        pytest.importorskip("nvidia.dali")
    *clips, end = make_reader(reader, geometry, 0.9, None, CPU).read(VideoInput(path.stem, path))
    return clips, end


@pytest.mark.parametrize("geometry", [(16, 2, 32), (8, 1, 8), (16, 4, 32), (4, 3, 7)])
def test_stream_takes_and_converts_the_frames_of_the_table_alone(geometry):
    def frame(number):
        converted.append(number)
        return np.full((2, 2, 3), number, np.uint8)

    for n_frames in (1, 2, 15, 31, 32, 33, 62, 63, 64, 65, 75, 96, 97, 200):
        converted = []
        frames = (partial(frame, number) for number in range(n_frames))
        clips = list(clips_of(frames, ClipGeometry(*geometry)))
        expected = consecutive_clips(n_frames, *geometry)
        assert np.array_equal([clip.frame_indices for clip in clips], expected)
        assert np.array_equal([clip.frames[:, 0, 0, 0] for clip in clips], expected)
        n_clips = ClipGeometry(*geometry).n_clips(n_frames)
        assert [clip.index for clip in clips] == list(range(n_clips))
        assert set(converted) == set(expected.ravel())


@pytest.mark.parametrize("height, width", [(48, 64), (40, 60), (240, 320), (90, 50)])
def test_centre_view_is_the_evaluation_transform(height, width):
    """Exactly, but for crops of whole pixels, which are resized in another way."""
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    (view,), expected = GEOMETRY.views(frames), evaluation_transform(frames, 32)
    assert torch.allclose(view, expected, rtol=0, atol=0 if (height, width) == (48, 64) else 1e-5)


def test_boxes_move_like_pixels():
    box = np.array([[20.0, 12.0, 40.0, 30.0], [0.0, 0.0, 3.0, 3.0]])
    (moved,) = GEOMETRY.boxes([box], (48, 64))
    assert len(moved[0]) == 1  # the other lies outside the crop
    assert np.allclose(moved[0].numpy(), transform_boxes(box, (48, 64), 32)[:1], atol=1e-4)


def test_ten_crops_show_corners_and_mirrors():
    geometry = ClipGeometry(size=16, n_crops=10)
    views = geometry.views(np.stack([painted(0)]))
    assert views.shape == (10, 1, 3, 16, 16) and torch.equal(views[5:], views[:5].flip(-1))
    assert views[0, 0, 1].mean() < views[1, 0, 1].mean()  # green grows to the right
    assert views[0, 0, 2].mean() > views[2, 0, 2].mean()  # blue falls downwards
    boxes = geometry.boxes([np.array([[10.0, 10.0, 20.0, 20.0]])], (48, 64))
    left, mirrored = boxes[0][0][0], boxes[5][0][0]
    assert torch.allclose(mirrored[[0, 2]], 16 - left[[2, 0]], atol=1e-5)


CODECS = [("h.mp4", "libx264"), ("m.avi", "mpeg4"), ("v.webm", "libvpx-vp9"), ("j.avi", "mjpeg")]


@pytest.fixture
def dali_reader():
    return pytest.importorskip("feature_extraction.dali_reader", exc_type=ImportError)


def _noted(monkeypatch, owner, name):
    """Makes a generator function of `owner` leave what it yields in the list that is returned."""
    seen, generate = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a: (seen.append(x) or x for x in generate(*a)))
    return seen


def _reds(clips):
    """(clips, n_crops, 16) grey levels of the red channel, which tell the frames' numbers."""
    return np.stack([255 * clip.views[:, :, 0].mean((2, 3)).numpy() for clip in clips])


@pytest.mark.parametrize("n_frames", [71, 72, 33])
@pytest.mark.parametrize("name, codec", CODECS)
def test_frames_have_their_numbers_in_every_container(tmp_path, name, codec, n_frames):
    clips, end = _read(write_video(tmp_path / name, n_frames, codec))
    assert end == VideoEnd(n_frames, 25.0, "complete")
    # two frames differ by 3 levels; colour conversion costs up to 2
    expected = 20 + 3 * consecutive_clips(n_frames) % 210
    assert np.allclose(_reds(clips)[:, 0], expected, atol=2.5)


@pytest.mark.parametrize("n_frames, n_crops", [(71, 1), (72, 1), (33, 10)])
@pytest.mark.parametrize("name, codec", CODECS)
def test_dali_decodes_what_it_can_and_gives_the_same_clips(
    tmp_path, monkeypatch, dali_reader, name, codec, n_frames, n_crops
):
    """A tail ends with the video's last frame, also where that is none of every second."""
    geometry, video = ClipGeometry(size=32, n_crops=n_crops), tmp_path / name
    decoded = _noted(monkeypatch, dali_reader.DaliReader, "_decoded_by_dali")
    fed = _noted(monkeypatch, dali_reader.DaliReader, "_fed_by_pyav")
    ours, end = _read(write_video(video, n_frames, codec), "pyav", geometry)
    dali, their_end = _read(video, "dali", geometry)
    by_dali = codec in ("libvpx-vp9", "mjpeg")
    assert len(decoded) == len(ours) * by_dali and bool(fed) is not by_dali
    assert end == their_end and np.allclose(_reds(ours), _reds(dali), atol=1.4)
    for a, b in zip(ours, dali, strict=True):
        assert a.views.shape == b.views.shape == (n_crops, 16, 3, 32, 32)
        assert (a.views - b.views).abs().mean() < 0.01


@pytest.mark.parametrize("reader", ["pyav", "dali"])
def test_thumbnails_that_stand_first_are_not_the_video(tmp_path, reader):
    """DALI would take them: it gets files with one picture only."""
    thumbnails = write_video(tmp_path / "t.mov", 3, "mjpeg", times=[0, 1000, 2000])
    film = write_video(tmp_path / "film.mov", 70, "mjpeg")
    clips, end = _read(media.several(tmp_path / "a.mov", (thumbnails, 0), (film, 0)), reader)
    assert end == VideoEnd(70, 25.0, "complete")
    assert np.allclose(_reds(clips)[:, 0], 20 + 3 * consecutive_clips(70) % 210, atol=2.5)


def test_large_frames_are_fed_to_dali_clip_by_clip(tmp_path, monkeypatch, dali_reader):
    video, groups = tmp_path / "h.mp4", _noted(monkeypatch, dali_reader, "_groups")
    together, _ = _read(write_video(video, 200), "dali")
    monkeypatch.setattr(dali_reader, "BYTES_PER_RUN", 2 * 16 * 48 * 64 * 3)
    in_pairs, _ = _read(video, "dali")
    assert list(map(len, groups)) == [4, 3, 2, 2, 2, 1]
    assert all(torch.equal(a.views, b.views) for a, b in zip(together, in_pairs, strict=True))


def test_gpu_graphs_decode_crop_and_resize_on_the_gpu(tmp_path, dali_reader):
    """Defined, not built: DALI checks operators, arguments and devices; running needs a GPU."""
    device = torch.device("cuda", 0)
    reader = dali_reader.DaliReader(ClipGeometry(n_crops=10), 0.9, None, device)
    facts = dali_reader.VideoFacts("h264", 64, 64, 25.0, 48, 64, False)
    decoding = reader._decoding_graph(tmp_path / "h.mp4", facts)
    feeding = reader._feeding_graph()
    assert decoding.device_id == feeding.device_id == 0
    for graph in (decoding, feeding):
        assert [output.device for output in graph._graph_out] == ["gpu"]


@pytest.mark.parametrize("reader", ["pyav", "dali"])
@pytest.mark.parametrize("name, codec", [*CODECS[2:], ("h.mkv", "libx264"), ("f.flv", "libx264")])
def test_truncated_video_is_damaged_or_fails(tmp_path, reader, name, codec):
    """The AVI file announces a number of frames, the others a duration only."""
    content = write_video(tmp_path / name, 200, codec).read_bytes()
    slightly, badly = tmp_path / f"slightly_{name}", tmp_path / f"badly_{name}"
    slightly.write_bytes(content[: int(len(content) * 0.95)])
    badly.write_bytes(content[: len(content) // 2])
    clips, end = _read(slightly, reader)
    assert end.status == "damaged" and 180 <= end.n_frames < 200
    assert len(clips) == GEOMETRY.n_clips(end.n_frames)
    with pytest.raises(UnreadableMedia, match=f"badly_{name}.*only"):
        _read(badly, reader)


def test_damage_in_the_middle_is_marked(tmp_path):
    """The decoder conceals it, and every frame comes out: only its own flags tell."""
    path = write_video(tmp_path / "h.mp4", 100)
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 40):
        content[i] = 255 - content[i]
    path.write_bytes(content)
    _, end = _read(path)
    assert end.status == "damaged" and end.n_frames >= 90


def test_irregular_frame_times_are_no_damage(tmp_path):
    """Such a file states a rate of 30 per second and holds half as many frames as that."""
    path = media.write_video(tmp_path / "v.mkv", 60, times=[i * 66 for i in range(60)])
    _, end = _read(path)
    assert end.n_frames == 60 and end.status == "complete"


def test_image_is_a_clip_that_repeats_it(tmp_path):
    Image.fromarray(painted(5)).save(tmp_path / "still.png")
    (clip,), end = _read(tmp_path / "still.png")
    expected = evaluation_transform(np.stack([painted(5)] * 16), 32)
    assert end.n_frames == 1 and torch.equal(clip.views, expected[None])


@pytest.mark.parametrize("reader", ["pyav", "dali"])
def test_folder_of_frames_is_seen_like_any_video(tmp_path, reader):
    """The release reads ShanghaiTech's folders of frames as BGR and cut to a square."""
    folder = tmp_path / "01_0014"
    folder.mkdir()
    frames = np.stack([painted(i) for i in range(33)])
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i:03d}.png")
    clips, end = _read(folder, reader)
    assert end.n_frames == 33 and len(clips) == 2
    for clip, indices in zip(clips, consecutive_clips(33), strict=True):
        expected = evaluation_transform(frames[indices], 32)
        assert (clip.views[0] - expected).abs().mean() < (0.01 if reader == "dali" else 1e-6)


def test_geometry_and_reader_refuse_nonsense(monkeypatch):
    for words, values in (("stride", {"stride": 0}), ("crop", {"crop": 1.5})):
        with pytest.raises(UserError, match=words):
            ClipGeometry(**values)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_reader("auto") == "pyav"
    with pytest.raises(UserError, match="pyav"):
        resolve_reader("dali")
