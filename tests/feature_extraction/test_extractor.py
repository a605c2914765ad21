"""Networks on clips: layout, batches, noise; and files as videos end."""

import threading
import time
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from aux_code.artefacts import sha256
from aux_code.checkpoints import read_json
from aux_code.model_loaders import load_anonymizer, load_fa_model, load_ft_model
from feature_extraction import extractor
from feature_extraction.clip_views import Clip, ClipGeometry
from feature_extraction.extractor import ClipEncoder, Extraction, LaunchedPass, PassTimer
from feature_extraction.manifest import FeatureFolder
from feature_extraction.read_ahead import Item, ReadAhead
from feature_extraction.readers import PyavReader, VideoEnd, make_reader
from feature_extraction.video_inputs import VideoInput, source_of
from tests.feature_extraction.videos import write_video

CPU = torch.device("cpu")
GEOMETRY = ClipGeometry(size=16)
HEADER = {"format_version": 1, "size": 16}


class SwapRedAndBlue(nn.Module):
    """An anonymizer that cannot be right by accident: the identity does not see exchanged axes."""

    requires_boxes = False

    def forward(self, frames):
        assert frames.shape[1:] == (3, 16, 16)
        return frames.flip(1)


class ShowLayout(nn.Module):
    """An f_T whose feature is the mean colour of first and last frame of clips (B, C, T, H, W)."""

    feature_dim = 6

    def extract_features(self, clips):
        assert clips.shape[1:] == (3, 16, 16, 16)
        means = clips.mean(dim=(3, 4))
        return torch.cat([means[:, :, 0], means[:, :, -1]], dim=1)


def _clip(index, n_crops=1):
    """Channel c of frame t holds (10 c + t) / 100 + crop / 1000."""
    t, c, v = torch.arange(16), torch.arange(3), torch.arange(n_crops)
    values = (10 * c + t[:, None]) / 100 + v[:, None, None] / 1000
    return Clip(index, values[..., None, None].expand(n_crops, 16, 3, 16, 16).contiguous())


@pytest.mark.parametrize("n_crops", [1, 10])
@pytest.mark.parametrize("frames_per_pass", [0, 5])
def test_channels_and_time_arrive_where_they_belong(n_crops, frames_per_pass):
    """The release reshapes f_A's frames straight to (B, C, T, H, W), which scatters the planes, and
    without f_A hands f_T (B, T, C, H, W), which crashes."""
    swapped, plain = [0.20, 0.10, 0.0, 0.35, 0.25, 0.15], [0.0, 0.1, 0.2, 0.15, 0.25, 0.35]
    for anonymizer, expected in ((SwapRedAndBlue(), swapped), (load_anonymizer("raw"), plain)):
        encoder = ClipEncoder(anonymizer, ShowLayout(), CPU, frames_per_pass=frames_per_pass)
        features = encoder(["a", "b"], [_clip(0, n_crops), _clip(1, n_crops)])
        assert features.shape == (2, n_crops, 6) and features.dtype == np.float32
        expected = np.array(expected) + np.arange(n_crops)[:, None] / 1000
        assert np.allclose(255 * features, np.round(255 * expected), atol=1e-4)


def test_noise_is_that_of_a_clip_in_any_batch():
    encoder, places = _networks(noise=0.1), [range(32 * i, 32 * i + 32, 2) for i in range(5)]
    clips = [Clip(i, torch.rand(1, 16, 3, 16, 16), None, own) for i, own in enumerate(places)]
    together = encoder(["v"] * 5, clips)
    alone = np.concatenate([encoder(["v"], [clip]) for clip in clips])
    backwards = encoder(["v"] * 5, clips[::-1])[::-1]
    assert np.array_equal(together, alone) and np.array_equal(together, backwards)
    other_video = encoder(["w"] * 5, clips)
    assert np.abs(together - other_video).max() > 1e-5


def test_full_size_networks_give_a_feature_whatever_else_is_in_the_batch(monkeypatch):
    no_divisor_of_a_clip = 6 * 32 * 32
    monkeypatch.setattr(extractor, "PIXELS_PER_CPU_PASS", no_divisor_of_a_clip)
    torch.manual_seed(0)
    encoder = ClipEncoder(load_fa_model(), load_ft_model(), CPU)
    clips = [Clip(i, torch.rand(1, 16, 3, 32, 32)) for i in range(3)]
    together = encoder(["v"] * 3, clips)
    alone = np.concatenate([encoder(["v"], [clip]) for clip in clips])
    assert alone.shape == (3, 1, 2048) and np.array_equal(together, alone)
    norms = np.linalg.norm(alone, axis=-1)
    assert np.linalg.norm(alone[0] - alone[1]) > 1e-4 * norms[0]  # the clips do differ
    # passes that straddle clips, as on a GPU, where the bound holds instead
    encoder.frames_per_pass = 6
    differences = np.linalg.norm(encoder(["v"] * 3, clips) - alone, axis=-1)
    assert (differences / norms).max() < 1e-5


