"""dali_extraction.py as a user runs it, and what it takes as input."""

import json
import os
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
from aux_code.datasets.surveillance import load_surveillance
from aux_code.errors import UserError
from aux_code.model_loaders import load_fa_model, load_ft_model
from feature_extraction import dali_extraction
from feature_extraction.manifest import progress
from feature_extraction.params_feature_extraction import MINIATURE
from feature_extraction.video_inputs import list_inputs
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
def run(tmp_path, weights, monkeypatch):
    """The script's main in this process, which has imported everything already: run(DATASET,
    options) -> status; the features go to tmp_path/out."""
    for name in ("SAVED_MODELS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / "artifacts")

    def run(dataset, *options):
        anonymizer = () if "--anonymizer" in options else ("--anonymizer", weights)
        arguments = (*COMMON, "--dataset", dataset, "--output", tmp_path / "out", *anonymizer)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, (*arguments, *options))])
        return dali_extraction.main()

    return run


def _start(folder, *options, launcher=()):
    roots = {"TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, SCRIPT, *COMMON, "--output", folder / "out", *options]
    command, environment = list(map(str, command)), {**os.environ, **roots}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder)


def _write(folder, contents):
    """File -> the number of its frames, or its bytes."""
    for name, content in contents.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_video(folder / name, content, "mpeg4" if name.endswith("avi") else "libx264")


def _manifest(folder):
    return json.loads((folder / "out" / "manifest.json").read_text())


def _times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*.npy")}


