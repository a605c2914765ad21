"""Frame-exact reading of videos that show their frame number, also of cut and damaged ones."""

import io
import struct
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from aux_code.datasets import decode, video_index, video_stream
from aux_code.datasets.decode import UnreadableMedia, count_frames, iterate_frames, read_frames
from aux_code.errors import UserError
from tests.datasets import media
from tests.datasets.media import (
    B_FRAMES,
    assert_exact,
    mux,
    packets_of,
    painted_frame,
    painted_numbers,
    write_packets,
    write_video,
)

N_FRAMES = 70
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


def video_in(format_name, folder):
    name, options = FORMATS[format_name]
    return write_video(folder / name, N_FRAMES, **options)


@pytest.mark.parametrize("format_name", FORMATS)
def test_frames_in_any_order_are_those_of_sequential_decoding(format_name, tmp_path):
    path = video_in(format_name, tmp_path)
    assert_exact(path, range(N_FRAMES))
    height, width = FORMATS[format_name][1].get("size", (48, 64))
    assert read_frames(path, [3]).shape == (1, height, width, 3)


def count_decoded(monkeypatch):
    """A list that grows by one with every frame that read_frames gets from the decoder."""
    decoded = []

    def counted(*args, **kwargs):
        for frame in video_stream.decoded_frames(*args, **kwargs):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode, "decoded_frames", counted)
    return decoded


@pytest.mark.parametrize("name, most, n_groups", [
    ("h264 with B-frames", 12, 6), ("h264 in matroska", 12, 6), ("vp9 in webm", 15, 5),
    ("mpeg4 in avi", 12, 6), ("mjpeg in avi", 1, N_FRAMES),
])  # fmt: skip
def test_a_late_frame_costs_its_group_of_pictures(tmp_path, monkeypatch, name, most, n_groups):
    path = video_in(name, tmp_path)
    index = video_index.video_index(path)
    assert len(index.pts) == N_FRAMES and len(index.key_pts) == len(index.key_dts) == n_groups
    assert decode.frame_seconds(path, N_FRAMES).tolist() == (np.arange(N_FRAMES + 1) / 25).tolist()
    decoded = count_decoded(monkeypatch)
    assert painted_numbers(read_frames(path, [59])) == [59]
    assert 1 <= len(decoded) <= most


def test_pictures_that_no_other_needs_are_not_decoded(tmp_path, monkeypatch):
    options = {**B_FRAMES, "x264-params": "b-pyramid=none:b-adapt=0"}
    path = write_video(tmp_path / "a.mp4", N_FRAMES, options=options)
    decoded = count_decoded(monkeypatch)
    assert_exact(path, range(N_FRAMES))
    with_skips = len(decoded)
    decoded.clear()
    monkeypatch.setattr(decode, "_SKIPS_EXACTLY", set())
    assert_exact(path, range(N_FRAMES))
    assert with_skips < 0.7 * len(decoded)


def test_avi_is_counted_without_decoding_it_and_colours_are_rgb(tmp_path, monkeypatch):
    """The release decodes BGR in validation and for ShanghaiTech, RGB elsewhere."""
    path = write_video(tmp_path / "red.avi", N_FRAMES, codec="mpeg4", colour=(220, 0, 0))
    monkeypatch.setattr(video_index, "_index_by_decoding", lambda path: pytest.fail("decoded"))
    assert count_frames(path) == N_FRAMES
    block = read_frames(path, [59])[0, 4:12, 4:12]  # the lowest bit of 59
    assert np.abs(block.astype(int) - (220, 0, 0)).max() < 12


@pytest.mark.parametrize("name", ["h264 with B-frames", "mpeg4 in avi"])
def test_an_index_that_does_not_hold_is_made_again_by_decoding(tmp_path, monkeypatch, name, caplog):
    path = video_in(name, tmp_path)
    true, wrong = video_index.video_index(path), video_index.VideoIndex(N_FRAMES + 5, 48, 64)
    if true.pts is not None:
        wrong = replace(true, n_frames=N_FRAMES + 5, pts=np.append(true.pts + 1, [10**6] * 5))
    monkeypatch.setattr(video_index, "_cache", {video_stream.file_version(path): wrong})
    with pytest.raises(UnreadableMedia, match=f"frame {N_FRAMES + 2} does not decode"):
        read_frames(path, [3, N_FRAMES + 2])
    assert "indexed anew" in caplog.text and count_frames(path) == N_FRAMES
    assert painted_numbers(read_frames(path, [61, 30])) == [61, 30]


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
    expected = displayed(np.stack(list(iterate_frames(path))), matrix)
    media.rotate_mp4(path, matrix)
    np.testing.assert_array_equal(np.stack(list(iterate_frames(path))), expected)
    np.testing.assert_array_equal(read_frames(path, [7, 3]), expected[[7, 3]])


