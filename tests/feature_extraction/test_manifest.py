"""The manifest survives kills, other processes, other settings and other videos of one name."""

import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from aux_code.artefacts import sha256
from aux_code.checkpoints import write_npy
from aux_code.errors import UserError
from feature_extraction.manifest import COLOUR_CONVERSION, FeatureFolder
from feature_extraction.video_inputs import VideoInput, source_of

UTILITY = {"path": "/a/ft.pth", "sha256": "11", "arch": "small"}
HEADER = {"format_version": 1, "size": 16, "utility": UTILITY}
ENTRY = {"n_frames": 40, "n_clips": 2, "fps": 25.0, "status": "complete"}


def _add(folder, name, **more):
    write_npy(folder.folder / f"{name}.npy", np.zeros((2, 4), np.float32))
    folder.add_video(name, {"file": f"{name}.npy", **ENTRY, **more})


def _videos_of(path):
    return set(json.loads((path / "manifest.json").read_text())["videos"])


def _left(path, *names, folder_of_videos="/nowhere"):
    """Names of the videos that are left to extract."""
    videos = [VideoInput(name, Path(folder_of_videos, name)) for name in names]
    with FeatureFolder(path, HEADER) as folder:
        return [video.name for video in folder.left(videos)]


def _add_many(path, prefix, barrier):
    barrier.wait()
    with FeatureFolder(path, HEADER) as folder:
        for i in range(30):
            _add(folder, f"{prefix}{i}")
            if i % 5 == 0:
                folder.assemble()


def test_processes_that_begin_and_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_add_many, args=(tmp_path, p, barrier)) for p in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert _videos_of(tmp_path) == {f"{prefix}{i}" for prefix in "abc" for i in range(30)}
    assert not list(tmp_path.rglob("*.tmp"))


def test_of_two_ways_that_begin_at_once_one_is_refused(tmp_path, monkeypatch):
    """Both see an empty folder; the one that is slower with its header finds the other's."""
    slow = FeatureFolder(tmp_path, {**HEADER, "size": 32})
    create = slow._create_manifest

    def late(empty):
        with FeatureFolder(tmp_path, HEADER) as fast:
            _add(fast, "a")
        create(empty)

    monkeypatch.setattr(slow, "_create_manifest", late)
    with pytest.raises(UserError, match="size: 16, now 32"), slow:
        pass
    assert _videos_of(tmp_path) == {"a"}


def test_a_killed_process_leaves_what_it_finished(tmp_path, monkeypatch):
    """No file is locked: NFSv4 refuses an exclusive lock on a file opened for reading."""
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, Mock(side_effect=OSError(9, "Bad file descriptor")))
    _add(FeatureFolder(tmp_path, HEADER).__enter__(), "before_the_kill")
    half = tmp_path / ".half.npy.1_ab.tmp"
    half.write_bytes(b"half")
    assert _left(tmp_path, "before_the_kill", "other") == ["other"]
    assert _videos_of(tmp_path) == {"before_the_kill"}
    assert half.exists()  # nobody knows yet that its process is dead
    os.utime(half, (time.time() - 4000,) * 2)
    _left(tmp_path)
    assert not half.exists()


def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path):
    """RLIMIT_FSIZE makes every longer write fail in the middle, as a full disk does."""
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "a")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(UserError, match="big.npy.*free space"):
                write_npy(tmp_path / "big.npy", np.zeros(1000, np.float32))
            with pytest.raises(UserError, match="free space"):
                folder.add_failure("b", "x" * 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["a.json", "a.npy", "manifest.json"]
    assert _left(tmp_path, "a") == []


def test_other_settings_are_refused_or_replace_and_moved_weights_are_neither(tmp_path):
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "a")
    before, larger = (tmp_path / "manifest.json").read_bytes(), {**HEADER, "size": 32}
    other = {**HEADER, "utility": {**UTILITY, "sha256": "22"}}
    for header, message in ((larger, "size: 16, now 32"), (other, "utility: another file")):
        with pytest.raises(UserError, match=message), FeatureFolder(tmp_path, header):
            pass
    with FeatureFolder(tmp_path / "noisy", {**HEADER, "seed": 0}):
        pass
    with pytest.raises(UserError, match="seed: 0, now 1"):
        FeatureFolder(tmp_path / "noisy", {**HEADER, "seed": 1}).read()
    FeatureFolder(tmp_path, {**HEADER, "seed": 1}).read()  # the earlier version kept no seed
    moved = {**HEADER, "utility": {**UTILITY, "path": "/b/ft.pth"}}
    with FeatureFolder(tmp_path, moved, overwrite=True) as folder:
        assert folder.left([VideoInput("a", tmp_path / "gone")]) == []
    assert (tmp_path / "manifest.json").read_bytes() == before
    with FeatureFolder(tmp_path, HEADER) as late:
        with FeatureFolder(tmp_path, larger, overwrite=True) as folder:
            _add(folder, "b")
            _add(late, "c")  # a process that did not notice: its features are not mixed in
        late.header = larger
    assert _videos_of(tmp_path) == {"b"}


