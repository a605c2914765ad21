"""The plan of reproduce.py with short trainings: all stages from rendered files to the report."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.datasets import ucf_crime
from aux_code.datasets.decode import count_frames
from aux_code.datasets.digest import dataset_digest
from reproduction.plan import PlanSettings, Step, build_plan, progress_of
from reproduction.processes import Command, ForkedProcess
from reproduction.report import ReportOptions, write_all
from reproduction.results import collect_results
from reproduction.runner import log_path, read_timings, run_steps
from tests.commands import ROOT, python
from tests.frozen import write as frozen
from tests.test_pretended_gpu import run as run_on_gpu

METHODS = ("raw", "blur", "ted_spad_plus")
SHORT = dict.fromkeys(("init_anonymizer", "init_utility", "init_privacy"), "--max_steps 3")
SHORT |= {"train_anonymizer": "--max_steps 2", "train_privacy": "--epochs 2", "main": "--epochs 2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/ with a tiny rendering, and room for the artefacts."""
    folder = tmp_path_factory.mktemp("end to end")  # a blank: no shell takes paths apart
    words = ["-m", "aux_code.miniature", str(folder / "data"), "--seed", "0", "--scale", "0.03"]
    with Connection(os.open(folder / "lock", os.O_RDWR | os.O_CREAT)) as lock:
        command = Command(words, str(ROOT), str(folder / "log"), dict(os.environ), lock)
        process = ForkedProcess(command)  # as reproduce.py does
    while process.poll() is None:
        time.sleep(0.1)
    assert process.poll() == 0, (folder / "log").read_text()
    return folder


@pytest.fixture
def roots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SAVED_MODELS_ROOT", "FEATURES_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, folder / "artifacts" / name.removesuffix("_ROOT").lower())
    monkeypatch.setattr(config, "ARTIFACT_ROOT", folder / "artifacts")
    monkeypatch.setattr(config, "DATA_ROOT", folder / "data")
    return folder


def short_plan(folder: Path, **more: str) -> list[Step]:
    environment = {"TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts"), "OMP_NUM_THREADS": "1"}
    options = ("--device", "cpu", "--n_threads", "1")
    settings = PlanSettings("miniature", ("ucf_crime",), options, environment)
    plan = build_plan(METHODS, (0,), settings)
    own = {s.stage: f"{SHORT.get(s.stage, '')} {more.get(s.stage, '')}".split() for s in plan}
    return [replace(step, arguments=(*step.arguments, *own[step.stage])) for step in plan]


def undone(steps: list[Step]) -> set[str]:
    return {s.name.replace("miniature_s0_", "") for s in steps if progress_of(s) != "done"}


