"""Damaged videos: as many frames come as ffmpeg shows, and what docs/formats.md says of them."""

import hashlib
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from av import __version__ as av_version

from aux_code.datasets.decode import count_frames, frame_seconds, read_frames
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import decoded_frames, open_video
from feature_extraction.readers import FrameStream
from tests.datasets import damaged_videos
from tests.datasets.media import write_video
from visualization.video_files import VideoSource

TINY = {"size": (16, 16), "options": {"preset": "ultrafast", "g": "600"}}
GREY = [np.full((16, 16, 3), level, np.uint8) for level in (50, 200)]


def checksums(path):
    """Of the pixels of each frame, as they are decoded."""
    try:
        with open_video(path) as container:
            frames = list(decoded_frames(container, path, []))
    except UnreadableMedia:
        return []
    return [hashlib.md5(frame.to_ndarray().tobytes()).hexdigest() for frame in frames]


def checksums_by_ffmpeg(path):
    """As `checksums`: one decoding thread, no frame made up or left out, none scaled."""
    how = ("-threads", "1", "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough")
    command = ["ffmpeg", "-v", "quiet", "-nostdin", *how, "-autoscale", "0", "-f", "framemd5", "-"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line.split()[-1] for line in lines.splitlines() if line and line[0] != "#"]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="Debian's ffmpeg is not installed")
@pytest.mark.parametrize("kind", damaged_videos.FORMATS)
def test_frames_are_those_of_ffmpeg(tmp_path, kind):
    """As many, and every one that is not damaged; concealment is each version's own."""
    whole = set(checksums(damaged_videos.make(tmp_path, kind)))
    for damage in (damage for own, damage in damaged_videos.CASES if own == kind):
        path = damaged_videos.make(tmp_path, kind, damage)
        ours, theirs = checksums(path), checksums_by_ffmpeg(path)
        assert len(ours) == len(theirs), damage
        differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        assert not [i for i in differ if theirs[i] in whole], damage


@pytest.mark.parametrize("kind", ["mp4 with its table first", "ts, H.264"])
def test_a_copy_has_the_frames_that_features_have(tmp_path, kind):
    """Two threads decode other ones of a cut file."""
    path = damaged_videos.make(tmp_path, kind, "cut tail")
    n_frames = len(checksums(path))
    assert len(list(VideoSource(path, Fraction(24)))) == n_frames < damaged_videos.N_FRAMES
    assert len(list(FrameStream(path, 0.9))) == n_frames == count_frames(path)


@pytest.mark.parametrize("kind", ["mp4, H.264", "avi, Motion JPEG", "webm, VP9"])
def test_the_table_in_the_documents_is_true(tmp_path, kind):
    if f"PyAV {av_version}:" not in damaged_videos.DOCUMENT.read_text("utf-8"):
        pytest.skip("the table is of another version of FFmpeg")
    row = next(r for r in damaged_videos.written().splitlines() if r.startswith(f"| {kind} |"))
    assert row == damaged_videos.row(tmp_path, kind)


def test_eight_hours_of_one_frame_per_second(tmp_path):
    n = 8 * 3600
    times = range(0, 1000 * n, 1000)
    path = write_video(tmp_path / "a.mp4", n, times=times, paint=lambda i, *_: GREY[i % 2], **TINY)
    seconds = frame_seconds(path, n)
    assert seconds.tolist() == list(range(n + 1))
    shown = read_frames(path, [0, n // 2 + 1, n - 1])
    np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), [50, 200, 200], atol=3)