@pytest.mark.parametrize("name, begin, fill", [
    ("h264 in matroska", 0.6, 0), ("h264 with B-frames", 0.25, 600),
])  # fmt: skip
def test_a_truncated_or_spoilt_video_is_counted_by_decoding(tmp_path, name, begin, fill):
    path = video_in(name, tmp_path)
    content = path.read_bytes()
    at = int(begin * len(content))
    path.write_bytes(content[:at] + (b"\xff" * fill + content[at + fill :] if fill else b""))
    sequential = list(iterate_frames(path))
    assert 10 < len(sequential) < N_FRAMES and (fill or count_frames(path) == len(sequential))
    np.testing.assert_array_equal(read_frames(path, range(len(sequential))), np.stack(sequential))
    assert count_frames(path) == len(sequential)


def test_folder_of_frames_sorts_by_number(tmp_path):
    """A frame's index is its place among the files that are there, whatever their numbers."""
    for name, numbers in (("{}.jpg", range(12)), ("{:03d}.jpg", [0, 1, 4, 9, 10, 999, 1000])):
        folder = media.write_pictures(tmp_path / str(len(numbers)), numbers, name)
        for other in ("Thumbs.db", "._3.jpg"):  # left there by other systems
            media.write_lines(folder / other, "x")
        assert_exact(folder, numbers)
        assert decode.frame_seconds(folder, 48)[-1] == 2.0


