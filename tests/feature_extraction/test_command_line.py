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

from aux_code import config
from aux_code.checkpoints import build_meta, save_checkpoint
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_ft_model
from aux_code.parameters import CommonParams
from feature_extraction import dali_extraction
from feature_extraction.video_inputs import list_inputs, parse_shard, shard_of
from tests.feature_extraction.videos import write_video

SCRIPT = config.REPOSITORY_ROOT / "feature_extraction" / "dali_extraction.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=3)
    meta = build_meta("test", {"fa": fa.architecture, "ft": ft.architecture}, CommonParams(), {}, {})
    path = tmp_path_factory.mktemp("weights") / "last.pth"
    save_checkpoint(
        path, {"fa_model_state_dict": fa.state_dict(), "ft_model_state_dict": ft.state_dict(), "meta": meta}
    )
    return path


def _start(folder, *options):
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--preset", "miniature", "--reader", "pyav", "--device", "cpu", *options]
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
    options = ("--dataset", str(videos), "--anonymizer", str(weights), "--output", str(tmp_path / "out"))
    status, messages = _run(tmp_path, *options)
    assert status == 3 and "failed: bad" in messages and "Traceback" not in messages
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["videos"]) == {"a", "ü b"} and set(manifest["failed"]) == {"bad"}
    assert manifest["utility"]["arch"] == "small" and manifest["feature_dim"] == 64
    assert np.load(tmp_path / "out" / "a.npy").shape == (3, 64)
    before = (tmp_path / "out" / "a.npy").stat().st_mtime_ns
    write_video(videos / "bad.mp4", 20)
    assert _run_here(tmp_path, monkeypatch, *options) == 0 and "1 of 3 videos" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["videos"]) == {"a", "ü b", "bad"} and manifest["failed"] == {}
    assert (tmp_path / "out" / "a.npy").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="size: 48 there, 32 now"):
        _run_here(tmp_path, monkeypatch, *options, "--size", "32")


def test_restart_after_kill_repeats_nothing_complete(tmp_path, weights, monkeypatch):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(40):
        write_video(videos / f"v{i:02d}.avi", 64, "mpeg4")
    out = tmp_path / "out"
    options = ("--dataset", str(videos), "--anonymizer", str(weights), "--output", str(out), "--batch_size", "2")
    process = _start(tmp_path, *options)
    deadline = time.monotonic() + 90
    while len(list(out.glob("v*.npy"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("v*.npy")}
    assert 3 <= len(written)
    assert _run_here(tmp_path, monkeypatch, *options) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["videos"]) == 40 and not list(out.glob(".journal_*"))
    repeated = [name for name, time_ns in written.items() if (out / name).stat().st_mtime_ns != time_ns]
    assert len(repeated) <= 1  # the file in flight: written, not yet recorded


def test_torchrun_shares_the_videos_and_rank_0_names_what_failed(tmp_path, weights):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for i, n_frames in enumerate([90, 10, 20, 30, 33]):
        write_video(videos / f"v{i}.avi", n_frames, "mpeg4")
    (videos / "bad.mp4").write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command += ["--preset", "miniature", "--reader", "pyav", "--device", "cpu", "--dataset", str(videos)]
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(tmp_path / "artifacts"), "OMP_NUM_THREADS": "1"}
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
    options = ("--dataset", str(tmp_path), "--anonymizer", str(weights), "--output", str(tmp_path / "out"))
    assert _run_here(tmp_path, monkeypatch, *options, "--shard", "0/2") == 0
    assert "1 videos of other shards are not there yet: v1" in capsys.readouterr().err
    assert _run_here(tmp_path, monkeypatch, *options, "--shard", "1/2") == 0
    assert "not there yet" not in capsys.readouterr().err
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())["videos"]) == {"v0", "v1"}


def test_mistakes_are_named(tmp_path, weights, monkeypatch):
    for options, message in [
        (("--dataset", str(tmp_path / "none"), "--anonymizer", str(weights)), "none"),
        (("--dataset", str(tmp_path)), "--anonymizer"),
        (("--dataset", str(tmp_path), "--anonymizer", str(weights), "--shard", "2/2"), "--shard"),
    ]:
        with pytest.raises(UserError, match=message):
            _run_here(tmp_path, monkeypatch, *options)


def test_names_of_inputs(tmp_path):
    for path in ("a/x.mp4", "b/x.mp4", "b/y.avi", "b/y.mp4", "frames/000.jpg", "frames/001.jpg", "notes.md"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    names = {video.name: video.path.relative_to(tmp_path).as_posix() for video in list_inputs(str(tmp_path)).videos}
    expected = {"a__x": "a/x.mp4", "b__x": "b/x.mp4", "b__y.avi": "b/y.avi", "b__y.mp4": "b/y.mp4", "frames": "frames"}
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
