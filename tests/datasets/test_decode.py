"""Frame-exact reading, against sequential decoding of videos that show their frame number."""

import io
import logging
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from aux_code.datasets import decode, video_index
from aux_code.datasets.decode import (
    DecodedCache,
    UnreadableMedia,
    count_frames,
    frame_rate,
    iterate_frames,
    read_frames,
    read_image,
)
from aux_code.errors import UserError
from tests.datasets.media import painted_frame, painted_number, rotate_mp4, write_video

B_FRAMES = {"bf": "3", "g": "12", "keyint_min": "12", "sc_threshold": "0"}
VARIABLE_TIMES = [int(t) for t in np.cumsum([7, 40, 33, 90, 21] * 14)]

VP9 = {"g": "15", "deadline": "realtime", "cpu-used": "8"}

FORMATS = {
    "h264 with B-frames": ("a.mp4", {"options": B_FRAMES}),
    "h264 open groups": ("b.mp4", {"options": {**B_FRAMES, "x264-params": "open-gop=1"}}),
    "h264 in matroska": ("c.mkv", {"options": B_FRAMES}),
    "h264 in avi": ("d.avi", {"options": B_FRAMES}),
    "mpeg4 in avi": ("e.avi", {"codec": "mpeg4"}),
    "mpeg4 with B-frames in avi": ("f.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "10"}}),
    "mjpeg in avi": ("g.avi", {"codec": "mjpeg"}),
    "vp9 in webm": ("h.webm", {"codec": "libvpx-vp9", "options": VP9}),
    "variable frame rate": ("i.mp4", {"options": B_FRAMES, "times": VARIABLE_TIMES}),
    "odd size": ("j.mp4", {"options": B_FRAMES, "size": (49, 67)}),
}
N_FRAMES = 70


@pytest.mark.parametrize("format_name", FORMATS)
def test_frames_in_any_order_are_those_of_sequential_decoding(format_name, tmp_path):
    name, options = FORMATS[format_name]
    path = write_video(tmp_path / name, N_FRAMES, **options)
    every = list(iterate_frames(path))
    assert [painted_number(frame) for frame in every] == list(range(N_FRAMES))
    assert count_frames(path) == N_FRAMES
    assert every[0].shape[:2] == options.get("size", (48, 64))
    orders = [range(20, 52, 2), range(69, -1, -1), *([i] for i in range(N_FRAMES))]
    for indices in ([11, 12, 13], [37, 5, 5, 60, 36], *map(list, orders)):
        frames = read_frames(path, indices)
        assert frames.dtype == np.uint8 and frames.shape == (len(indices), *every[0].shape)
        for i, frame in zip(indices, frames, strict=True):
            np.testing.assert_array_equal(frame, every[i], err_msg=f"{format_name}, frame {i}")


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_seeking_formats_are_indexed_by_packets(tmp_path, name):
    path = write_video(tmp_path / name, N_FRAMES, options=B_FRAMES)
    index = video_index.video_index(path)
    assert len(index.pts) == N_FRAMES and len(index.key_pts) == len(index.key_dts) == 6
    assert frame_rate(path) == pytest.approx(25)


def count_decoded(monkeypatch):
    """A list that grows by one with every frame that read_frames gets from the decoder."""
    decoded = []

    def counted(*args, **kwargs):
        for frame in video_index.decoded_frames(*args, **kwargs):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode, "decoded_frames", counted)
    return decoded


@pytest.mark.parametrize(
    ("format_name", "most"),
    [("h264 with B-frames", 12), ("h264 in matroska", 12), ("vp9 in webm", 15)],
)
def test_a_late_frame_costs_its_group_of_pictures(tmp_path, monkeypatch, format_name, most):
    name, options = FORMATS[format_name]
    path = write_video(tmp_path / name, N_FRAMES, **options)
    count_frames(path)
    decoded = count_decoded(monkeypatch)
    assert painted_number(read_frames(path, [59])[0]) == 59
    assert 1 <= len(decoded) <= most


def test_pictures_that_no_other_needs_are_not_decoded(tmp_path, monkeypatch):
    options = {**B_FRAMES, "x264-params": "b-pyramid=none:b-adapt=0"}
    path = write_video(tmp_path / "a.mp4", N_FRAMES, options=options)
    every = list(iterate_frames(path))
    decoded = count_decoded(monkeypatch)
    for i in range(N_FRAMES):
        np.testing.assert_array_equal(read_frames(path, [i])[0], every[i], err_msg=f"frame {i}")
    with_skips = len(decoded)
    decoded.clear()
    monkeypatch.setattr(decode, "_SKIPS_EXACTLY", set())
    for i in range(N_FRAMES):
        read_frames(path, [i])
    assert with_skips < 0.7 * len(decoded)


