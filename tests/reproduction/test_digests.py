"""Finished work is known by what it read, not by where that lies; and work that lost something is
not finished."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import reproduce
from aux_code import config
from reproduction.digests import data_digest, folder_digest
from reproduction.plan import PlanSettings, build_plan
from reproduction.tasks import Task


def finished(task: Task) -> Task:
    """The task with its outputs and its stamp, as if it had run."""
    for path in task.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"result")
    task.mark_done(0.0, 1.0, 0)
    return task


@pytest.fixture
def data(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small files in place of each data set."""
    for name in ("UCF101", "VISPR", "UCF_CRIME", "XD_VIOLENCE", "SHANGHAITECH"):
        folder = artifacts / "data" / name
        folder.mkdir(parents=True)
        (folder / "list.txt").write_text("a.mp4 0\n")
        (folder / "a.mp4").write_bytes(b"1234")
        monkeypatch.setattr(config, f"{name}_ROOT", folder)
    data_digest.cache_clear()
    return artifacts / "data"


def paper_plan() -> dict[str, Task]:
    tasks = build_plan(["raw"], [0], PlanSettings("paper"), reproduce.preset_parameters)
    return {task.name: task for task in tasks}


def test_moved_artefacts_and_data_stay_finished(data: Path, artifacts: Path, monkeypatch):
    names = [finished(task).name for task in paper_plan().values()]
    target = artifacts / "moved"
    for name in ("saved_models", "features", "results", "logs", "data"):
        shutil.copytree(artifacts / name, target / name)
    for name in ("SAVED_MODELS_ROOT", "FEATURES_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, target / name.removesuffix("_ROOT").lower())
    for name in ("UCF101", "VISPR", "UCF_CRIME", "XD_VIOLENCE", "SHANGHAITECH"):
        monkeypatch.setattr(config, f"{name}_ROOT", target / "data" / name)
    monkeypatch.setattr(config, "ARTIFACT_ROOT", target)
    monkeypatch.setattr(config, "DATA_ROOT", target / "data")
    for name in ("saved_models", "features", "results", "logs", "data"):
        shutil.rmtree(artifacts / name)
    data_digest.cache_clear()
    moved = paper_plan()
    assert [name for name in names if not moved[name].is_done()] == []


@pytest.mark.parametrize("change", ["a list", "a video's size", "another video", "a lost video"])
def test_changed_data_are_work_again_for_those_who_read_them(data: Path, change):
    folder = data / "UCF_CRIME"
    for task in paper_plan().values():
        finished(task)
    {
        "a list": lambda: (folder / "list.txt").write_text("a.mp4 1\n"),
        "a video's size": lambda: (folder / "a.mp4").write_bytes(b"12345"),
        "another video": lambda: (folder / "b.mp4").write_bytes(b"1"),
        "a lost video": lambda: (folder / "a.mp4").unlink(),
    }[change]()
    data_digest.cache_clear()  # as in the next process
    undone = {name for name, task in paper_plan().items() if not task.is_done()}
    assert undone == {"extraction_ucf_crime_paper_s0_raw", "anomaly_ucf_crime_paper_s0_raw"}


def test_a_step_whose_folder_lost_a_file_is_not_done(make_task, artifacts: Path):
    folder = artifacts / "features"
    folder.mkdir()
    for name in ("a.npy", "b.npy"):
        (folder / name).write_bytes(b"12")
    task = finished(replace(make_task("extraction"), own_folder=folder))
    assert task.is_done()
    (folder / "b.npy").unlink()
    assert not task.is_done()


def test_folders_are_compared_by_names_sizes_and_lists(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "v.mp4").write_bytes(b"1234")
    (tmp_path / "list.csv").write_text("a")
    first = folder_digest(tmp_path)
    os.utime(tmp_path / "list.csv", (0, 0))
    (tmp_path / ".DS_Store").write_text("a desktop's file")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert folder_digest(tmp_path) == first, "dates, hidden files and links back do not count"
    (tmp_path / "list.csv").write_text("b")
    assert folder_digest(tmp_path) != first
    assert folder_digest(tmp_path / "none") == ""
