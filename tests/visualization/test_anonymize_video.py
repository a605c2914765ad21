"""Anonymized copies: size, rate and length are the original's; tiles do not show."""

import sys
import weakref
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from aux_code import config
from aux_code.checkpoints import save_checkpoint
from aux_code.datasets.decode import read_frames
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_fa_model, load_ft_model
from aux_code.models.person_boxes import open_person_boxes
from feature_extraction import dali_extraction
from tests.datasets.media import rotate_mp4
from tests.feature_extraction.videos import painted, write_sound, write_video
from visualization import anonymize_video
from visualization.frame_anonymizer import FrameAnonymizer, prepared, tile_starts
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


def read(path) -> SimpleNamespace:
    """Frames and their times in milliseconds, and what the file says of them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames, codec = list(container.decode(stream)), stream.codec_context
        facts = {"metadata": {**container.metadata}, "n_streams": len(container.streams)}
        facts |= {"rate": stream.average_rate, "aspect": stream.sample_aspect_ratio}
        facts["colours"] = (codec.colorspace, codec.color_primaries, codec.color_trc)
    facts["rgb"] = np.stack([f.to_ndarray(format="rgb24") for f in frames]).astype(int)
    facts["times"] = [round(1000 * frame.time) for frame in frames]
    return SimpleNamespace(first=frames[0], **facts)


def test_copy_keeps_size_rate_and_length_but_no_metadata(tmp_path, run):
    source, copy, rate = tmp_path / "in.mp4", tmp_path / "out.mp4", Fraction(30000, 1001)
    private = {"location": "+48.2/+16.3", "title": "front door"}
    private["creation_time"] = "2024-05-01T10:00:00Z"
    with av.open(str(source), "w") as container:
        container.metadata.update(private)
        stream, sound = container.add_stream("libx264", rate), container.add_stream("aac", 16000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["handler_name"] = "camera 4711"
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(painted(i), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        for output in (sound.encode(silence), stream.encode(None), sound.encode(None)):
            container.mux(output)
    run(source, copy, "--frames_per_pass", 3)
    before, after = read(source), read(copy)
    assert after.rgb.shape == (20, 48, 64, 3) and (after.rate, after.n_streams) == (rate, 1)
    assert before.metadata["title"] == "front door" and not private.keys() & after.metadata.keys()
    assert b"camera 4711" in source.read_bytes() and b"camera 4711" not in copy.read_bytes()
    assert b"front door" not in copy.read_bytes()
    assert np.abs(after.rgb - before.rgb).mean() < 3


def test_side_by_side_of_odd_sizes(tmp_path, run):
    source = tmp_path / "frames"
    source.mkdir()
    for i in range(5):
        Image.fromarray(painted(i, 33, 45)).save(source / f"{i:03d}.png")
    copy = tmp_path / "out.mkv"
    run(source, copy, "--anonymizer", "downsample4x", "--side_by_side", "--fps", 10)
    frames = read(copy).rgb
    assert frames.shape == (5, 34, 90, 3) and read(copy).rate == 10
    assert np.abs(frames[2, :33, :45] - painted(2, 33, 45)).mean() < 4


def test_tiles_cover_overlap_and_equal_the_whole_frame():
    for length in (100, 256, 257, 300, 511, 1000):
        tiles = tile_starts(length, 256)
        assert tiles[0][0] == 0 and sum(tiles[-1]) == length
        for (start, size), (following, _) in zip(tiles, tiles[1:]):
            assert start % 8 == 0 and size <= 263 and start + size - following >= 56
    torch.manual_seed(0)
    frames = np.random.default_rng(0).integers(0, 256, (1, 300, 420, 3), dtype=np.uint8)
    for narrow in ({}, {"output_scale": 0.25, "output_noise": 0.1}):  # noise is added once
        network = load_fa_model("small", **narrow)
        network.requires_boxes = False
        both = (prepared(network, CPU, tile) for tile in (0, 200))
        whole, tiled = (FrameAnonymizer(own, CPU, Path("v"))(frames, 0) for own in both)
        assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_people_come_from_the_csv(tmp_path):
    (tmp_path / "boxes.csv").write_text("file,frame,x0,y0,x1,y1\nin.avi,1,0,0,64,48\n")
    people = open_person_boxes(tmp_path / "boxes.csv", None, tmp_path)
    blacken = partial(FrameAnonymizer, load_anonymizer("blacken"), CPU)
    output = blacken(tmp_path / "in.avi", people)(np.stack([painted(9)] * 3), 0)
    assert output[1].max() == 0 and all(np.array_equal(output[i], painted(9)) for i in (0, 2))
    with pytest.raises(UserError, match="other.avi"):
        blacken(tmp_path / "other.avi", people)
    (tmp_path / "boxes.csv").write_text("file,frame,x0,y0,x1,y1\nin.avi,0,0,0,32,48\n")
    people = open_person_boxes(tmp_path / "boxes.csv", None, tmp_path)
    view = blacken(tmp_path / "in.avi", people, view_size=16)(painted(9)[None], 0)[0]
    assert view.any(axis=(0, 2)).tolist() == [False] * 8 + [True] * 8


def test_mistakes_are_named_and_leave_no_file(tmp_path, run):
    video = write_video(tmp_path / "in.mp4", 3)
    (tmp_path / "photos").mkdir()
    for name, width in (("a.png", 40), ("b.png", 44)):
        Image.fromarray(painted(0, 32, width)).save(tmp_path / "photos" / name)
    out, sound = tmp_path / "out.mp4", write_sound(tmp_path / "sound.mp4")
    for options, message in (
        ((video, video), "replace the original"), ((video, tmp_path / "out.gif"), "out.gif"),
        ((sound, out), "sound.mp4"), ((video, out, "--anonymizer", "nobody"), "nobody"),
        ((video, out, "--tile", 100), "tile"), ((tmp_path / "photos", out), "differ in size"),
        ((video, out, "--fps", 0), "--fps"),
        ((video, out, "--lossless"), "must end in .mkv"),
        ((video, out, "--as_features", "--side_by_side"), "--side_by_side"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            run(*options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "photos", "sound.mp4"]


class Negative(nn.Module):
    def forward(self, frames):
        return 1 - frames


def test_frames_are_anonymized_and_let_go_once_they_are_written(tmp_path):
    """At most this pass's frames and those of the one before are there."""

    class Watched(VideoSource):
        alive: list[int] = []

        def __iter__(self):
            seen = []
            for frame in super().__iter__():
                seen.append(weakref.ref(frame.rgb))
                self.alive.append(sum(rgb() is not None for rgb in seen))
                yield frame

    source = Watched(write_video(tmp_path / "in.mp4", 60), Fraction(24))
    negative = FrameAnonymizer(Negative(), CPU, source.path)
    with VideoWriter(tmp_path / "out.mp4", source, 18) as writer:
        assert anonymized_copy(source, negative, writer, 4, True) == 60
    assert len(source.alive) == 60 and max(source.alive) <= 2 * 4 + 1
    assert abs(read(tmp_path / "out.mp4").rgb[3, :, 64:, 0].mean() - (255 - 29)) < 5


