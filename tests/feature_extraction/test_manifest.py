"""The manifest survives kills, other processes and other settings."""

import json
import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest

from aux_code.checkpoints import write_npy
from aux_code.errors import UserError
from feature_extraction.manifest import FeatureFolder

HEADER = {
    "format_version": 1,
    "size": 16,
    "utility": {"path": "/a/ft.pth", "sha256": "11", "arch": "small"},
}


def _add(folder, name):
    write_npy(folder.folder / f"{name}.npy", np.zeros((2, 4), np.float32))
    folder.add_video(
        name,
        {"file": f"{name}.npy", "n_frames": 40, "n_clips": 2, "fps": 25.0, "status": "complete"},
    )


def _add_many(path, prefix, barrier):
    with FeatureFolder(path, HEADER) as folder:
        barrier.wait()
        for i in range(30):
            _add(folder, f"{prefix}{i}")
            if i % 5 == 0:
                folder.merge()


def _add_and_hang(path, ready):
    folder = FeatureFolder(path, HEADER).__enter__()
    _add(folder, "before_the_kill")
    folder._journal.write('{"name": "cut o')
    folder._journal.flush()
    ready.set()
    time.sleep(60)


def test_two_processes_on_one_folder_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=_add_many, args=(tmp_path, prefix, barrier)) for prefix in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["videos"]) == {f"{prefix}{i}" for prefix in "ab" for i in range(30)}
    assert not list(tmp_path.glob(".journal_*"))


def test_killed_process_leaves_what_it_finished(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_add_and_hang, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    with FeatureFolder(tmp_path, HEADER) as folder:
        assert folder.finished() == set()  # the other one lives: its journal is its own
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    with FeatureFolder(tmp_path, HEADER) as folder:
        assert folder.finished() == {"before_the_kill"}
    assert not list(tmp_path.glob(".journal_*"))


def test_half_files_go_unless_another_process_may_be_writing_them(tmp_path):
    half = tmp_path / ".v.npy.123_ab.tmp"
    with FeatureFolder(tmp_path, HEADER):
        half.write_bytes(b"half")
        with FeatureFolder(tmp_path, HEADER) as second:
            second.remove_partial_files()
            assert half.exists()
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "a")
        folder.remove_partial_files()
        assert not half.exists() and (tmp_path / "a.npy").exists()


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
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.npy", "manifest.json"]
    with FeatureFolder(tmp_path, HEADER) as folder:
        assert folder.finished() == {"a"}


def test_other_settings_are_refused_and_moved_weights_are_not(tmp_path):
    with FeatureFolder(tmp_path, HEADER) as folder:
        _add(folder, "a")
    with (
        pytest.raises(UserError, match="size: 16 there, 32 now"),
        FeatureFolder(tmp_path, {**HEADER, "size": 32}),
    ):
        pass
    other = {**HEADER, "utility": {"path": "/a/ft.pth", "sha256": "22", "arch": "small"}}
    with pytest.raises(UserError, match="utility"), FeatureFolder(tmp_path, other):
        pass
    moved = {**HEADER, "utility": {"path": "/b/ft.pth", "sha256": "11", "arch": "small"}}
    with FeatureFolder(tmp_path, moved) as folder:
        assert folder.finished() == {"a"}


def test_a_success_clears_the_failure_and_a_lost_file_is_done_again(tmp_path):
    with FeatureFolder(tmp_path, HEADER) as folder:
        folder.add_failure("a", "disk")
    with FeatureFolder(tmp_path, HEADER) as folder:
        assert folder.failures() == {"a": "disk"}
        _add(folder, "a")
        folder.merge()
        assert folder.failures() == {} and folder.finished() == {"a"}
        (tmp_path / "a.npy").write_bytes(b"half")
        assert folder.finished() == set()


@pytest.mark.parametrize(
    "content", ["[1]", '{"videos": [1], "failed": {}}', "{}", "", '{"videos": {']
)
def test_a_broken_manifest_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json"), FeatureFolder(tmp_path, HEADER):
        pass
    assert (tmp_path / "manifest.json").read_text() == content
    assert not list(tmp_path.glob(".journal_*"))