def test_decoding_threads_compute_alone_and_leave_the_others_theirs(tmp_path, monkeypatch):
    def read(_, video):
        seen.append(torch.get_num_threads())
        yield VideoEnd(1, 25.0)

    monkeypatch.setattr(PyavReader, "read", read)
    seen, later, before = [], [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ReadAhead(_videos(tmp_path, [1, 2]), lambda: PyavReader(GEOMETRY), 2, 4) as items:
            thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert len(list(items)) == 2
        assert seen == [1, 1] and torch.get_num_threads() == 2 and later == [2]
    finally:
        torch.set_num_threads(before)


def test_blackened_boxes_reach_their_frames():
    encoder = ClipEncoder(load_anonymizer("blacken"), ShowLayout(), CPU)
    boxes = [torch.zeros(0, 4)] * 15 + [torch.tensor([[0.0, 0.0, 16.0, 16.0]])]
    views = _clip(0).views + 0.1
    clips = [Clip(0, views, [boxes]), Clip(1, views, [boxes[::-1]])]
    first, second = encoder(["a", "a"], clips)[:, 0]
    assert (first[:3] > 0).all() and (first[3:] == 0).all()
    assert (second[:3] == 0).all() and (second[3:] > 0).all()


def _videos(tmp_path, lengths):
    paths = [write_video(tmp_path / f"v{n}.avi", n, "mpeg4") for n in lengths]
    return [VideoInput(path.stem, path) for path in paths]


def _networks(noise=0.0):
    torch.manual_seed(0)
    fa, ft = load_fa_model("small", output_noise=noise), load_ft_model("small", num_classes=3)
    fa.requires_boxes = False
    return ClipEncoder(fa, ft, CPU, seed=3)


def _extract(folder, videos, encoder=None, batch_size=3, n_threads=1):
    with FeatureFolder(folder, HEADER) as features:
        extraction = Extraction(encoder or _networks(), features, GEOMETRY.n_clips, batch_size)
        with ReadAhead(videos, lambda: PyavReader(GEOMETRY), n_threads, 4) as items:
            list(extraction.run(items, len(videos)))
    return extraction


def _feed(folder, lengths, feature, batch_size):
    """Extracts videos of so many clips, without networks; the numbers of clips in a batch."""

    def launch(names, clips):
        batches.append(len(clips))
        return LaunchedPass(torch.from_numpy(feature).expand(len(clips), 1, -1), PassTimer(CPU))

    batches, encoder, views = [], SimpleNamespace(launch=launch), torch.zeros(1, 1, 3, 1, 1)
    with FeatureFolder(folder, HEADER) as features:
        extraction = Extraction(encoder, features, GEOMETRY.n_clips, batch_size)
        videos = [VideoInput(f"v{i}", folder) for i in range(len(lengths))]
        contents = [[*(Clip(k, views) for k in range(n)), VideoEnd(32 * n, 25.0)] for n in lengths]
        items = [Item(v, x) for v, of_v in zip(videos, contents, strict=True) for x in of_v]
        list(extraction.run(items, len(videos)))
    return batches


def test_batches_are_full_across_videos(tmp_path):
    """The release passes one clip at a time."""
    assert _feed(tmp_path, [1, 2, 5, 1, 3], np.zeros(4, np.float32), batch_size=4) == [4, 4, 4]


def test_features_of_a_batch_pass_the_networks_of_a_gpu_together(monkeypatch):
    """The release passes one clip at a time."""
    seen, fa, ft, timer = [], SwapRedAndBlue(), ShowLayout(), PassTimer(CPU)
    fa.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    plain = ft.extract_features
    ft.extract_features = lambda clips: seen.append(len(clips)) or plain(clips)
    encoder = ClipEncoder(fa, ft, CPU)
    encoder.device = SimpleNamespace(type="cuda")  # a GPU's passes, computed here
    monkeypatch.setattr(extractor, "PassTimer", lambda device: timer)
    monkeypatch.setattr(encoder, "_to_device", torch.stack)
    encoder(["a", "a", "b"], [_clip(0), _clip(1), _clip(0)])
    assert seen == [3 * 16, 3]


def test_long_videos_cost_no_copies_per_clip(tmp_path, monkeypatch):
    """The release grows a float64 array by vstack, clip after clip."""
    joined = []

    def counted(join, *arguments, **options):
        result = join(*arguments, **options)
        joined.append(result.nbytes)
        return result

    names = [(np, "append"), (np, "concatenate"), (np, "stack"), (np, "vstack")]
    for module, name in (*names, (torch, "cat"), (torch, "stack"), (torch, "vstack")):
        monkeypatch.setattr(module, name, partial(counted, getattr(module, name)))
    feature = np.arange(64, dtype=np.float32)
    _feed(tmp_path, [200], feature, batch_size=8)
    saved = np.load(tmp_path / "v0.npy")
    assert saved.dtype == np.float32 and np.array_equal(saved, np.tile(feature, (200, 1)))
    assert sum(joined) <= 2 * saved.nbytes


def test_videos_share_batches_and_keep_their_features(tmp_path):
    videos = _videos(tmp_path, [1, 33, 64, 70])
    extraction = _extract(tmp_path / "a", videos, batch_size=3)
    assert list(extraction.seconds) == ["decode", "wait", "copy", "f_A", "f_T", "write"]
    assert min(extraction.seconds.values()) > 0 and extraction.n_clips == 8
    _extract(tmp_path / "b", videos, batch_size=64, n_threads=3)
    for video, n_clips in zip(videos, [1, 2, 2, 3], strict=True):
        a, b = (np.load(tmp_path / folder / f"{video.name}.npy") for folder in "ab")
        assert a.shape == (n_clips, 64) and a.dtype == np.float32
        assert np.array_equal(a, b)
    a, b = (read_json(tmp_path / folder / "manifest.json") for folder in "ab")
    expected = {"file": "v33.npy", "n_frames": 33, "n_clips": 2, "fps": 25.0, "status": "complete"}
    expected |= {"source": source_of(videos[1].path), "sha256": sha256(tmp_path / "a" / "v33.npy")}
    assert a == b and a["videos"]["v33"] == expected


@pytest.mark.parametrize("name, codec", [("h.mp4", "libx264"), ("v.webm", "libvpx-vp9")])
def test_features_of_both_readers_agree(tmp_path, name, codec):
    pytest.importorskip("nvidia.dali")
    path = write_video(tmp_path / name, 70, codec)
    torch.manual_seed(0)
    ft, features = load_ft_model("small", num_classes=3).eval(), []
    plain = ft.extract_features
    # centred, so that the cosine sees differences between clips
    ft.extract_features = lambda clips: plain(clips) - plain(torch.full_like(clips, 0.5))
    encoder = ClipEncoder(load_anonymizer("raw"), ft, CPU)
    for reader in ("pyav", "dali"):
        *clips, _ = make_reader(reader, GEOMETRY, 0.9, None, CPU).read(VideoInput(path.stem, path))
        features.append(torch.from_numpy(encoder(["v"] * len(clips), clips)[:, 0]))
    # 0.9997 but for a clip whose even red comes to the next of 256 levels
    assert torch.cosine_similarity(*features).min() >= 0.995


def test_error_of_the_program_is_raised_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(PyavReader, "read", Mock(side_effect=TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        _extract(tmp_path / "out", _videos(tmp_path, [5]))


def test_non_finite_features_fail_their_video(tmp_path):
    ft = ShowLayout()
    ft.extract_features = lambda clips: torch.full((len(clips), 6), torch.nan)
    encoder = ClipEncoder(load_anonymizer("raw"), ft, CPU)
    extraction = _extract(tmp_path / "out", _videos(tmp_path, [40]), encoder)
    assert "finite" in extraction.failed["v40"] and not (tmp_path / "out" / "v40.npy").exists()


def test_parts_of_a_pass_add_up_and_may_come_again():
    start, timer = time.perf_counter(), PassTimer(CPU)
    for part, seconds in [("a", 0.02), ("b", 0.01), ("a", 0.02)]:
        time.sleep(seconds)
        timer.mark(part)
    parts = timer.seconds()
    assert list(parts) == ["a", "b"] and parts["a"] >= 0.04 and parts["b"] >= 0.01
    assert sum(parts.values()) == pytest.approx(time.perf_counter() - start, abs=0.05)