def test_avi_is_counted_without_decoding_it(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.avi", N_FRAMES, codec="mpeg4")
    monkeypatch.setattr(video_index, "_index_by_decoding", lambda path: pytest.fail("decoded"))
    assert count_frames(path) == N_FRAMES
    assert painted_number(read_frames(path, [59])[0]) == 59


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_an_index_that_does_not_hold_is_made_again_by_decoding(tmp_path, monkeypatch, name, caplog):
    codec = "libx264" if name == "a.mp4" else "mpeg4"
    path = write_video(tmp_path / name, N_FRAMES, codec=codec)
    true, wrong = video_index.video_index(path), video_index.VideoIndex(N_FRAMES + 5, 48, 64)
    if true.pts is not None:
        wrong = replace(true, n_frames=N_FRAMES + 5, pts=np.append(true.pts + 1, [10**6] * 5))
    monkeypatch.setattr(video_index, "_cache", {video_index._version(path): wrong})
    with pytest.raises(UnreadableMedia, match=f"frame {N_FRAMES + 2} does not decode"):
        read_frames(path, [3, N_FRAMES + 2])
    assert "indexed anew" in caplog.text and count_frames(path) == N_FRAMES
    assert [painted_number(frame) for frame in read_frames(path, [61, 30])] == [61, 30]


def test_colours_are_rgb(tmp_path):
    """The release decodes BGR in validation and for ShanghaiTech, RGB elsewhere."""
    import av

    path = tmp_path / "red.mp4"
    red = np.zeros((48, 64, 3), np.uint8)
    red[:, :, 0] = 220
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    assert np.abs(read_frames(path, [0])[0].astype(int) - red).max() < 12


def displayed(frames, matrix):
    """By definition, pixel by pixel: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    shown = np.zeros((len(frames), to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    shown[:, to_y, to_x] = frames
    return shown


TURNED = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", TURNED + MIRRORED)
def test_turned_and_mirrored_video_comes_upright(tmp_path, matrix):
    path = write_video(tmp_path / "a.mp4", 20, options=B_FRAMES)
    plain = np.stack(list(iterate_frames(path)))
    rotate_mp4(path, matrix)
    expected = displayed(plain, matrix)
    np.testing.assert_array_equal(np.stack(list(iterate_frames(path))), expected)
    np.testing.assert_array_equal(read_frames(path, [7, 3]), expected[[7, 3]])


def test_truncated_video_is_counted_by_decoding(tmp_path):
    options = {**B_FRAMES, "movflags": "faststart"}
    whole = write_video(tmp_path / "whole.mkv", N_FRAMES, options=options)
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    n_frames = len(list(iterate_frames(path)))
    assert 10 < n_frames < N_FRAMES
    assert count_frames(path) == n_frames
    last = list(iterate_frames(path))[-1]
    np.testing.assert_array_equal(read_frames(path, [n_frames - 1])[0], last)


def test_packets_that_do_not_decode_in_the_middle(tmp_path, caplog):
    path = write_video(tmp_path / "a.mp4", N_FRAMES, options=B_FRAMES)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (len(content) - start) // 4
    content[middle : middle + 600] = b"\xff" * 600
    path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        sequential = list(iterate_frames(path))
        frames = read_frames(path, range(len(sequential)))
        assert count_frames(path) == len(sequential)
    np.testing.assert_array_equal(frames, np.stack(sequential))


def test_folder_of_frames_sorts_by_number(tmp_path):
    folder = tmp_path / "01_0014"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(painted_frame(number)).save(folder / f"{number}.jpg", quality=95)
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._3.jpg").write_bytes(b"left there by macOS")
    assert count_frames(folder) == 12
    assert [painted_number(frame) for frame in iterate_frames(folder)] == list(range(12))
    assert [painted_number(frame) for frame in read_frames(folder, [11, 2, 2])] == [11, 2, 2]
    assert frame_rate(folder) == 24.0


def test_folder_of_frames_with_gaps(tmp_path):
    """A frame's index is its place among the files that are there, whatever their numbers."""
    numbers = [0, 1, 4, 9, 10, 999, 1000]
    for number in numbers:
        Image.fromarray(painted_frame(number)).save(tmp_path / f"{number:03d}.jpg", quality=95)
    assert count_frames(tmp_path) == 7
    assert [painted_number(frame) for frame in read_frames(tmp_path, [6, 5, 2])] == [1000, 999, 4]


def test_unreadable_media_name_the_file(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("text.mp4", "empty.avi", "folder", "absent.mp4"):
        reads = (lambda path: list(iterate_frames(path)), lambda path: read_frames(path, [0]))
        for function in (count_frames, *reads):
            with pytest.raises(UnreadableMedia, match=name) as caught:
                function(tmp_path / name)
            assert isinstance(caught.value, UserError)


def test_indices_outside_the_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    for indices in ([10], [-1], []):
        with pytest.raises(IndexError, match="a.mp4"):
            read_frames(path, indices)


def test_index_follows_a_changed_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    assert count_frames(path) == 10
    write_video(path, 25)
    assert count_frames(path) == 25


def test_random_access_costs_a_group_of_pictures_not_the_video(tmp_path):
    options = {"g": "120", "bf": "2", "preset": "ultrafast"}
    path = write_video(tmp_path / "long.mp4", 2400, options=options)
    count_frames(path)
    frames = iterate_frames(path)
    start = time.perf_counter()
    for _ in range(120 + 16):
        next(frames)
    sequential = time.perf_counter() - start
    costs = []
    for first in (2050, 1500, 2300, 900, 1800):
        start = time.perf_counter()
        read_frames(path, range(first, first + 16))
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[2] < 3 * sequential


def _save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def test_images_of_every_kind_become_upright_rgb(tmp_path):
    picture = np.kron(np.array([[0, 255], [128, 64]], np.uint8), np.ones((20, 30), np.uint8))
    grey = Image.fromarray(picture)
    colour = np.repeat(picture[:, :, None], 3, axis=2)
    colour[:20, :30] = (200, 30, 40)
    rgb = Image.fromarray(colour)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    cases = [
        (_save(grey, tmp_path / "grey.jpg"), np.repeat(picture[:, :, None], 3, axis=2)),
        (_save(rgb, tmp_path / "rgb.jpg"), colour),
        (_save(rgb.convert("CMYK"), tmp_path / "cmyk.jpg"), colour),
        (_save(rgb.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "palette.png"), colour),
        (_save(rgb.convert("RGBA"), tmp_path / "alpha.png"), colour),
        (_save(Image.fromarray(picture.astype(np.uint16) * 257), tmp_path / "deep.png"), None),
        (_save(rgb, tmp_path / "exif.jpg", exif=rotated), np.rot90(colour, k=-1)),
    ]
    for path, expected in cases:
        image = read_image(path)
        expected = cases[0][1] if expected is None else expected
        assert image.dtype == np.uint8 and image.shape == expected.shape, path.name
        assert np.abs(image.astype(int) - expected).mean() < 4, path.name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_cost_the_picture(tmp_path):
    """What turns an image upright in Pillow raises TypeError or AttributeError on some of these."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x829A] = 6, "maker", (1, 3)
    buffer = io.BytesIO()
    Image.fromarray(painted_frame(9, 16, 24)).save(buffer, "JPEG", exif=exif)
    whole, rng = buffer.getvalue(), np.random.default_rng(0)
    start = whole.index(b"Exif") + 6
    end = start - 8 + int.from_bytes(whole[start - 8 : start - 6], "big")
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(start, end, 6):
            content[place] = rng.choice([0, 1, 5, 12, 255])
        (tmp_path / "a.jpg").write_bytes(content)
        assert sorted(read_image(tmp_path / "a.jpg").shape) == [3, 16, 24]


def test_broken_images(tmp_path):
    whole = _save(Image.fromarray(painted_frame(5, 200, 200)), tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg", "absent.jpg"):
        with pytest.raises(UnreadableMedia, match=name):
            read_image(tmp_path / name)


def test_cache_decodes_once_and_keeps_to_its_limit(tmp_path, monkeypatch):
    paths = [write_video(tmp_path / f"{i}.avi", 10, codec="mpeg4") for i in range(2)]
    one_video = 10 * 48 * 64 * 3
    cache = DecodedCache(limit_bytes=int(1.5 * one_video))
    for path in paths * 2:
        assert [painted_number(frame) for frame in cache.read_frames(path, [7, 2])] == [7, 2]
        assert cache.count_frames(path) == 10
    assert cache.n_bytes == one_video
    monkeypatch.setattr(decode, "iterate_frames", lambda path: pytest.fail("decoded again"))
    monkeypatch.setattr(decode, "read_frames", lambda path, indices: pytest.fail("decoded again"))
    cache.read_frames(paths[0], [3])
    with pytest.raises(IndexError):
        cache.read_frames(paths[0], [10])
