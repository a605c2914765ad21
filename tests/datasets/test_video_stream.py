"""One moving picture, one clock: files as cameras, recorders, browsers and editors write them."""

import struct
from pathlib import Path

import numpy as np
import pytest
from av.stream import Disposition

from aux_code.datasets.decode import count_frames, frame_seconds, iterate_frames
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import Clock, Decoding, open_video, read_packets, video_stream
from tests.datasets.media import (
    B_FRAMES,
    assert_exact,
    packets_of,
    painted_numbers,
    several,
    write_packets,
    write_pictures,
    write_video,
)

N = 70


def decoded(path):
    """(n_frames, frames that it announces, rate, problems) of a file."""
    with open_video(path) as container:
        decoding = Decoding(container, path)
        n_frames = sum(1 for _ in decoding)
        rate = float(decoding.clock.rate(decoding.clock.pts(decoding.stamps)))
        return n_frames, decoding.n_announced(), round(rate, 3), decoding.problems


def beside(folder, kind):
    """(file, disposition): a cover, thumbnails once a second, a small preview of every frame."""
    if kind == "cover":
        return write_pictures(folder, [4095]) / "4095.jpg", Disposition.attached_pic
    if kind == "thumbnails":
        return write_video(folder / "t.mov", 3, "mjpeg", (24, 32), times=[0, 1000, 2000]), 0
    return write_video(folder / "p.mp4", N, size=(24, 32), colour=90), 0


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("kind, suffix", [
    ("cover", ".mp4"), ("thumbnails", ".mp4"), ("thumbnails", ".mkv"), ("preview", ".mp4"),
])  # fmt: skip
def test_the_moving_picture_is_chosen_wherever_it_stands(tmp_path, kind, suffix, is_first):
    film = write_video(tmp_path / "film.mp4", N, options=B_FRAMES)
    parts = [beside(tmp_path / "beside", kind), (film, 0)]
    path = several(tmp_path / f"a{suffix}", *parts[:: 1 if is_first else -1])
    with open_video(path) as container:
        assert len(container.streams.video) == 2
        codec = video_stream(container).codec_context
        assert (codec.name, codec.height) == ("h264", 48)
    assert painted_numbers(iterate_frames(path)) == list(range(N)) and count_frames(path) == N
    facts = read_packets(path)
    assert (facts.n_shown, facts.rate, facts.problems) == (N, 25, [])


def test_a_cover_alone_is_no_video(tmp_path):
    path = several(tmp_path / "a.mp4", beside(tmp_path / "beside", "cover"))
    with pytest.raises(UnreadableMedia, match="a.mp4.*only a cover picture"):
        count_frames(path)


def with_edits(path: Path, *edits: tuple[int, int]) -> Path:
    """Replaces an MP4's edit list: (milliseconds, first frame or None for nothing) each."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") - 4
    length, _, _, _, begin = struct.unpack(">I4xIIIi", content[at : at + 24])
    rows = [(t, -1 if first is None else begin + 512 * first, 0x10000) for t, first in edits]
    rows = b"".join(struct.pack(">IiI", *row) for row in rows)
    table = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
    content[at : at + length] = table
    for box in (b"edts", b"trak", b"moov"):
        size = content.rindex(box, 0, at) - 4
        grown = struct.unpack(">I", content[size : size + 4])[0] + len(table) - length
        content[size : size + 4] = struct.pack(">I", grown)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("edits, shown, first_second", [
    ([(2000, 20)], range(20, 70), 0.0), ([(1000, 0)], range(25), 0.0),
    ([(2000, None), (2800, 0)], range(70), 2.0),
    ([(400, 0), (400, 0)], [*range(10), *range(10)], 0.0),
])  # fmt: skip
def test_what_an_edit_list_hides_is_no_damage(tmp_path, edits, shown, first_second):
    """Claimed and stored are 70 frames. Nothing is shown for two seconds: nothing has these."""
    options = {**B_FRAMES, "g": "250"}
    path = with_edits(write_video(tmp_path / "a.mp4", N, options=options), *edits)
    n = len(shown)
    assert decoded(path) == (n, n, 25.0, []) and read_packets(path).rate == 25
    assert_exact(path, shown)
    seconds = frame_seconds(path, n)
    np.testing.assert_allclose(seconds, first_second + np.arange(n + 1) / 25, atol=1e-9)


def test_frames_that_show_the_last_again_are_no_damage(tmp_path):
    """An AVI's empty chunks count as frames in its head: inside, and 30 at its end."""
    source = write_video(tmp_path / "s.avi", N, "mpeg4")
    packets = list(packets_of(source))
    for i, packet in enumerate(packets):
        packet.dts = packet.pts = packet.dts + 5 * (i >= 20) + 30 * (i == N - 1)
    path = write_packets(tmp_path / "a.avi", source, packets)
    assert decoded(path) == (N, N, round(69 / 104 * 25, 3), [])
    seconds = frame_seconds(path, N)
    assert seconds[[19, 20, 69]].tolist() == pytest.approx([19 / 25, 1.0, 104 / 25])
    content = bytearray(path.read_bytes())
    index, last = content.index(b"idx1"), content.rindex(b"00dc", 0, content.index(b"idx1"))
    content[last : last + 4] = b"JUNK"
    index_bytes = struct.unpack("<I", content[index + 4 : index + 8])[0] - 16
    content[index + 4 : index + 8] = struct.pack("<I", index_bytes)
    del content[index + 8 + index_bytes : index + 24 + index_bytes]
    content[4:8] = struct.pack("<I", len(content) - 8)
    path.write_bytes(content)
    assert decoded(path) == (N - 1, N - 1, round(68 / 73 * 25, 3), [])
    path.write_bytes(content[: last - 300])
    assert "do not come" in decoded(path)[-1][0]