def write_lossless(path, times, aspect=Fraction(1), **colours):
    """A video of 64 x 48 whose frames stand at these times, in thousandths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
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


def test_frames_keep_their_times_where_the_rate_varies(tmp_path, run):
    times = [0, 33, 67, 100, 500, 1500, 1533, 4000]
    source = write_lossless(tmp_path / "in.mkv", times)
    run(source, tmp_path / "out.mkv")
    assert read(tmp_path / "out.mkv").times == read(source).times == times


def test_a_copy_states_its_true_length(tmp_path, run):
    """One frame per second after ten, and the last lasts a second; joined streams begin anew."""
    times = [*range(0, 1000, 100), *range(1000, 6000, 1000)]
    slow, parts = write_lossless(tmp_path / "slow.mkv", times), tmp_path / "parts.ts"
    parts.write_bytes(2 * write_video(tmp_path / "part.ts", 50).read_bytes())
    for source, n_frames, seconds in ((slow, len(times), 6.0), (parts, 100, 4.0)):
        run(source, tmp_path / "out.mp4")
        with av.open(str(tmp_path / "out.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.frames == n_frames and container.duration / 1e6 == pytest.approx(seconds)
            assert float(stream.duration * stream.time_base) == pytest.approx(seconds, abs=0.01)


def test_a_video_that_lies_on_its_side_comes_upright_and_wide_pixels_turn_with_it(tmp_path, run):
    source, copy = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_lossless(source, [0, 40, 80], aspect=Fraction(16, 15))
    for shape, aspect in (((3, 48, 64, 3), Fraction(16, 15)), ((3, 64, 48, 3), Fraction(15, 16))):
        run(source, copy)
        after = read(copy)
        assert (after.rgb.shape, after.aspect, after.first.rotation) == (shape, aspect, 0)
        rotate_mp4(source, (0, 1, -1, 0))


def test_colours_are_stored_as_the_original_says(tmp_path, run):
    """BT.709, as cameras write it: without its mark a player shows other colours."""
    bt709 = dict.fromkeys(("colorspace", "color_primaries", "color_trc", "color_range"), 1)
    source = write_lossless(tmp_path / "in.mp4", [0, 40], **bt709)
    run(source, tmp_path / "out.mp4", "--crf", 1)
    before, after = read(source), read(tmp_path / "out.mp4")
    assert before.colours == after.colours == (1, 1, 1)
    before, after = (video.first.to_ndarray().astype(int) for video in (before, after))
    assert np.abs(before - after).mean() < 1.5


@pytest.mark.parametrize("shape", [(48, 64), (33, 45)])
def test_a_lossless_copy_keeps_every_value(tmp_path, run, shape):
    frames = np.random.default_rng(0).integers(0, 256, (9, *shape, 3), dtype=np.uint8)
    source, copy = tmp_path / "frames", tmp_path / "out.mkv"
    source.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(source / f"{i:03d}.png")
    run(source, copy, "--lossless")
    assert np.array_equal(read(copy).rgb, frames) and read(copy).rate == 24
    assert np.array_equal(read_frames(copy, [7, 2]), frames[[7, 2]])
    with av.open(str(copy)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("ffv1", "bgr0")
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)


@pytest.fixture
def features_of(tmp_path, monkeypatch):
    """features_of(VIDEO, options) -> its features by stage 3, or None where it fails."""
    for name in ("SAVED_MODELS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / "artifacts")

    def extract(video, *options):
        output = tmp_path / f"features_{'_'.join(map(str, options))}".replace("/", "-")
        words = ("--preset", "miniature", "--device", "cpu", "--reader", "pyav", "--output", output)
        arguments = ["script", *words, "--dataset", video, *options]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        return None if dali_extraction.main() else np.load(output / f"{video.stem}.npy")

    return extract


def test_features_of_a_copy_are_those_of_the_original(tmp_path, run, features_of, capsys):
    """Noise included; the copy is neither cropped nor anonymized again."""
    torch.manual_seed(0)
    narrow = {"output_channels": 1, "output_scale": 0.25, "output_noise": 0.05}
    networks = {"fa": load_fa_model("small", **narrow), "ft": load_ft_model("small", num_classes=3)}
    content = {f"{role}_model_state_dict": net.state_dict() for role, net in networks.items()}
    architectures = {role: net.architecture for role, net in networks.items()}
    weights = tmp_path / "last.pth"
    save_checkpoint(weights, content | {"meta": {"architectures": architectures}})
    video, copy = write_video(tmp_path / "in.mp4", 70), tmp_path / "copies" / "in.mkv"
    options = ("--preset", "miniature", "--as_features", "--anonymizer", weights)
    assert run(video, copy, *options) == 0 and read(copy).rgb.shape == (70, 48, 48, 3)
    raw = ("--anonymizer", "raw", "--utility", weights)
    original, of_copy = features_of(video, "--anonymizer", weights), features_of(copy, *raw)
    assert np.abs(of_copy - original).max() < 1e-3 * original.std()
    other_noise = features_of(video, "--anonymizer", weights, "--seed", 1)
    assert np.abs(other_noise - original).max() > 0.03 * original.std()
    for changed in (("--anonymizer", weights), (*raw, "--size", 32), (*raw, "--n_crops", 10)):
        assert features_of(copy, *changed) is None
        assert "--anonymizer raw --n_crops 1 at crop 0.8 size 48" in capsys.readouterr().err


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
    for image in ("frames/0.png", "frames/1.png", "poster.png"):
        (source / image).parent.mkdir(exist_ok=True)
        Image.fromarray(painted(0)).save(source / image)
    assert run(source, target) == 3
    files = sorted(path for path in target.rglob("*") if path.is_file())
    copies = [path.relative_to(target).as_posix() for path in files]
    assert copies == ["a.avi.mp4", "a.mp4.mp4", "cam 2/b.mp4", "frames.mp4"]
    assert [len(read(target / copy).times) for copy in copies] == [3, 3, 3, 2]
    assert "1 of 5 videos cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="give a folder"):
        run(source, tmp_path / "out.mp4")
    (source / "a.avi").unlink()
    with pytest.raises(UserError, match="replace the original"):
        run(source, source)