def test_folder_to_features_as_the_planner_sees_it(tmp_path, weights, run, capsys):
    paths = {"dataset": str(tmp_path), "anonymizer": str(weights), "output": str(tmp_path / "out")}
    params, cpu = replace(MINIATURE, reader="pyav", **paths), torch.device("cpu")
    _write(tmp_path, {"a.mp4": 70, "ü b.avi": 33, "bad.mp4": b""})
    assert progress(params, cpu) == "to do"
    process = _start(tmp_path, "--dataset", tmp_path, "--anonymizer", weights)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "failed: bad" in messages and "Traceback" not in messages
    report = tmp_path / "artifacts/saved_models/dali_extraction_miniature/unreadable.txt"
    assert report.read_text().startswith("bad\t")
    manifest, before = _manifest(tmp_path), _times(tmp_path)
    assert set(manifest["videos"]) == {"a", "ü b"} and set(manifest["failed"]) == {"bad"}
    assert manifest["utility"]["arch"] == "small" and manifest["feature_dim"] == 64
    assert np.load(tmp_path / "out" / "a.npy").shape == (3, 64)
    assert progress(params, cpu) == "resumes"  # what failed is tried again
    _write(tmp_path, {"bad.mp4": 20})
    assert run(tmp_path) == 0 and "1 of 3 videos" in capsys.readouterr().err
    manifest = _manifest(tmp_path)
    assert set(manifest["videos"]) == {"a", "ü b", "bad"} and manifest["failed"] == {}
    assert before.items() <= _times(tmp_path).items()
    assert progress(replace(params, batch_size=3, n_decoders=2, seed=7), cpu) == "done"
    others = [{"crop": 0.9}, {"size": 32}, {"utility": "/no"}, {"dataset": "/nowhere"}]
    for other in (*others, {"anonymizer": "raw", "utility": str(weights)}):
        assert progress(replace(params, **other), cpu) == "to do"
    _write(tmp_path, {"a.mp4": 71})
    assert progress(params, cpu) == "resumes" and _manifest(tmp_path) == manifest
    with pytest.raises(UserError, match="size: 48, now 32.*--overwrite"):
        run(tmp_path, "--size", 32)
    written = tmp_path / "artifacts" / "dali_extraction_miniature" / "params_dali_extraction.json"
    assert json.loads(written.read_text())["size"] == 48
    assert run(tmp_path, "--size", 32, "--overwrite") == 0
    assert _manifest(tmp_path)["size"] == 32 and not before.items() & _times(tmp_path).items()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_restart_repeats_nothing_complete(tmp_path, weights, run, number):
    _write(tmp_path, {f"v{i:02d}.avi": 64 for i in range(40)})
    process = _start(tmp_path, "--dataset", tmp_path, "--anonymizer", weights, "--batch_size", "2")
    deadline = time.monotonic() + 90
    while len(_times(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    before = _times(tmp_path)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in messages and "Traceback" not in messages
        assert len(_manifest(tmp_path)["videos"]) >= len(before) - 1 >= 2
    assert run(tmp_path, "--batch_size", 2) == 0 and len(_manifest(tmp_path)["videos"]) == 40
    # at most one is repeated, the one in flight: written, not yet recorded
    assert len(before.items() & _times(tmp_path).items()) >= len(before) - 1


def test_torchrun_shares_the_videos_and_rank_0_names_what_failed(tmp_path, weights):
    n_frames = {"v0": 90, "v1": 10, "v2": 20, "v3": 30, "v4": 33}
    _write(tmp_path, {f"{name}.avi": n for name, n in n_frames.items()} | {"bad.mp4": b""})
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    options = ("--dataset", tmp_path, "--anonymizer", weights)
    process = _start(tmp_path, *options, launcher=launcher)
    _, messages = process.communicate(timeout=300)
    assert process.returncode != 0 and messages.count("failed: bad: ") == 1
    assert "2 of 2 videos to extract" in messages and "4 of 4 videos to extract" in messages
    assert "not there yet" not in messages
    manifest = _manifest(tmp_path)
    assert {name: own["n_frames"] for name, own in manifest["videos"].items()} == n_frames
    assert set(manifest["failed"]) == {"bad"}


def test_a_shard_names_what_others_have_not_done(tmp_path, run, capsys):
    _write(tmp_path, {"v0.avi": 64, "v1.avi": 33, "bad.mp4": b""})
    assert run(tmp_path, "--shard", "0/2") == 0
    assert "2 videos of other shards are not there yet: bad, v1" in capsys.readouterr().err
    assert run(tmp_path, "--shard", "1/2") == 3
    assert "not there yet" not in capsys.readouterr().err
    assert set(_manifest(tmp_path)["videos"]) == {"v0", "v1"}
    unreadable = tmp_path / "artifacts" / "dali_extraction_miniature" / "unreadable.txt"
    assert unreadable.read_text().count("bad\t") == 1
    assert run(tmp_path, "--shard", "0/2") == 0  # its own are fine, the other's are named
    assert unreadable.read_text().count("bad\t") == 1
    _write(tmp_path, {"bad.mp4": 5})
    assert run(tmp_path) == 0 and not unreadable.exists()


def test_every_kind_of_broken_input_is_named_and_the_rest_goes_on(tmp_path, run, capsys):
    whole = write_video(tmp_path / "mjpeg.avi", 100, "mjpeg").read_bytes()
    half, most = whole[: len(whole) // 2], whole[: len(whole) * 92 // 100]
    _write(tmp_path, {"good.mp4": 40, "half.avi": half, "most.avi": most, "empty.mp4": b""})
    _write(tmp_path, {"text.mp4": b"not a video"})
    write_sound(tmp_path / "sound.mp4")
    Image.fromarray(painted(0)).save(tmp_path / "still.png")
    listed = tmp_path / "list.txt"
    names = "good.mp4 half.avi most.avi still.png empty.mp4 text.mp4 sound.mp4 nowhere.mp4"
    listed.write_text(names.replace(" ", "\n"))
    assert run(listed) == 3
    messages, manifest = capsys.readouterr().err, _manifest(tmp_path)
    bad = {"half", "empty", "text", "sound", "nowhere"}
    assert set(manifest["failed"]) == bad and all(f"failed: {name}: " in messages for name in bad)
    status = {name: entry["status"] for name, entry in manifest["videos"].items()}
    assert status == {"good": "complete", "most": "damaged", "still": "complete"}
    assert np.load(tmp_path / "out" / "still.npy").shape == (1, 64)
    assert run(listed) == 3
    assert "5 of 8 videos to extract" in capsys.readouterr().err  # only those that failed
    _write(tmp_path, {"most.avi": whole})
    assert run(listed) == 3
    assert _manifest(tmp_path)["videos"]["most"]["status"] == "complete"


def test_a_broken_annotation_stops_its_video_alone(tmp_path, run, capsys):
    _write(tmp_path, {"a.mp4": 33, "b.mp4": 33})
    (tmp_path / "test.csv").write_text("video,label\na.mp4,0\nb.mp4,maybe\n")
    assert run(tmp_path) == 3
    assert "failed: b: " in (messages := capsys.readouterr().err) and "test.csv, line 3" in messages
    assert set(_manifest(tmp_path)["videos"]) == {"a"} and set(_manifest(tmp_path)["failed"]) == {
        "b"
    }
    with pytest.raises(UserError, match="1 annotations of .*test.csv, line 3"):
        load_surveillance(tmp_path)
    (tmp_path / "test.csv").write_text("video,label\na.mp4,0\nb.mp4,1\n")
    assert run(tmp_path) == 0 and set(_manifest(tmp_path)["videos"]) == {"a", "b"}


def test_of_many_that_failed_ten_are_shown_and_a_file_has_all(tmp_path, run, capsys):
    _write(tmp_path, {f"v{i:02d}.mp4": b"" for i in range(12)})
    assert run(tmp_path) == 3
    unreadable = tmp_path / "artifacts" / "dali_extraction_miniature" / "unreadable.txt"
    messages = capsys.readouterr().err
    assert messages.count("failed: v") == 10 and f"12 videos, all named in {unreadable}" in messages
    assert len(unreadable.read_text().splitlines()) == 12


def test_another_video_of_the_same_name_is_extracted_anew_and_said(tmp_path, run, caplog):
    """Two cameras, or two shops, have files of one name; a file is replaced by another."""
    first, second = (tmp_path / shop / "monday.mp4" for shop in ("shop1", "shop2"))
    for path, n_frames in ((first, 33), (second, 70)):
        path.parent.mkdir()
        _write(path.parent, {"monday.mp4": n_frames, f"{path.parent.name}.mp4": n_frames})
    assert (run(first), run(second)) == (0, 0)
    assert f"{second} is another file than the extracted {first}" in caplog.text
    assert _manifest(tmp_path)["videos"]["monday"]["n_frames"] == 70
    second.write_bytes(b"no video any more")
    assert run(second) == 3
    assert _manifest(tmp_path)["videos"] == {} and _times(tmp_path) == {}


@pytest.mark.parametrize("anonymizer", ["raw", "downsample4x", "blacken"])
def test_obfuscation_by_name_with_f_t_of_another_file(tmp_path, weights, run, anonymizer):
    write_video(tmp_path / "v.mp4", 33)
    (tmp_path / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\nv.mp4,0,0,0,64,48\n")
    assert run(tmp_path, "--utility", weights, "--anonymizer", anonymizer) == 0
    manifest = _manifest(tmp_path)
    assert manifest["anonymizer"] == {"name": anonymizer, "sha256": ""}
    assert manifest["utility"]["path"] == str(weights) and len(manifest["utility"]["sha256"]) == 64
    assert np.load(tmp_path / "out" / "v.npy").shape == (2, 64)


def test_geometry_by_parameter_and_ten_crops(tmp_path, run):
    _write(tmp_path, {"v.mp4": 33})
    geometry = {"frames_per_clip": 4, "stride": 3, "frames_per_feature": 8, "n_crops": 10}
    options = [word for name, value in geometry.items() for word in (f"--{name}", value)]
    assert run(tmp_path, *options) == 0
    manifest, features = _manifest(tmp_path), np.load(tmp_path / "out" / "v.npy")
    assert geometry.items() <= manifest.items()
    assert features.shape == (5, 10, 64) and manifest["videos"]["v"]["n_clips"] == 5
    assert not np.array_equal(features[:, 0], features[:, 5])  # mirrored


def test_mistakes_are_named(tmp_path, run):
    _write(tmp_path, {"a.mp4": 2})
    for words, path, *options in (
        ("none", tmp_path / "none"),
        ("--anonymizer", tmp_path, "--anonymizer", ""),
        ("--utility", tmp_path, "--anonymizer", "raw"),
        *[("--shard", tmp_path, f"--shard={text}") for text in ("2/2", "x", "-1/2")],
    ):
        with pytest.raises(UserError, match=words):
            run(path, *options)


def test_names_of_inputs(tmp_path):
    files = "a/x.mp4 a/poster.jpg b/x.mp4 b/y.avi b/y.mp4 frames/000.jpg frames/001.jpg notes.md"
    for path in files.split():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()

    def found(path):
        return {v.name: str(v.path.relative_to(tmp_path)) for v in list_inputs(str(path)).videos}

    names = {"a__x": "a/x.mp4", "b__x": "b/x.mp4", "b__y.avi": "b/y.avi", "b__y.mp4": "b/y.mp4"}
    assert found(tmp_path) == {**names, "frames": "frames"}
    (tmp_path / "list.txt").write_text("a/x.mp4\n\nb/y.avi\n")
    assert found(tmp_path / "list.txt") == {"x": "a/x.mp4", "y": "b/y.avi"}
    assert found(tmp_path / "b/y.avi") == {"y": "b/y.avi"}
    (tmp_path / "nothing").mkdir()
    (tmp_path / "list.txt").write_text(f"{tmp_path}/b/y.avi\n{tmp_path}/elsewhere/../b/y.avi\n")
    for path, words in (
        ("nothing", "no video"),
        ("list.txt", r"more than once in .*list.txt: .*\.\./b/y.avi \(line 2\)"),
    ):
        with pytest.raises(UserError, match=words):
            found(tmp_path / path)