UNEVEN = np.cumsum([0, *(30 + 7 * i % 7 + i % 7 for i in range(N - 1))]).tolist()


@pytest.mark.parametrize("name, codec", [
    ("a.webm", "libvpx"), ("a.mkv", "libx264"), ("a.flv", "libx264"), ("a.wmv", "wmv2"),
    ("a.ts", "libx264"), ("a.mp4", "libx264"), ("a.mov", "mjpeg"),
])  # fmt: skip
def test_a_rate_is_frames_over_time_span_and_seconds_are_frame_times(tmp_path, name, codec):
    """Such files state no rate, or the unit of time for one: 1000, 2000, 25."""
    path = write_video(tmp_path / name, N, codec, times=UNEVEN)
    content = bytearray(path.read_bytes())
    at = content.find(b"\x23\xe3\x83")  # DefaultDuration, which browsers leave out
    if at >= 0:
        size = 4 + (content[at + 3] & 0x7F)
        content[at : at + size] = b"\xec" + bytes([0x80 | size - 2]) + bytes(size - 2)
        path.write_bytes(content)
    expected = (N - 1) / UNEVEN[-1] * 1000
    n_frames, n_announced, rate, problems = decoded(path)
    assert (n_frames, problems) == (N, []) and n_announced == pytest.approx(N, abs=2)
    assert rate == pytest.approx(expected, abs=0.1)
    assert float(read_packets(path).rate) == pytest.approx(expected, abs=0.1)
    np.testing.assert_allclose(frame_seconds(path, N)[:-1], np.array(UNEVEN) / 1000, atol=1e-4)


def test_a_bare_stream_has_the_rate_that_its_pictures_state(tmp_path):
    """FFmpeg gives 25 to every stream without a container."""
    source = write_video(tmp_path / "s.mp4", N, rate=10)
    path = write_packets(tmp_path / "a.h264", source, packets_of(source))
    assert decoded(path) == (N, N, 10.0, []) and read_packets(path).rate == 10
    assert frame_seconds(path, N).tolist() == (np.arange(N + 1) / 10).tolist()


STEP, START = 3600, 7200  # of 25 frames per second in 1/90000 s, as transport streams have
HOURS = 37_600 * 90_000


@pytest.mark.parametrize("change", [
    lambda t: np.concatenate([t[:50], t[:50]]),  # starts anew
    lambda t: np.concatenate([t[:30], t[:30], t[:40]]),
    lambda t: np.concatenate([t[:50], t[50:] + HOURS]),
    lambda t: np.concatenate([t[:50], t[44:94]]),
    lambda t: np.where(np.arange(100) == 40, t + 20 * 90_000, t),  # one is wrong
    lambda t: np.where(np.arange(100) == 40, t + HOURS, t),
    lambda t: np.where(np.arange(100) == 40, t - 90_000, t),
    lambda t: np.where(np.arange(100) // 3 == 13, t - 20 * 90_000, t),
    lambda t: np.where(np.arange(100) == 0, t + HOURS, t),
    lambda t: np.where(np.isin(np.arange(100), [0, 7, 8, 99]), None, t),
    lambda t: np.full(100, None),
])  # fmt: skip
def test_times_that_jump_are_carried_on(tmp_path, change):
    path = write_video(tmp_path / "a.ts", 10)
    with open_video(path) as container:
        clock = Clock(container)
    own = change(START + STEP * np.arange(100)).tolist()
    assert clock.pts(own).tolist() == (STEP * np.arange(100)).tolist()
    assert clock.rate(clock.pts(own)) == 25
    assert clock.seconds(own).tolist() == (np.arange(101) / 25).tolist()


def test_pauses_are_kept_and_a_jump_of_hours_is_none(tmp_path):
    """A recorder that saves changes only; in a transport stream ten seconds are a new start."""
    steps = np.array([40, 40, 600_000, 40, 5000, 40, 40, 40, 40, 40])
    for name, believed in (("a.mkv", 3_600_000), ("a.ts", 10_000)):
        path = write_video(tmp_path / name, 10, times=list(range(0, 400, 40)))
        with open_video(path) as container:
            clock = Clock(container)
        unit = clock.time_base.denominator // 1000
        own = unit * np.cumsum([0, *steps])
        expected = unit * np.cumsum([0, *np.where(steps < believed, steps, 40)])
        assert clock.pts(own.tolist()).tolist() == expected.tolist()
        assert clock.seconds(own.tolist())[-1] == pytest.approx((expected[-1] / unit + 40) / 1000)