def test_another_device_precision_or_colours_are_refused_or_allowed_and_then_named(tmp_path):
    begun = {**HEADER, "precision": "fp32", "colour_conversion": "tag", "device_kind": "cpu"}
    begun |= {"reader": "pyav", "environment": {"device_name": "a"}}
    gpu, path = {"precision": "bf16", "colour_conversion": "601", "device_kind": "cuda"}, tmp_path
    with FeatureFolder(path, begun) as folder:
        _add(folder, "a")
    for key, value in gpu.items():
        with pytest.raises(UserError, match=f"{key}: .*, now {value}.* or --allow_mixed"):
            FeatureFolder(path, begun | {key: value}).read()
    with pytest.raises(UserError, match="size: 16, now 32.* to replace them$"):
        FeatureFolder(path, begun | gpu | {"size": 32}).read()
    elsewhere = {"reader": "dali", "environment": {"device_name": "b"}}
    assert FeatureFolder(path, begun | elsewhere).read()["videos"].keys() == {"a"}
    with FeatureFolder(path, begun | gpu, allow_mixed=True) as folder:
        assert folder.left([VideoInput("a", path / "gone")]) == []
        _add(folder, "b")
    videos = FeatureFolder(path, begun).read()["videos"]
    assert gpu.items() <= videos["b"].items() and not gpu.keys() & videos["a"].keys()
    with FeatureFolder(path / "earlier", HEADER | {"reader": "dali"}):  # it recorded none of them
        pass
    gpu["colour_conversion"] = COLOUR_CONVERSION["dali"]
    with pytest.raises(UserError, match="colour_conversion: .*, now tag"):
        FeatureFolder(path / "earlier", HEADER | {"colour_conversion": "tag"}).read()
    del gpu["precision"]
    with FeatureFolder(path / "earlier", HEADER | gpu) as folder:
        _add(folder, "c")
    assert folder.read()["videos"]["c"]["device_kind"] == "cuda"


def test_a_success_clears_the_failure_and_a_lost_file_is_done_again(tmp_path):
    with FeatureFolder(tmp_path, HEADER) as folder:
        folder.add_failure("a", "disk")
    assert json.loads((tmp_path / "manifest.json").read_text())["failed"] == {"a": "disk"}
    assert _left(tmp_path, "a") == ["a"]
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "a")
        assert folder.read()["failed"] == {} and set(folder.read()["videos"]) == {"a"}
    assert _left(tmp_path, "a") == []
    (tmp_path / "a.npy").write_bytes(b"half")
    assert _left(tmp_path, "a") == ["a"]
    with FeatureFolder(tmp_path, HEADER) as folder:
        for name in "ab":
            _add(folder, name)
            _add(folder, name, sha256=sha256(tmp_path / f"{name}.npy"))
    write_npy(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    os.utime(tmp_path / "a.npy", (1, 1))  # a digest is remembered by time and size
    assert _left(tmp_path, "a", "b") == ["a"]  # replaced by others of the same shape


def test_features_of_an_earlier_version_are_kept_and_what_is_unknown_is_said(tmp_path, caplog):
    """Commit c45b28e: no records of their own, entries without a source."""
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "a")
        _add(folder, "b")
        folder.add_failure("c", "it failed then")
    shutil.rmtree(tmp_path / ".entries")
    assert _left(tmp_path, *"abc") == ["c"] and _videos_of(tmp_path) == {"a", "b"}
    assert "2 videos are kept without comparison" in caplog.text
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "c")
    assert folder.read()["failed"] == {} and _videos_of(tmp_path) == {"a", "b", "c"}


def test_a_source_is_known_by_its_bytes_and_ends_not_by_place_or_time(tmp_path, caplog):
    long = bytes(3 * 2**20)
    out, here, there = (tmp_path / name for name in ("out", "here", "there"))
    for folder in (here, there):
        folder.mkdir()
        (folder / "a").write_bytes(long)
    with FeatureFolder(out, HEADER) as folder:
        _add(folder, "a", source=source_of(here / "a"))
    os.utime(there / "a", (1, 1))
    assert _left(out, "a", folder_of_videos=there) == [] and not caplog.text
    for content in (b"1" + long[1:], long[1:] + b"1", long + b"0"):
        (there / "a").write_bytes(content)
        caplog.clear()
        assert _left(out, "a", folder_of_videos=there) == ["a"]
        assert str(here / "a") in caplog.text and str(there / "a") in caplog.text


def test_of_a_folder_of_frames_all_sizes_and_both_ends_count(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"%d" % i)
    (tmp_path / "notes.txt").write_text("none of the frames")
    before = source_of(tmp_path)
    assert before["bytes"] == 3
    (tmp_path / "2.png").write_bytes(b"9")
    assert source_of(tmp_path)["sha256"] != before["sha256"]
    (tmp_path / "1.png").write_bytes(b"22")
    assert source_of(tmp_path)["bytes"] == 4


@pytest.mark.parametrize("content", ["[1]", '{"videos": [1], "failed": {}}', "{}", "", '{"v": {'])
def test_a_broken_manifest_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json"), FeatureFolder(tmp_path, HEADER):
        pass
    assert (tmp_path / "manifest.json").read_text() == content