def test_all_stages_then_report_then_nothing_left_to_do(roots: Path):
    steps = short_plan(roots)
    outcome = run_steps(steps, min(2, os.cpu_count() or 1))
    assert not outcome.failed and len(outcome.done) == len(steps) == 17
    results = collect_results("miniature", (0,), METHODS)
    paths = write_all(results, ReportOptions(tuple(steps), 48, timings=read_timings()))
    summary = read_json(paths[0])
    for entry in (summary["methods"][method] for method in METHODS):
        assert 0 < entry["privacy"]["cmap"] <= 1 and len(entry["privacy"]["per_attribute"]) == 7
        assert 0 <= entry["anomaly"]["ucf_crime"]["auc"] <= 1
    html = paths[2].read_text()
    assert "No images" not in html and html.count("data:image/png;base64,") >= 7
    folders = {m: config.FEATURES_ROOT / "ucf_crime" / f"miniature_s0_{m}" for m in METHODS}
    for video in ucf_crime.load(roots / "data" / "UCF_Crime").videos:
        features = {m: np.load(path / f"{video.name}.npy") for m, path in folders.items()}
        for array in features.values():
            assert len(array) == -(-count_frames(video.path) // 32)
            assert array.dtype == np.float32 and np.isfinite(array).all()
        assert not np.allclose(features["raw"], features["blur"])
    networks = {m: read_json(folders[m] / "manifest.json")["anonymizer"] for m in METHODS}
    assert networks["blur"]["name"] == "blur" and networks["ted_spad_plus"]["sha256"]
    now = frozen.artefacts(roots / "artifacts")
    changed = frozen.differences(frozen.read("artefacts.json"), now)
    assert not changed, "\n".join([*changed, frozen.REMEDY.format(roots / "artifacts")])
    (config.LOGS_ROOT / "reproduce" / "timings.json").unlink()  # as if somebody ran it by hand
    assert len(run_steps(steps, 1).kept) == len(steps), "nothing is left to do"


def undone_with(roots: Path, path: Path, content: bytes) -> set[str]:
    """What is not done while a file holds something else."""
    before = path.read_bytes()
    path.write_bytes(content)
    dataset_digest.cache_clear()  # as in another process
    found = undone(short_plan(roots))
    path.write_bytes(before)
    dataset_digest.cache_clear()
    return found


def test_only_what_decides_a_result_undoes_it(roots: Path):
    assert not undone(short_plan(roots)), "run the test above first"
    workers = dict.fromkeys(("init_utility", "train_anonymizer", "train_privacy"), "--n_workers 1")
    assert not undone(short_plan(roots, **workers)), "workers, device and threads are free"
    ucf101 = roots / "data" / "UCF101"
    (ucf101 / "notes.csv").write_text("an extra file")
    boxes, listed = ucf101 / "person_boxes.csv", ucf101 / "ucfTrainTestlist" / "trainlist01.txt"
    found = undone_with(roots, boxes, boxes.read_bytes() + b"\n")
    assert found == {"init_utility_blur"}, "the others look at no boxes"
    start = config.SAVED_MODELS_ROOT / "miniature_s0_init_anonymizer_ted_spad_plus" / "fa_recon.pth"
    found = undone_with(roots, start, start.read_bytes() + b"0")
    assert found >= {"anonymizer_ted_spad_plus"}
    other = short_plan(roots, init_utility="--learning_rate 0.5")
    assert undone(other) == {f"init_utility_{row}" for row in ("start", "raw", "blur")}
    lines = listed.read_bytes().splitlines(keepends=True)
    found = undone_with(roots, listed, b"".join(lines[:-1]))
    assert found >= {"init_utility_raw", "anonymizer_ted_spad_plus"}
    assert not undone(short_plan(roots))


def test_features_of_another_network_are_replaced_if_they_were_cheap_or_with_overwrite(roots: Path):
    def blurred(rate: str) -> list[Step]:
        steps = short_plan(roots, init_utility=f"--learning_rate {rate}")
        stages = ("init_utility", "dali_extraction")
        first, then = (s for s in steps if s.method == "blur" and s.stage in stages)
        return [replace(first, needs=()), replace(then, needs=(first.name,))]

    training, extraction = blurred("0.5")
    outcome = run_steps([training, extraction], 1)  # nobody knows how long the first ones took
    assert (outcome.done, outcome.failed) == ([training.name], [extraction.name])
    assert "--overwrite to replace them" in log_path(extraction).read_text()
    assert run_steps([training, extraction], 1, overwrite=True).done == [extraction.name]
    training, extraction = blurred("0.4")
    assert len(run_steps([training, extraction], 1).done) == 2, "seconds, as the timings know"
    forced = frozenset([extraction.name])
    assert run_steps([training, extraction], 1, forced).done == [extraction.name]


def reproduce(*options: str, data: Path, artefacts: Path, status: int):
    """The main job of one method in another process; it must end so."""
    roots = {"TED_SPAD_DATA_ROOT": data, "TED_SPAD_ARTIFACT_ROOT": artefacts}
    return python(ROOT / "reproduce.py", *options, status=status, cwd=artefacts, **roots)


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        ("miniature --dry_run", 0, ["train_anonymizer.py --preset miniature_spact"]),
        ("miniature --slurm", 0, ["--dependency=afterok:$job_"]),
        ("paper", 2, ["UCF101_ROOT", "TED_SPAD_DATA_ROOT", "--preset miniature"]),
        ("paper --dry_run --tflops 100", 0, ["MISSING", "UCF101_ROOT", "about"]),
    ],
)
def test_a_printed_plan_touches_nothing(folder, tmp_path, options, status, expected):
    data = folder / "data" if "miniature" in options else tmp_path / "none"
    words = ("--methods", "spact", "--preset", *options.split())
    result = reproduce(*words, data=data, artefacts=tmp_path, status=status)
    text = result.stderr if status else result.stdout
    assert all(part in text for part in expected) and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


RAW = ("--preset", "miniature", "--methods", "raw", "--device", "cpu")


