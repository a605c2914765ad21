"""Videos as they are found: cut, trimmed, with sound or a cover picture in front, wrong counts."""

import struct
from contextlib import ExitStack
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from aux_code.datasets import video_index
from aux_code.datasets.decode import UnreadableMedia, count_frames, iterate_frames, read_frames
from tests.datasets.media import B_FRAMES, assert_exact, painted_frame, write_pictures, write_video

N_FRAMES = 40


@pytest.fixture
def source(tmp_path):
    return write_video(tmp_path / "source.mp4", N_FRAMES, options=B_FRAMES)


def packets_of(path):
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                yield packet


def mux(output, stream, packets):
    for packet in packets:
        packet.stream = stream
        output.mux(packet)


def write_packets(path, template, packets, options=None):
    """Packets in a container of their own, without encoding again."""
    with av.open(str(template)) as like, av.open(str(path), "w", options=options or {}) as output:
        mux(output, output.add_stream_from_template(like.streams.video[0]), packets)
    return path


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
    path, picture = tmp_path / "film.mp4", write_pictures(tmp_path, [4095]) / "4095.jpg"
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
