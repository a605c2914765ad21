"""dali_extraction.py as a user runs it, and what it takes as input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from aux_code import config
from aux_code.artefacts import build_meta
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_ft_model
from aux_code.parameters import CommonParams
from feature_extraction import dali_extraction
from feature_extraction.video_inputs import list_inputs, parse_shard, shard_of
from tests.feature_extraction.videos import painted, write_sound, write_video

SCRIPT = config.REPOSITORY_ROOT / "feature_extraction" / "dali_extraction.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=3)
    meta = build_meta(
        "test", {"fa": fa.architecture, "ft": ft.architecture}, CommonParams(), {}, {}
    )
    path = tmp_path_factory.mktemp("weights") / "last.pth"
    save_checkpoint(
        path,
        {
            "fa_model_state_dict": fa.state_dict(),
            "ft_model_state_dict": ft.state_dict(),
            "meta": meta,
        },
    )
    return path


def _start(folder, *options):
    environment = {
        **os.environ,
        "TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts"),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        str(SCRIPT),
        "--preset",
        "miniature",
        "--reader",
        "pyav",
        "--device",
        "cpu",
        *options,
    ]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder)


def _run(folder, *options):
    process = _start(folder, *options)
    _, messages = process.communicate(timeout=120)
    return process.returncode, messages


def _run_here(folder, monkeypatch, *options):
    """The same in this process, which has imported everything already."""
    for name in ("SAVED_MODELS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, folder / "artifacts")
    arguments = ["--preset", "miniature", "--reader", "pyav", "--device", "cpu", *options]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    return dali_extraction.main()


def test_folder_to_features_and_again(tmp_path, weights, monkeypatch, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", 70)
    write_video(videos / "ü b.avi", 33, "mpeg4")
    (videos / "bad.mp4").write_bytes(b"")
    options = (
        "--dataset",
        str(videos),
        "--anonymizer",
        str(weights),
        "--output",
        str(tmp_path / "out"),
    )
    status, messages = _run(tmp_path, *options)
    assert status == 3 and "failed: bad" in messages and "Traceback" not in messages
    unreadable = (
        tmp_path / "artifacts" / "saved_models" / "dali_extraction_miniature" / "unreadable.txt"
    )
    assert unreadable.read_text().startswith("bad\t")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["videos"]) == {"a", "ü b"} and set(manifest["failed"]) == {"bad"}
    assert manifest["utility"]["arch"] == "small" and manifest["feature_dim"] == 64
    assert np.load(tmp_path / "out" / "a.npy").shape == (3, 64)
    before = (tmp_path / "out" / "a.npy").stat().st_mtime_ns
    write_video(videos / "bad.mp4", 20)
    assert (
        _run_here(tmp_path, monkeypatch, *options) == 0
        and "1 of 3 videos" in capsys.readouterr().err
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["videos"]) == {"a", "ü b", "bad"} and manifest["failed"] == {}
    assert (tmp_path / "out" / "a.npy").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="size: 48 there, 32 now"):
        _run_here(tmp_path, monkeypatch, *options, "--size", "32")


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_restart_after_an_interruption_repeats_nothing_complete(
    tmp_path, weights, monkeypatch, signal_number
):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(40):
        write_video(videos / f"v{i:02d}.avi", 64, "mpeg4")
    out = tmp_path / "out"
    options = (
        "--dataset",
        str(videos),
        "--anonymizer",
        str(weights),
        "--output",
        str(out),
        "--batch_size",
        "2",
    )
    process = _start(tmp_path, *options)
    deadline = time.monotonic() + 90
    while len(list(out.glob("v*.npy"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal_number)
    _, messages = process.communicate(timeout=60)
    if signal_number == signal.SIGINT:
        assert (
            process.returncode == 130 and "interrupted" in messages and "Traceback" not in messages
        )
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("v*.npy")}
    assert 3 <= len(written)
    assert _run_here(tmp_path, monkeypatch, *options) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["videos"]) == 40 and not list(out.glob(".journal_*"))
    repeated = [
        name for name, time_ns in written.items() if (out / name).stat().st_mtime_ns != time_ns
    ]
    assert len(repeated) <= 1  # the file in flight: written, not yet recorded


def test_torchrun_shares_the_videos_and_rank_0_names_what_failed(tmp_path, weights):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for i, n_frames in enumerate([90, 10, 20, 30, 33]):
        write_video(videos / f"v{i}.avi", n_frames, "mpeg4")
    (videos / "bad.mp4").write_bytes(b"")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(SCRIPT),
    ]
    command += [
        "--preset",
        "miniature",
        "--reader",
        "pyav",
        "--device",
        "cpu",
        "--dataset",
        str(videos),
    ]
    environment = {
        **os.environ,
        "TED_SPAD_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [*command, "--anonymizer", str(weights), "--output", str(out)],
        env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode != 0 and ended.stderr.count("failed: bad: ") == 1
    assert "2 of 2 videos to extract" in ended.stderr and "4 of 4 videos to extract" in ended.stderr
    assert "not there yet" not in ended.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name: entry["n_frames"] for name, entry in manifest["videos"].items()} == {
        "v0": 90, "v1": 10, "v2": 20, "v3": 30, "v4": 33
    }  # fmt: skip
    assert set(manifest["failed"]) == {"bad"} and not list(out.glob(".journal_*"))


def test_a_shard_names_what_others_have_not_done(tmp_path, weights, monkeypatch, capsys):
    for i, n_frames in enumerate([64, 33]):
        write_video(tmp_path / f"v{i}.avi", n_frames, "mpeg4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    options = (
        "--dataset",
        str(tmp_path),
        "--anonymizer",
        str(weights),
        "--output",
        str(tmp_path / "out"),
    )
    assert _run_here(tmp_path, monkeypatch, *options, "--shard", "0/2") == 0
    assert "2 videos of other shards are not there yet: bad, v1" in capsys.readouterr().err
    assert _run_here(tmp_path, monkeypatch, *options, "--shard", "1/2") == 3
    assert "not there yet" not in capsys.readouterr().err
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())["videos"]) == {
        "v0",
        "v1",
    }
    unreadable = tmp_path / "artifacts" / "dali_extraction_miniature" / "unreadable.txt"
    assert unreadable.read_text().count("bad\t") == 1
    assert (
        _run_here(tmp_path, monkeypatch, *options, "--shard", "0/2") == 0
    )  # its own are fine, the other's are named
    assert unreadable.read_text().count("bad\t") == 1
    write_video(tmp_path / "bad.mp4", 5)
    assert _run_here(tmp_path, monkeypatch, *options) == 0 and not unreadable.exists()


def test_every_kind_of_broken_input_is_named_and_the_rest_goes_on(
    tmp_path, weights, monkeypatch, capsys
):
    write_video(tmp_path / "good.mp4", 40)
    whole = write_video(tmp_path / "mjpeg.avi", 100, "mjpeg").read_bytes()
    (tmp_path / "half.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "most.avi").write_bytes(whole[: len(whole) * 95 // 100])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    write_sound(tmp_path / "sound.mp4")
    files = [
        "good.mp4",
        "half.avi",
        "most.avi",
        "empty.mp4",
        "text.mp4",
        "sound.mp4",
        "nowhere.mp4",
    ]
    (tmp_path / "list.txt").write_text("\n".join(files))
    options = (
        "--dataset",
        str(tmp_path / "list.txt"),
        "--anonymizer",
        str(weights),
        "--output",
        str(tmp_path / "out"),
    )
    assert _run_here(tmp_path, monkeypatch, *options) == 3
    messages = capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    bad = {"half", "empty", "text", "sound", "nowhere"}
    assert set(manifest["failed"]) == bad and all(f"failed: {name}: " in messages for name in bad)
    assert {name: entry["status"] for name, entry in manifest["videos"].items()} == {
        "good": "complete", "most": "damaged"
    }  # fmt: skip
    assert _run_here(tmp_path, monkeypatch, *options) == 3
    assert "5 of 7 videos to extract" in capsys.readouterr().err  # only those that failed


@pytest.mark.parametrize("anonymizer", ["raw", "downsample4x", "blacken"])
def test_obfuscation_by_name_with_f_t_of_another_file(tmp_path, weights, monkeypatch, anonymizer):
    write_video(tmp_path / "v.mp4", 33)
    (tmp_path / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\nv.mp4,0,0,0,64,48\n")
    options = (
        "--dataset",
        str(tmp_path),
        "--utility",
        str(weights),
        "--output",
        str(tmp_path / anonymizer),
    )
    assert _run_here(tmp_path, monkeypatch, *options, "--anonymizer", anonymizer) == 0
    manifest = json.loads((tmp_path / anonymizer / "manifest.json").read_text())
    assert manifest["anonymizer"] == {"name": anonymizer, "sha256": ""}
    assert manifest["utility"]["path"] == str(weights) and len(manifest["utility"]["sha256"]) == 64
    assert np.load(tmp_path / anonymizer / "v.npy").shape == (2, 64)


def test_geometry_by_parameter_and_ten_crops(tmp_path, weights, monkeypatch):
    write_video(tmp_path / "v.mp4", 33)
    options = (
        "--dataset",
        str(tmp_path),
        "--anonymizer",
        str(weights),
        "--output",
        str(tmp_path / "out"),
    )
    geometry = (
        "--frames_per_clip",
        "4",
        "--stride",
        "3",
        "--frames_per_feature",
        "8",
        "--n_crops",
        "10",
    )
    assert _run_here(tmp_path, monkeypatch, *options, *geometry) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("frames_per_clip", "stride", "frames_per_feature", "n_crops")} == {
        "frames_per_clip": 4, "stride": 3, "frames_per_feature": 8, "n_crops": 10
    }  # fmt: skip
    features = np.load(tmp_path / "out" / "v.npy")
    assert features.shape == (5, 10, 64) and manifest["videos"]["v"]["n_clips"] == 5
    assert not np.array_equal(features[:, 0], features[:, 5])  # mirrored


def test_images_are_clips(tmp_path, weights, monkeypatch):
    for i in range(3):
        Image.fromarray(painted(20 * i)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n2.png\n")
    options = (
        "--dataset",
        str(tmp_path / "list.txt"),
        "--anonymizer",
        str(weights),
        "--output",
        str(tmp_path / "out"),
    )
    assert _run_here(tmp_path, monkeypatch, *options) == 0
    features = [np.load(tmp_path / "out" / f"{i}.npy") for i in range(3)]
    assert [f.shape for f in features] == [(1, 64)] * 3 and not np.array_equal(
        features[0], features[2]
    )


def test_mistakes_are_named(tmp_path, weights, monkeypatch):
    for options, message in [
        (("--dataset", str(tmp_path / "none"), "--anonymizer", str(weights)), "none"),
        (("--dataset", str(tmp_path)), "--anonymizer"),
        (("--dataset", str(tmp_path), "--anonymizer", str(weights), "--shard", "2/2"), "--shard"),
    ]:
        with pytest.raises(UserError, match=message):
            _run_here(tmp_path, monkeypatch, *options)


def test_names_of_inputs(tmp_path):
    files = (
        "a/x.mp4",
        "a/poster.jpg",
        "b/x.mp4",
        "b/y.avi",
        "b/y.mp4",
        "frames/000.jpg",
        "frames/001.jpg",
        "notes.md",
    )
    for path in files:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    names = {
        video.name: video.path.relative_to(tmp_path).as_posix()
        for video in list_inputs(str(tmp_path)).videos
    }
    expected = {
        "a__x": "a/x.mp4",
        "b__x": "b/x.mp4",
        "b__y.avi": "b/y.avi",
        "b__y.mp4": "b/y.mp4",
        "frames": "frames",
    }
    assert names == expected
    (tmp_path / "list.txt").write_text("a/x.mp4\n\nb/y.avi\n")
    assert [video.name for video in list_inputs(str(tmp_path / "list.txt")).videos] == ["x", "y"]
    assert [video.path.name for video in list_inputs(str(tmp_path / "b/y.avi")).videos] == ["y.avi"]
    with pytest.raises(UserError, match="no video"):
        (tmp_path / "nothing").mkdir()
        list_inputs(str(tmp_path / "nothing"))


def test_shards_partition_the_videos_and_balance_frames(tmp_path):
    for i, n_frames in enumerate([90, 10, 20, 30, 15, 15]):
        write_video(tmp_path / f"v{i}.avi", n_frames, "mpeg4")
    videos = list_inputs(str(tmp_path)).videos
    parts = [{video.name for video in shard_of(videos, i, 2)} for i in range(2)]
    assert parts[0] == {"v0"} and parts[1] == {"v1", "v2", "v3", "v4", "v5"}
    assert parse_shard("1/4", {}) == (1, 4)
    assert parse_shard("0/1", {"RANK": "2", "WORLD_SIZE": "3"}) == (2, 3)
    for text in ("4/4", "x", "-1/2"):
        with pytest.raises(UserError, match="shard"):
            parse_shard(text, {})
