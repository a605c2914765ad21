"""Files that are whole or absent, and reads that run nothing."""

import os
import pickle
import resource
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from aux_code import checkpoints
from aux_code.checkpoints import load_checkpoint, read_json, save_checkpoint, write_json, write_npy
from aux_code.errors import UserError
from tests.datasets.test_convert_labels import Attack

META = {"x": [1, "two", None, 2.5]}
CONTENT = {"state": {"w": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "meta": META}


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "last.pth"
    save_checkpoint(path, CONTENT)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state"]["w"], CONTENT["state"]["w"])
    assert loaded["epoch"] == 3 and loaded["meta"] == CONTENT["meta"]
    assert [p.name for p in path.parent.iterdir()] == ["last.pth"]


FULL = OSError(28, "No space left on device")
FAILURES = [(FULL, UserError, "last.pth: No space"), (KeyboardInterrupt(), KeyboardInterrupt, None)]


@pytest.mark.parametrize("failure, expected, words", FAILURES)
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_at_any_moment_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch, failure, expected, words, moment
):
    fail = Mock(side_effect=failure)

    def write(file) -> None:
        file.write(b"new")
        if moment == "write":
            fail()

    path = tmp_path / "last.pth"
    path.write_bytes(b"old")
    if moment != "write":
        monkeypatch.setattr(os, moment, fail)
    with pytest.raises(expected, match=words):
        checkpoints.write_atomically(path, write)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
    with pytest.raises(UserError, match="cannot write .*last.pth/params.json"):
        write_json(path / "params.json", {})


def test_the_content_is_on_the_disk_before_the_name_points_to_it(tmp_path: Path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(os.fstat(fd).st_size) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(Path(a).parent) or replace(a, b))
    checkpoints.write_atomically(tmp_path / "x", lambda file: file.write(b"12345"))
    assert order == [5, tmp_path]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "legacy torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, writer: str):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    attack = Attack(os.mkdir, str(trace))
    content = {"fa_model_state_dict": attack}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match="evil.pth"):
        load_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(attack))  # the attack itself works
    assert trace.exists()


def test_numpy_values_are_data_and_objects_in_them_are_refused(tmp_path: Path):
    """The release's checkpoints hold some, older ones under numpy 1's names."""
    path, trace = tmp_path / "old.pth", tmp_path / "trace"
    content = {"best": np.float64(0.75), "losses": np.arange(3.0), "flag": np.bool_(True)}
    content |= {"ids": np.array(["a", "b"]), "state": {"x": torch.ones(2)}}
    torch.save(content, path)
    assert load_checkpoint(path)["losses"].tolist() == [0, 1, 2]
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_checkpoint(path)["best"] == 0.75
    torch.save({**content, "objects": np.array([Attack(os.mkdir, str(trace))])}, path)
    with pytest.raises(UserError, match="refused"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_missing_truncated_and_other_files_are_named(tmp_path: Path, zipped: bool):
    path = tmp_path / "part.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    others = [b"hello world, no checkpoint", b"\x80\x02}garbage", b"PK\x03\x04" + 99 * b"\0"]
    for content in [*(whole[:n] for n in (*range(0, len(whole), 7), len(whole) - 1)), *others]:
        path.write_bytes(content)
        with pytest.raises(UserError, match="part.pth"):
            load_checkpoint(path)
    for absent in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=f"{absent} does not exist"):
            load_checkpoint(absent)


def test_json_takes_numpy_and_paths_and_refuses_nan(tmp_path: Path):
    path = tmp_path / "results.json"
    arrays = {"b": np.arange(2), "d": torch.ones(1)}
    write_json(path, {"a": np.float32(0.5), "c": Path("x"), "e": np.int64(4), **arrays})
    assert read_json(path) == {"a": 0.5, "b": [0, 1], "c": "x", "d": [1.0], "e": 4}
    for bad in (float("nan"), float("inf"), np.float32("nan")):
        with pytest.raises(ValueError):
            write_json(path, {"a": bad})
    assert read_json(path)["a"] == 0.5
    with pytest.raises(TypeError, match="object is not JSON"):
        write_json(path, object())
    path.write_text("{ broken")
    for name in ("results.json", "none.json"):
        with pytest.raises(UserError, match=name):
            read_json(tmp_path / name)


@pytest.mark.parametrize("n_values", [300, 1000, 100_000])
def test_without_room_on_the_disk_there_is_an_error_and_no_half_array(tmp_path: Path, n_values):
    """Writes fail in the middle, as on a full disk; NumPy alone overlooks it for small arrays."""
    values = np.arange(n_values, dtype=np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(UserError, match="a.npy.*free space"):
            write_npy(tmp_path / "a.npy", values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    write_npy(tmp_path / "a.npy", values)
    with pytest.raises(ValueError):
        write_npy(tmp_path / "a.npy", np.array([object()]))  # it would be pickled
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), values)
