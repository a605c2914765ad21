"""dali_extraction.py as a user runs it, and what it takes as input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aux_code import config
from aux_code.checkpoints import save_checkpoint
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_ft_model
from feature_extraction import dali_extraction
from feature_extraction.manifest import progress
from feature_extraction.params_feature_extraction import MINIATURE
from feature_extraction.video_inputs import list_inputs, parse_shard, shard_of
from tests.feature_extraction.videos import painted, write_sound, write_video

SCRIPT = config.REPOSITORY_ROOT / "feature_extraction" / "dali_extraction.py"
COMMON = ("--preset", "miniature", "--reader", "pyav", "--device", "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=3)
    states = {"fa_model_state_dict": fa.state_dict(), "ft_model_state_dict": ft.state_dict()}
    meta = {"architectures": {"fa": fa.architecture, "ft": ft.architecture}}
    path = tmp_path_factory.mktemp("weights") / "last.pth"
    save_checkpoint(path, {**states, "meta": meta})
    return path


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@pytest.fixture
def run(tmp_path, weights, monkeypatch):
    """The script's main in this process, which has imported everything already: run(DATASET,
    options) -> status; the features go to tmp_path/out."""
    for name in ("SAVED_MODELS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / "artifacts")

    def run(dataset, *options, anonymizer=("--anonymizer", weights)):
        arguments = (*COMMON, "--dataset", dataset, "--output", tmp_path / "out", *anonymizer)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, (*arguments, *options))])
        return dali_extraction.main()

    return run


def _start(folder, *options, launcher=()):
    roots = {"TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, SCRIPT, *COMMON, "--output", folder / "out", *options]
    return subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, **roots}, stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip


def _manifest(folder):
    return json.loads((folder / "out" / "manifest.json").read_text())


def _times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.npy")}


def test_folder_to_features_and_again(tmp_path, videos, weights, run, capsys):
    write_video(videos / "a.mp4", 70)
    write_video(videos / "ü b.avi", 33, "mpeg4")
    (videos / "bad.mp4").write_bytes(b"")
    process = _start(tmp_path, "--dataset", videos, "--anonymizer", weights)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "failed: bad" in messages and "Traceback" not in messages
    report = tmp_path / "artifacts/saved_models/dali_extraction_miniature/unreadable.txt"
    assert report.read_text().startswith("bad\t")
    manifest = _manifest(tmp_path)
    assert set(manifest["videos"]) == {"a", "ü b"} and set(manifest["failed"]) == {"bad"}
    assert manifest["utility"]["arch"] == "small" and manifest["feature_dim"] == 64
    assert np.load(tmp_path / "out" / "a.npy").shape == (3, 64)
    before = _times(tmp_path)
    write_video(videos / "bad.mp4", 20)
    assert run(videos) == 0 and "1 of 3 videos" in capsys.readouterr().err
    manifest = _manifest(tmp_path)
    assert set(manifest["videos"]) == {"a", "ü b", "bad"} and manifest["failed"] == {}
    assert before.items() <= _times(tmp_path).items()
    with pytest.raises(UserError, match="size: 48, now 32.*--overwrite"):
        run(videos, "--size", 32)
    assert run(videos, "--size", 32, "--overwrite") == 0
    assert _manifest(tmp_path)["size"] == 32 and not before.items() & _times(tmp_path).items()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_restart_after_an_interruption_repeats_nothing_complete(
    tmp_path, videos, weights, run, signal_number
):
    for i in range(40):
        write_video(videos / f"v{i:02d}.avi", 64, "mpeg4")
    process = _start(tmp_path, "--dataset", videos, "--anonymizer", weights, "--batch_size", "2")
    deadline = time.monotonic() + 90
    while len(_times(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal_number)
    _, messages = process.communicate(timeout=60)
    before = _times(tmp_path)
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in messages and "Traceback" not in messages
        assert len(_manifest(tmp_path)["videos"]) >= len(before) - 1 >= 2
    assert run(videos, "--batch_size", 2) == 0 and len(_manifest(tmp_path)["videos"]) == 40
    # at most one is repeated, the one in flight: written, not yet recorded
    assert len(before.items() & _times(tmp_path).items()) >= len(before) - 1


def test_torchrun_shares_the_videos_and_rank_0_names_what_failed(tmp_path, videos, weights):
    for i, n_frames in enumerate([90, 10, 20, 30, 33]):
        write_video(videos / f"v{i}.avi", n_frames, "mpeg4")
    (videos / "bad.mp4").write_bytes(b"")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    options = ("--dataset", videos, "--anonymizer", weights)
    process = _start(tmp_path, *options, launcher=launcher)
    _, messages = process.communicate(timeout=300)
    assert process.returncode != 0 and messages.count("failed: bad: ") == 1
    assert "2 of 2 videos to extract" in messages and "4 of 4 videos to extract" in messages
    assert "not there yet" not in messages
    manifest = _manifest(tmp_path)
    n_frames = {name: entry["n_frames"] for name, entry in manifest["videos"].items()}
    assert n_frames == {"v0": 90, "v1": 10, "v2": 20, "v3": 30, "v4": 33}
    assert set(manifest["failed"]) == {"bad"}


def test_a_shard_names_what_others_have_not_done(tmp_path, run, capsys):
    for i, n_frames in enumerate([64, 33]):
        write_video(tmp_path / f"v{i}.avi", n_frames, "mpeg4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    assert run(tmp_path, "--shard", "0/2") == 0
    assert "2 videos of other shards are not there yet: bad, v1" in capsys.readouterr().err
    assert run(tmp_path, "--shard", "1/2") == 3
    assert "not there yet" not in capsys.readouterr().err
    assert set(_manifest(tmp_path)["videos"]) == {"v0", "v1"}
    unreadable = tmp_path / "artifacts" / "dali_extraction_miniature" / "unreadable.txt"
    assert unreadable.read_text().count("bad\t") == 1
    assert run(tmp_path, "--shard", "0/2") == 0  # its own are fine, the other's are named
    assert unreadable.read_text().count("bad\t") == 1
    write_video(tmp_path / "bad.mp4", 5)
    assert run(tmp_path) == 0 and not unreadable.exists()


def test_every_kind_of_broken_input_is_named_and_the_rest_goes_on(tmp_path, run, capsys):
    write_video(tmp_path / "good.mp4", 40)
    whole = write_video(tmp_path / "mjpeg.avi", 100, "mjpeg").read_bytes()
    (tmp_path / "half.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "most.avi").write_bytes(whole[: len(whole) * 95 // 100])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    write_sound(tmp_path / "sound.mp4")
    names = "good.mp4 half.avi most.avi empty.mp4 text.mp4 sound.mp4 nowhere.mp4"
    (tmp_path / "list.txt").write_text("\n".join(names.split()))
    assert run(tmp_path / "list.txt") == 3
    messages, manifest = capsys.readouterr().err, _manifest(tmp_path)
    bad = {"half", "empty", "text", "sound", "nowhere"}
    assert set(manifest["failed"]) == bad and all(f"failed: {name}: " in messages for name in bad)
    status = {name: entry["status"] for name, entry in manifest["videos"].items()}
    assert status == {"good": "complete", "most": "damaged"}
    assert run(tmp_path / "list.txt") == 3
    assert "5 of 7 videos to extract" in capsys.readouterr().err  # only those that failed
    (tmp_path / "most.avi").write_bytes(whole)
    assert run(tmp_path / "list.txt") == 3
    assert _manifest(tmp_path)["videos"]["most"]["status"] == "complete"


def test_another_video_of_the_same_name_is_extracted_anew_and_said(
    tmp_path, videos, run, caplog, capsys
):
    """Two cameras, or two shops, have files of one name; a file is replaced by another."""
    for shop, n_frames in (("shop1", 33), ("shop2", 70)):
        (videos / shop).mkdir()
        write_video(videos / shop / "monday.mp4", n_frames)
        write_video(videos / shop / f"{shop}.mp4", n_frames)
    first, second = videos / "shop1" / "monday.mp4", videos / "shop2" / "monday.mp4"
    assert run(first) == 0
    source = _manifest(tmp_path)["videos"]["monday"]["source"]
    assert source["path"] == str(first) and source["bytes"] == first.stat().st_size
    assert len(source["sha256"]) == 64
    assert run(second) == 0
    assert f"{second} is another file than the extracted {first}" in caplog.text
    assert _manifest(tmp_path)["videos"]["monday"]["n_frames"] == 70
    before = _times(tmp_path)
    moved = shutil.move(second, videos / "monday.mp4")
    os.utime(moved, (1, 1))
    assert run(moved) == 0 and "0 of 1 videos" in capsys.readouterr().err
    assert before == _times(tmp_path)
    moved.write_bytes(b"no video any more")
    assert run(moved) == 3
    assert _manifest(tmp_path)["videos"] == {} and _times(tmp_path) == {}


def test_two_videos_of_one_name_in_one_call_are_refused(tmp_path, videos, run):
    (tmp_path / "list.txt").write_text(f"{videos}/a.mp4\n{tmp_path}/elsewhere/../videos/a.mp4\n")
    write_video(videos / "a.mp4", 2)
    with pytest.raises(UserError, match=r"videos/a.mp4 and .*\.\./videos/a.mp4 would both"):
        run(tmp_path / "list.txt")
    for name in ("x.mp4", "x.avi", "x.mp4.mkv"):
        write_video(videos / name, 2, "mpeg4")
    with pytest.raises(UserError, match="x.mp4 and .*x.mp4.mkv would both be written as x.mp4.npy"):
        run(videos)


def test_features_of_an_earlier_version_are_kept_and_what_is_unknown_is_said(
    tmp_path, videos, run, caplog, capsys
):
    """Commit c45b28e: no records of their own, entries without a source."""
    for i in range(3):
        write_video(videos / f"v{i}.mp4", 33)
    assert run(videos) == 0
    shutil.rmtree(tmp_path / "out" / ".entries")
    manifest = _manifest(tmp_path)
    for entry in manifest["videos"].values():
        del entry["source"]
    manifest["failed"]["v2"] = "it failed then"
    del manifest["videos"]["v2"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    before = _times(tmp_path)
    assert run(videos) == 0 and "1 of 3 videos" in capsys.readouterr().err
    assert "2 videos are kept without comparison" in caplog.text
    again = _manifest(tmp_path)
    assert again["failed"] == {} and set(again["videos"]) == {"v0", "v1", "v2"}
    assert again["videos"]["v0"] == manifest["videos"]["v0"]
    assert {name for name, _ in before.items() - _times(tmp_path).items()} == {"v2.npy"}


def test_the_planner_can_ask_whether_anything_is_left(tmp_path, videos, weights, run):
    write_video(videos / "a.mp4", 33)
    (videos / "bad.mp4").write_bytes(b"")
    paths = {"dataset": str(videos), "anonymizer": str(weights), "output": str(tmp_path / "out")}
    params, cpu = replace(MINIATURE, reader="pyav", **paths), torch.device("cpu")
    assert progress(params, cpu) == "to do"
    assert run(videos) == 3 and progress(params, cpu) == "resumes"  # what failed is tried again
    write_video(videos / "bad.mp4", 5)
    assert run(videos) == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert progress(replace(params, batch_size=3, n_decoders=2, seed=7), cpu) == "done"
    for name, value in {"crop": 0.9, "size": 32, "utility": "/no", "dataset": "/nowhere"}.items():
        assert progress(replace(params, **{name: value}), cpu) == "to do"
    other = replace(params, anonymizer="raw", utility=str(weights))
    assert progress(other, cpu) == "to do"
    write_video(videos / "a.mp4", 34)
    assert progress(params, cpu) == "resumes"
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("anonymizer", ["raw", "downsample4x", "blacken"])
def test_obfuscation_by_name_with_f_t_of_another_file(tmp_path, weights, run, anonymizer):
    write_video(tmp_path / "v.mp4", 33)
    (tmp_path / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\nv.mp4,0,0,0,64,48\n")
    assert run(tmp_path, "--utility", weights, anonymizer=("--anonymizer", anonymizer)) == 0
    manifest = _manifest(tmp_path)
    assert manifest["anonymizer"] == {"name": anonymizer, "sha256": ""}
    assert manifest["utility"]["path"] == str(weights) and len(manifest["utility"]["sha256"]) == 64
    assert np.load(tmp_path / "out" / "v.npy").shape == (2, 64)


def test_geometry_by_parameter_and_ten_crops(tmp_path, run):
    write_video(tmp_path / "v.mp4", 33)
    geometry = {"frames_per_clip": 4, "stride": 3, "frames_per_feature": 8, "n_crops": 10}
    options = [word for name, value in geometry.items() for word in (f"--{name}", value)]
    assert run(tmp_path, *options) == 0
    manifest = _manifest(tmp_path)
    assert geometry.items() <= manifest.items()
    features = np.load(tmp_path / "out" / "v.npy")
    assert features.shape == (5, 10, 64) and manifest["videos"]["v"]["n_clips"] == 5
    assert not np.array_equal(features[:, 0], features[:, 5])  # mirrored


def test_images_are_clips(tmp_path, run):
    for i in range(3):
        Image.fromarray(painted(20 * i)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n2.png\n")
    assert run(tmp_path / "list.txt") == 0
    features = [np.load(tmp_path / "out" / f"{i}.npy") for i in range(3)]
    assert [f.shape for f in features] == [(1, 64)] * 3
    assert not np.array_equal(features[0], features[2])


def test_mistakes_are_named(tmp_path, run):
    for dataset, options, message in [
        ("none", {}, "none"),
        ("", {"anonymizer": ()}, "--anonymizer"),
        ("", {"anonymizer": ("--anonymizer", "raw")}, "--utility"),
    ]:
        with pytest.raises(UserError, match=message):
            run(tmp_path / dataset, **options)
    with pytest.raises(UserError, match="--shard"):
        run(write_video(tmp_path / "a.mp4", 2), "--shard", "2/2")


def test_names_of_inputs(tmp_path):
    files = "a/x.mp4 a/poster.jpg b/x.mp4 b/y.avi b/y.mp4 frames/000.jpg frames/001.jpg notes.md"
    for path in files.split():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    found = {video.name: video.path for video in list_inputs(str(tmp_path)).videos}
    names = {"a__x": "a/x.mp4", "b__x": "b/x.mp4", "b__y.avi": "b/y.avi", "b__y.mp4": "b/y.mp4"}
    names |= {"frames": "frames"}
    assert found == {name: tmp_path / path for name, path in names.items()}
    (tmp_path / "list.txt").write_text("a/x.mp4\n\nb/y.avi\n")
    assert [video.name for video in list_inputs(str(tmp_path / "list.txt")).videos] == ["x", "y"]
    assert [video.path.name for video in list_inputs(str(tmp_path / "b/y.avi")).videos] == ["y.avi"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no video"):
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
