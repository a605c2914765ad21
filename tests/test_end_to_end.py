"""All stages through their command lines on freshly rendered files, from rendering to the report.

The plan is that of reproduce.py; only the lengths of the trainings are cut.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import reproduce
from aux_code import config
from aux_code.datasets import ucf_crime
from aux_code.datasets.decode import count_frames
from reproduction.by_hand import holds_its_features, was_run_by_hand
from reproduction.executor import run_tasks
from reproduction.plan import PlanSettings, build_plan
from reproduction.report import ReportOptions, write_all
from reproduction.results import collect_results
from reproduction.status import StatusDisplay
from reproduction.tasks import Task
from tests.frozen import write as frozen
from tests.test_pretended_gpu import run as run_on_pretended_gpu

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("raw", "blur", "ted_spad_plus")
SHORT = {
    "init_anonymizer": ("--max_steps", "3"),
    "init_utility": ("--max_steps", "3"),
    "init_privacy": ("--max_steps", "3"),
    "train_anonymizer": ("--max_steps", "2"),
    "train_privacy": ("--epochs", "2"),
    "main": ("--epochs", "2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/ with a tiny rendering, and room for the artefacts."""
    folder = tmp_path_factory.mktemp(
        "end to end"
    )  # with a blank: paths are never taken apart by a shell
    command = [
        sys.executable,
        "-m",
        "aux_code.miniature",
        str(folder / "data"),
        "--seed",
        "0",
        "--scale",
        "0.03",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture
def roots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's config points to the same folders as the stages' environment."""
    for name in ("SAVED_MODELS_ROOT", "FEATURES_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, folder / "artifacts" / name.removesuffix("_ROOT").lower())
    monkeypatch.setattr(config, "ARTIFACT_ROOT", folder / "artifacts")
    monkeypatch.setattr(config, "DATA_ROOT", folder / "data")
    return folder


def short_plan(folder: Path) -> list[Task]:
    environment = {"TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts"), "OMP_NUM_THREADS": "1"}
    settings = PlanSettings(
        "miniature", ("ucf_crime",), ("--device", "cpu", "--n_threads", "1"), environment
    )
    tasks = build_plan(METHODS, (0,), settings, reproduce.preset_parameters)
    return [
        replace(task, arguments=(*task.arguments, *SHORT.get(task.stage, ()))) for task in tasks
    ]


def test_all_stages_then_report_then_nothing_left_to_do(roots: Path):
    tasks = short_plan(roots)
    outcome = run_tasks(tasks, min(2, os.cpu_count() or 1), StatusDisplay())
    assert not outcome.failed and len(outcome.done) == len(tasks) == 16

    results = collect_results("miniature", (0,), METHODS)
    paths = write_all(results, ReportOptions(tuple(tasks), 48))
    summary = json.loads(paths[0].read_text())
    for method in METHODS:
        entry = summary["methods"][method]
        assert 0 < entry["privacy"]["cmap"] <= 1 and len(entry["privacy"]["per_attribute"]) == 7
        assert 0 <= entry["anomaly"]["ucf_crime"]["auc"] <= 1
    html = paths[2].read_text()
    assert "No images" not in html and html.count("data:image/png;base64,") >= 7
    check_features(roots)
    changed = frozen.differences(
        frozen.read("artefacts.json"), frozen.artefacts(roots / "artifacts")
    )
    assert not changed, "\n".join([*changed, frozen.REMEDY.format(roots / "artifacts")])

    again = run_tasks(tasks, 1, StatusDisplay())
    assert len(again.kept) == len(tasks) and not again.done
    check_that_work_by_hand_is_known(tasks)


def check_that_work_by_hand_is_known(tasks: list[Task]) -> None:
    """Somebody who pastes the commands leaves results without marks; other parameters or inputs are
    other work."""
    for task in tasks:
        if not task.own_folder:
            task.stamp_path.unlink()
    for changed in tasks:
        if changed.stage != "dali_extraction":
            assert was_run_by_hand(changed)
            assert not was_run_by_hand(
                replace(changed, parameters=changed.parameters | {"precision": "fp8"})
            )
            assert not was_run_by_hand(
                replace(changed, arguments=(*changed.arguments, "--seed", "1"))
            )
    anonymizer = next(task for task in tasks if task.stage == "train_anonymizer")
    start = anonymizer.inputs[1]
    content = start.read_bytes()
    start.write_bytes(content + b"0")
    assert not was_run_by_hand(anonymizer)
    start.write_bytes(content)
    third = run_tasks(tasks, 1, StatusDisplay())
    assert len(third.kept) == len(tasks) and not third.done
    extraction = next(
        task for task in tasks if task.stage == "dali_extraction" and task.method == "ted_spad_plus"
    )
    assert holds_its_features(extraction)
    assert not holds_its_features(replace(extraction, inputs=(start,)))


def check_features(roots: Path) -> None:
    """One feature per 32 decodable frames, for every video of both splits, and the anonymizer's
    mark on them."""
    dataset = ucf_crime.load(roots / "data" / "UCF_Crime")
    folders = {m: config.FEATURES_ROOT / "ucf_crime" / f"miniature_s0_{m}" for m in METHODS}
    for video in dataset.videos:
        features = {m: np.load(path / f"{video.name}.npy") for m, path in folders.items()}
        assert {len(array) for array in features.values()} == {-(-count_frames(video.path) // 32)}
        assert all(
            array.dtype == np.float32 and np.isfinite(array).all() for array in features.values()
        )
        assert not np.allclose(features["raw"], features["blur"])
    manifests = {m: json.loads((path / "manifest.json").read_text()) for m, path in folders.items()}
    assert (
        manifests["blur"]["anonymizer"]["name"] == "blur"
        and manifests["ted_spad_plus"]["anonymizer"]["sha256"]
    )


def test_the_dry_run_names_the_steps_and_touches_nothing(folder: Path, tmp_path: Path):
    environment = {
        **os.environ,
        "TED_SPAD_DATA_ROOT": str(folder / "data"),
        "TED_SPAD_ARTIFACT_ROOT": str(tmp_path),
    }
    command = [
        sys.executable,
        str(ROOT / "reproduce.py"),
        "--preset",
        "miniature",
        "--dry_run",
        "--methods",
        "spact",
    ]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "train_anonymizer.py --preset miniature_spact" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_failed_steps_are_named_with_status_3_and_the_report_is_written(folder, tmp_path):
    (tmp_path / "saved_models").touch()  # a file in place of the folder: every first step fails
    roots = {"TED_SPAD_DATA_ROOT": str(folder / "data"), "TED_SPAD_ARTIFACT_ROOT": str(tmp_path)}
    options = ["--preset", "miniature", "--methods", "raw", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, ROOT / "reproduce.py", *options],
        env=os.environ | roots,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 3, result.stderr
    failed = result.stderr.splitlines()[-1]
    assert failed.startswith("failed: ") and "; not run: " in failed
    assert (tmp_path / "results" / "report.html").is_file()


def test_missing_data_is_one_clear_message(tmp_path: Path):
    environment = {
        **os.environ,
        "TED_SPAD_DATA_ROOT": str(tmp_path / "none"),
        "TED_SPAD_ARTIFACT_ROOT": str(tmp_path),
    }
    command = [sys.executable, str(ROOT / "reproduce.py"), "--preset", "paper"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert (
        "UCF101" in result.stderr
        and "TED_SPAD_DATA_ROOT" in result.stderr
        and "--preset miniature" in result.stderr
    )


def test_all_stages_run_on_a_pretended_gpu_in_bf16(folder: Path, tmp_path: Path):
    common = ["--preset", "miniature", "--device", "cuda", "--precision", "bf16"]
    small = [*common, "--size", "24"]
    short = [*small, "--max_steps", "1", "--validation_fraction", "0.1", "--batch_images", "8"]
    fa = tmp_path / "saved_models" / "train_anonymizer_miniature" / "last.pth"
    features = tmp_path / "features"
    commands = [
        (f"anonymization_training/init_{name}.py", *short, "+")
        for name in ("anonymizer", "utility", "privacy")
    ]
    commands += [
        ("anonymization_training/train_anonymizer.py", *short, "--batch_videos", "2", "+"),
        ("privacy_training/train_privacy.py", *small, "--max_steps", "2", "--anonymizer", fa, "+"),
        ("feature_extraction/dali_extraction.py", *small, "--reader", "pyav", "--anonymizer", fa)
        + ("--utility", fa, "--output", features, "+"),
        ("anomaly_detection_mgfn/main.py", *common, "--epochs", "2", "--features", features),
    ]
    words = [word for command in commands for word in command]
    result = run_on_pretended_gpu(
        *words, artefacts=tmp_path, TED_SPAD_DATA_ROOT=str(folder / "data")
    )
    assert "running on cuda" in result.stderr and "running on cpu" not in result.stderr
    assert len(list((tmp_path / "results").glob("*.json"))) == 2
