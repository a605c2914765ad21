"""Anonymized copies: size, rate and length are the original's; tiles do not show."""

import sys
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_fa_model
from aux_code.models.person_boxes import open_person_boxes
from tests.datasets.media import rotate_mp4
from tests.feature_extraction.videos import painted, write_sound, write_video
from visualization import anonymize_video
from visualization.frame_anonymizer import FrameAnonymizer, tile_starts
from visualization.video_files import VideoSource, VideoWriter, anonymized_copy

CPU = torch.device("cpu")


@pytest.fixture
def run(monkeypatch):
    """run(SOURCE, TARGET, options) -> status, with the anonymizer `raw` unless another is named."""

    def run(*options):
        anonymizer = () if "--anonymizer" in options else ("--anonymizer", "raw")
        arguments = ["script", *options, *anonymizer, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        return anonymize_video.main()

    return run


def _read(path):
    """(frames, rate, metadata, number of streams)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        n_streams = len(container.streams)
        return np.stack(frames), stream.average_rate, dict(container.metadata), n_streams


def test_copy_keeps_size_rate_and_length_but_no_metadata(tmp_path, run):
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as container:
        container.metadata["location"] = "+48.2/+16.3"
        container.metadata["title"] = "front door"
        container.metadata["creation_time"] = "2024-05-01T10:00:00Z"
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["handler_name"] = "camera 4711"
        sound = container.add_stream("aac", rate=16000)
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(painted(i), format="rgb24")))
        silence = np.zeros((1, 4096), np.float32)
        samples = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        samples.sample_rate = 16000
        for output in (sound.encode(samples), stream.encode(None), sound.encode(None)):
            container.mux(output)
    run(source, tmp_path / "out.mp4", "--frames_per_pass", 3)
    frames, rate, metadata, n_streams = _read(tmp_path / "out.mp4")
    assert frames.shape == (20, 48, 64, 3) and rate == Fraction(30000, 1001) and n_streams == 1
    assert not {"location", "title", "creation_time"} & set(metadata)
    content = (tmp_path / "out.mp4").read_bytes()
    assert b"camera 4711" in source.read_bytes()
    assert b"camera 4711" not in content and b"front door" not in content
    original = _read(source)[0]
    assert np.abs(frames.astype(int) - original).mean() < 3


def test_side_by_side_of_odd_sizes(tmp_path, run):
    source = tmp_path / "frames"
    source.mkdir()
    for i in range(5):
        Image.fromarray(painted(i, 33, 45)).save(source / f"{i:03d}.png")
    options = ("--anonymizer", "downsample4x", "--side_by_side", "--fps", 10)
    run(source, tmp_path / "out.mkv", *options)
    frames, rate, _, _ = _read(tmp_path / "out.mkv")
    assert frames.shape == (5, 34, 90, 3) and rate == 10
    assert np.abs(frames[2, :33, :45].astype(int) - painted(2, 33, 45)).mean() < 4


def test_anonymizer_is_applied(tmp_path):
    class Negative(nn.Module):
        def forward(self, frames):
            return 1 - frames

    source = VideoSource(write_video(tmp_path / "in.avi", 6, "mpeg4"), Fraction(24))
    with VideoWriter(tmp_path / "out.mp4", source, 18) as writer:
        assert anonymized_copy(source, FrameAnonymizer(Negative(), CPU), writer, 4, False) == 6
    assert abs(_read(tmp_path / "out.mp4")[0][3, ..., 0].mean() - (255 - 29)) < 5


@pytest.mark.parametrize("length", [100, 256, 257, 300, 511, 1000])
def test_tiles_cover_and_overlap(length):
    tiles = tile_starts(length, 256)
    assert tiles[0][0] == 0 and sum(tiles[-1]) == length
    for (start, size), (following, _) in zip(tiles, tiles[1:], strict=False):
        assert start % 8 == 0 and size <= 263 and start + size - following >= 56


def test_tiles_equal_the_whole_frame():
    torch.manual_seed(0)
    frames = np.random.default_rng(0).integers(0, 256, (1, 300, 420, 3), dtype=np.uint8)
    network = load_fa_model("small")
    whole, tiled = (FrameAnonymizer(network, CPU, tile)(frames, 0) for tile in (0, 200))
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_people_come_from_the_csv(tmp_path):
    (tmp_path / "boxes.csv").write_text("file,frame,x0,y0,x1,y1\nin.avi,1,0,0,64,48\n")
    network = load_anonymizer("blacken")
    people = open_person_boxes(tmp_path / "boxes.csv", None, tmp_path)
    anonymize = FrameAnonymizer(network, CPU, 0, (people, tmp_path / "in.avi"))
    output = anonymize(np.stack([painted(9)] * 3), 0)
    assert output[1].max() == 0 and all(np.array_equal(output[i], painted(9)) for i in (0, 2))
    with pytest.raises(UserError, match="other.avi"):
        FrameAnonymizer(network, CPU, 0, (people, tmp_path / "other.avi"))


def test_mistakes_are_named_and_leave_no_file(tmp_path, run):
    video = write_video(tmp_path / "in.mp4", 3)
    (tmp_path / "photos").mkdir()
    for name, width in (("a.png", 40), ("b.png", 44)):
        Image.fromarray(painted(0, 32, width)).save(tmp_path / "photos" / name)
    out, sound = tmp_path / "out.mp4", write_sound(tmp_path / "sound.mp4")
    for options, message in [
        ((video, video), "replace the original"),
        ((video, tmp_path / "out.gif"), "out.gif"),
        ((sound, out), "sound.mp4"),
        ((video, out, "--anonymizer", "nobody"), "nobody"),
        ((video, out, "--tile", 100), "tile"),
        ((tmp_path / "photos", out), "differ in size"),
        ((video, out, "--fps", 0), "--fps"),
    ]:
        with pytest.raises(UserError, match=message):
            run(*options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "photos", "sound.mp4"]


def test_memory_does_not_grow_with_the_video(tmp_path):
    """Frames are let go once they are written: at most this pass's and the one before are there."""

    class Watched(VideoSource):
        alive: list[int] = []

        def __iter__(self):
            seen = []
            for frame in super().__iter__():
                seen.append(weakref.ref(frame.rgb))
                self.alive.append(sum(rgb() is not None for rgb in seen))
                yield frame

    source = Watched(write_video(tmp_path / "in.mp4", 60), Fraction(24))
    with VideoWriter(tmp_path / "out.mp4", source, 30) as writer:
        assert anonymized_copy(source, FrameAnonymizer(nn.Identity(), CPU), writer, 4, True) == 60
    assert len(source.alive) == 60 and max(source.alive) <= 2 * 4 + 1


def write_lossless(path, times, rate=25, aspect=Fraction(1), **colours):
    """A video of 64 x 48 whose frames stand at these times, in thousandths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        settings = {"time_base": Fraction(1, 1000), "sample_aspect_ratio": aspect, **colours}
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(painted(i), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frame_times(path):
    with av.open(str(path)) as container:
        return [round(1000 * frame.time) for frame in container.decode(video=0)]


def test_frames_keep_their_times_where_the_rate_varies(tmp_path, run):
    times = [0, 33, 67, 100, 500, 1500, 1533, 4000]
    source = write_lossless(tmp_path / "in.mkv", times)
    run(source, tmp_path / "out.mkv")
    assert frame_times(tmp_path / "out.mkv") == frame_times(source) == times


def test_a_video_that_lies_on_its_side_comes_upright_and_wide_pixels_turn_with_it(tmp_path, run):
    source = write_lossless(tmp_path / "in.mp4", [0, 40, 80], aspect=Fraction(16, 15))
    run(source, tmp_path / "flat.mp4")
    run(rotate_mp4(source, (0, 1, -1, 0)), tmp_path / "upright.mp4")
    flat, upright = ("flat", (64, 48), Fraction(16, 15)), ("upright", (48, 64), Fraction(15, 16))
    for name, size, aspect in (flat, upright):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == size and stream.sample_aspect_ratio == aspect
            assert next(container.decode(stream)).rotation == 0


def test_colours_are_stored_as_the_original_says(tmp_path, run):
    """BT.709, as cameras write it: without its mark a player shows other colours."""
    bt709 = dict.fromkeys(("colorspace", "color_primaries", "color_trc", "color_range"), 1)
    source = write_lossless(tmp_path / "in.mp4", [0, 40], **bt709)
    run(source, tmp_path / "out.mp4", "--crf", 1)
    frames = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            codec = container.streams.video[0].codec_context
            assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)
            frames.append(next(container.decode(video=0)).to_ndarray().astype(int))
    assert np.abs(frames[0] - frames[1]).mean() < 1.5


def test_a_copy_that_is_interrupted_leaves_no_file(tmp_path):
    source = VideoSource(write_video(tmp_path / "in.mp4", 20), Fraction(24))

    def interrupt(frames, first):
        if first >= 8:
            raise KeyboardInterrupt
        return frames

    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", source, 18) as writer:
        anonymized_copy(source, interrupt, writer, 4, False)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_folder_of_videos_becomes_a_folder_of_copies(tmp_path, run, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("cam 2/b.avi", "mpeg4")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(source / name, 3, codec)
    (source / "broken.mp4").write_bytes(b"no video")
    (source / "notes.txt").write_text("no video either")
    assert run(source, target) == 3
    files = sorted(path for path in target.rglob("*") if path.is_file())
    copies = [path.relative_to(target).as_posix() for path in files]
    assert copies == ["a.avi.mp4", "a.mp4.mp4", "cam 2/b.mp4"]
    assert all(len(_read(target / copy)[0]) == 3 for copy in copies)
    assert "1 of 4 videos cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="give a folder"):
        run(source, tmp_path / "out.mp4")
    (source / "a.avi").unlink()
    with pytest.raises(UserError, match="replace the original"):
        run(source, source)