def test_unreadable_media_name_the_file(tmp_path):
    for name, content in (("text.mp4", "no video"), ("text.jpg", "no image"), ("empty.avi", "")):
        (tmp_path / name).write_text(content)
    (tmp_path / "folder").mkdir()
    Image.fromarray(painted_frame(5, 200, 200)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    reads = (lambda path: list(iterate_frames(path)), lambda path: read_frames(path, [0]))
    for functions, names in (
        ((count_frames, *reads), ("text.mp4", "empty.avi", "folder", "absent.mp4")),
        ((decode.read_image,), ("cut.jpg", "text.jpg", "absent.jpg")),
    ):
        for function, name in product(functions, names):
            with pytest.raises(UnreadableMedia, match=name) as caught:
                function(tmp_path / name)
            assert isinstance(caught.value, UserError)


def test_indices_outside_the_video_and_a_changed_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    for indices in ([10], [-1], []):
        with pytest.raises(IndexError, match="a.mp4"):
            read_frames(path, indices)
    assert count_frames(path) == 10
    write_video(path, 25)
    assert count_frames(path) == 25


def test_images_of_every_kind_become_upright_rgb(tmp_path):
    picture = np.kron(np.array([[0, 255], [128, 64]], np.uint8), np.ones((20, 30), np.uint8))
    greys = np.repeat(picture[:, :, None], 3, axis=2)
    colour = greys.copy()
    colour[:20, :30] = (200, 30, 40)
    rgb, rotated = Image.fromarray(colour), Image.Exif()
    rotated[0x0112] = 6
    for name, image, expected in (
        ("exif.jpg", rgb, np.rot90(colour, k=-1)),
        ("rgb.jpg", rgb, colour),
        ("grey.jpg", Image.fromarray(picture), greys),
        ("cmyk.jpg", rgb.convert("CMYK"), colour),
        ("palette.png", rgb.convert("P", palette=Image.Palette.ADAPTIVE), colour),
        ("alpha.png", rgb.convert("RGBA"), colour),
        ("deep.png", Image.fromarray(picture.astype(np.uint16) * 257), greys),
    ):
        image.save(tmp_path / name, **({"exif": rotated} if name == "exif.jpg" else {}))
        found = decode.read_image(tmp_path / name)
        assert found.dtype == np.uint8 and found.shape == expected.shape, name
        assert np.abs(found.astype(int) - expected).mean() < 4, name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_cost_the_picture(tmp_path):
    """What turns an image upright in Pillow raises TypeError or AttributeError on some of these."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010F], exif[0x829A] = 6, "maker", (1, 3)
    Image.fromarray(painted_frame(9, 16, 24)).save(buffer, "JPEG", exif=exif)
    whole, rng = buffer.getvalue(), np.random.default_rng(0)
    start = whole.index(b"Exif") + 6
    end = start - 8 + int.from_bytes(whole[start - 8 : start - 6], "big")
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(start, end, 6):
            content[place] = rng.choice([0, 1, 5, 12, 255])
        (tmp_path / "a.jpg").write_bytes(content)
        assert sorted(decode.read_image(tmp_path / "a.jpg").shape) == [3, 16, 24]


def test_cache_decodes_once_and_keeps_to_its_limit(tmp_path, monkeypatch):
    paths = [write_video(tmp_path / f"{i}.avi", 10, codec="mpeg4") for i in range(2)]
    one_video = 10 * 48 * 64 * 3
    cache = decode.DecodedCache(limit_bytes=int(1.5 * one_video))
    for path in paths * 2:
        assert painted_numbers(cache.read_frames(path, [7, 2])) == [7, 2]
        assert cache.count_frames(path) == 10
    assert cache.n_bytes == one_video
    for name in ("iterate_frames", "read_frames"):
        monkeypatch.setattr(decode, name, lambda *args: pytest.fail("decoded again"))
    cache.read_frames(paths[0], [3])
    with pytest.raises(IndexError):
        cache.read_frames(paths[0], [10])


@pytest.fixture
def source(tmp_path):
    return write_video(tmp_path / "source.mp4", N_FRAMES, options=B_FRAMES)


@pytest.mark.parametrize("name, first, options", [
    ("cut.mp4", 5, {}), ("cut.mkv", 5, {}), ("a.mp4", 0, {"use_editlist": "0"}),
    ("a.mp4", 0, {"movflags": "negative_cts_offsets"}),
    ("a.mp4", 0, {"movflags": "frag_keyframe+empty_moov"}),
])  # fmt: skip
def test_first_key_frame_is_missing_and_ways_to_write_mp4(source, tmp_path, name, first, options):
    path = write_packets(tmp_path / name, source, list(packets_of(source))[first:], options)
    assert_exact(path, range(12 if first else 0, N_FRAMES))


def test_edit_list_trims_both_ends(source):
    """Cutting programs leave all frames there, claim all of them, and say which are shown."""
    content = bytearray(source.read_bytes())
    at = content.index(b"elst") + 12
    _, begin = struct.unpack(">Ii", content[at : at + 8])
    content[at : at + 8] = struct.pack(">Ii", 1000, begin + 7 * 512)
    source.write_bytes(content)
    with av.open(str(source)) as container:
        assert container.streams.video[0].frames == N_FRAMES
    assert_exact(source, range(7, 32))


def test_avi_claims_a_wrong_count(tmp_path):
    path = write_video(tmp_path / "a.avi", N_FRAMES, codec="mpeg4")
    content = bytearray(path.read_bytes())
    for header, offset in ((b"avih", 24), (b"strh", 40)):
        at = content.index(header) + offset
        content[at : at + 4] = struct.pack("<I", 999)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 999
    assert_exact(path, range(N_FRAMES))
    path.write_bytes(content[: content.index(b"idx1")])
    assert_exact(path, range(N_FRAMES))


@pytest.mark.parametrize("name, codec, sound_codec, options", [
    ("a.mp4", "libx264", "aac", B_FRAMES), ("a.avi", "mpeg4", "pcm_s16le", {}),
])  # fmt: skip
def test_sound_comes_first(tmp_path, name, codec, sound_codec, options):
    silence = np.zeros((1, 640), np.int16)
    with av.open(str(tmp_path / name), "w") as container:
        sound = container.add_stream(sound_codec, rate=16000, layout="mono")
        video = container.add_stream(codec, rate=25, options=options)
        video.height, video.width, video.pix_fmt, video.bit_rate = 48, 64, "yuv420p", 2_000_000
        for i in range(N_FRAMES):
            samples = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            samples.sample_rate, samples.pts = 16000, 640 * i
            container.mux(sound.encode(samples))
            frame = av.VideoFrame.from_ndarray(painted_frame(i), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(sound.encode())
        container.mux(video.encode())
    assert_exact(tmp_path / name, range(N_FRAMES))


def test_cover_picture_is_not_the_video(source, tmp_path):
    path, picture = tmp_path / "film.mp4", media.write_pictures(tmp_path, [4095]) / "4095.jpg"
    files = (picture, "r"), (source, "r"), (path, "w")
    with ExitStack() as opened:
        cover, film, output = (opened.enter_context(av.open(str(f), mode)) for f, mode in files)
        shown, moving = (output.add_stream_from_template(f.streams.video[0]) for f in (cover, film))
        shown.disposition = Disposition.attached_pic
        mux(output, shown, packets_of(picture))
        mux(output, moving, packets_of(source))
    with av.open(str(path)) as container:
        assert any(s.disposition & Disposition.attached_pic for s in container.streams.video)
    assert_exact(path, range(N_FRAMES))


def test_packed_b_frames(tmp_path):
    """DivX in AVI: a chunk holds a frame and the B-frame before it, the next chunk none."""
    options = {"bf": "1", "g": "10"}
    source = write_video(tmp_path / "source.avi", N_FRAMES, codec="mpeg4", options=options)
    pictures = [(bytes(packet), packet.is_keyframe) for packet in packets_of(source)]
    start = b"\0\0\1\xb6"
    is_b = [data[data.index(start) + 4] >> 6 == 2 for data, _ in pictures]
    assert sum(is_b) > 10 and not any(b and follows for b, follows in zip(is_b, is_b[1:]))
    chunks, packets = [], []
    for (data, is_key), b in zip(pictures, is_b, strict=True):
        if b:
            chunks[-1:] = [(chunks[-1][0] + data, chunks[-1][1]), (start + b"\x41\xff", False)]
        else:
            chunks.append((data, is_key))
    for i, (data, is_key) in enumerate(chunks):
        if is_key:
            data = data.replace(start, b"\0\0\1\xb2DivX503b1393p\0" + start, 1)
        packet = av.Packet(data)
        packet.pts = packet.dts = i
        packet.time_base, packet.is_keyframe = Fraction(1, 25), is_key
        packets.append(packet)
    assert_exact(write_packets(tmp_path / "packed.avi", source, packets), range(N_FRAMES))


def test_pictures_change_their_size(tmp_path):
    """Frames have one size, the first one's, wherever reading begins."""
    vp9 = {"deadline": "realtime", "cpu-used": "8", "g": "10"}
    small = write_video(tmp_path / "a.webm", 20, "libvpx-vp9", (48, 64), vp9)
    large = packets_of(write_video(tmp_path / "b.webm", 20, "libvpx-vp9", (96, 128), vp9))
    packets = [*packets_of(small), *large]
    for packet in packets[20:]:
        packet.pts, packet.dts = packet.pts + 800, packet.dts + 800
    path = write_packets(tmp_path / "both.webm", small, packets)
    assert_exact(path, [*range(20), *range(20)])
    assert read_frames(path, [0]).shape == (1, 48, 64, 3)


def test_damaged_files_raise_nothing_else(tmp_path, source):
    """Some damage hides which decoder to use; such files are unreadable, not a crash."""
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(source.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(UnreadableMedia, match="unknown.mp4"):
        count_frames(unknown)
    rng = np.random.default_rng(0)
    avi = write_video(tmp_path / "a.avi", N_FRAMES, codec="mpeg4")
    stream = write_packets(tmp_path / "a.ts", source, packets_of(source))
    for path in (source, stream, avi):
        whole = path.read_bytes()
        for _ in range(15):
            begin = rng.integers(len(whole) // 20, len(whole) - 200)
            path.write_bytes(whole[:begin] + whole[begin + rng.integers(1, len(whole) // 5) :])
            video_index._cache.clear()
            try:
                n_frames = len(list(iterate_frames(path)))
                count_frames(path)
                assert len(read_frames(path, [0, n_frames // 2])) == 2
            except UnreadableMedia as error:
                assert error.path == path