def test_an_interruption_names_the_command_that_goes_on(folder: Path, tmp_path: Path):
    roots = {"TED_SPAD_DATA_ROOT": str(folder / "data"), "TED_SPAD_ARTIFACT_ROOT": str(tmp_path)}
    options = {"env": os.environ | roots, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, ROOT / "reproduce.py", *RAW]
    process = subprocess.Popen(command, **options, start_new_session=True)
    assert "at scale" in process.stderr.readline() and "steps, " in process.stderr.readline()
    assert "start " in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 143 and "the same command goes on: " in text
    assert f"reproduce.py {' '.join(RAW)}" in text and "--resume" not in text


def test_failed_steps_are_named_with_status_3_and_the_report_is_written(folder, tmp_path):
    (tmp_path / "saved_models").touch()  # a file in place of the folder: every first step fails
    result = reproduce(*RAW, data=folder / "data", artefacts=tmp_path, status=3)
    failed = result.stderr.splitlines()[-1]
    assert failed.startswith("failed: ") and "; not run: " in failed
    assert (tmp_path / "results" / "report.html").is_file()


def test_every_script_runs_on_a_pretended_gpu(folder: Path, tmp_path: Path):
    """In every precision, by CUDA's rules; test_pretended_gpu.py takes steps by all losses."""
    fa = tmp_path / "saved_models" / "train_anonymizer_miniature" / "last.pth"
    fb = tmp_path / "saved_models" / "init_privacy_miniature" / "fb_ssl.pth"
    mgfn = tmp_path / "saved_models" / "main_miniature" / "mgfn_ucf_crime" / "best.pth"
    features, video = tmp_path / "features", ucf_crime.load(folder / "data" / "UCF_Crime").videos[0]
    common = "--preset miniature --device cuda"
    short = f"{common} --size 24 --max_steps 1 --validation_fraction 0.1 --batch_images 8"
    stage_1, attack = "anonymization_training", f"privacy_training/train_privacy.py {common}"
    train = f"{stage_1}/train_anonymizer.py {short} --batch_videos 2"
    release = "--alternate batches --batch_norm running --fa_batch_norm step1 --no_joint_views"
    attack = f"{attack} --size 24 --max_steps 1 --anonymizer {{fa}} --inversion_epochs 1"
    attackers = "small_vit linear_probe raw_trained inversion"
    extract = f"feature_extraction/dali_extraction.py {common} --size 24"
    detect = f"anomaly_detection_mgfn/main.py {common}"
    copy = f"visualization/anonymize_video.py {{video}} {tmp_path}"
    commands = [
        *(f"{stage_1}/init_{n}.py {short} --precision bf16" for n in ("anonymizer", "utility")),
        f"{stage_1}/init_utility.py {short} --anonymizer blur --run_id blur",
        f"{stage_1}/init_privacy.py {short} --precision bf16",
        f"{train} --precision bf16 --distillation_weight 1 --recompute_chunk 5",
        f"{train} --precision fp16 --utility_loss lltc {release} --run_id release",
        f"{stage_1}/evaluate_utility.py {common} --checkpoint {{fa}} --size 24",
        f"{attack} --precision bf16 --attackers {attackers} --probe_weights {{fb}}",
        f"{attack} --precision tf32 --level feature --utility {{fa}} --run_id feature",
        f"{extract} --precision bf16 --anonymizer {{fa}} --utility {{fa}} --output {features}",
        f"{extract} --precision fp16 --anonymizer blur --utility {{fa}} --dataset {{video}}",
        f"{detect} --precision bf16 --epochs 2 --features {features}",
        f"{detect} --score {{video}} --checkpoint {mgfn}",
        f"{copy}/copy.mp4 {common} --anonymizer {{fa}} --precision bf16",
    ]
    words = [w.format(fa=fa, fb=fb, video=video.path) for c in commands for w in (*c.split(), "+")]
    result = run_on_gpu(*words[:-1], artefacts=tmp_path, TED_SPAD_DATA_ROOT=folder / "data")
    assert "running on cuda (pretended), bf16, torch" in result.stderr
    assert "running on cpu" not in result.stderr and "cannot be folded" not in result.stderr
    assert read_json(features / "manifest.json")["device_kind"] == "cuda"
    results = read_json(tmp_path / "results" / "anomaly_ucf_crime_main_miniature.json")
    assert results["device"] == results["environment"]["device_kind"] == "cuda"
    assert results["extraction"]["precision"] == results["environment"]["precision"] == "bf16"
    assert set(results["protocols"]) == {"last", "validation", "best_on_test"}
