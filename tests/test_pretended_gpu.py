"""Scripts on a GPU that is none (tests/pretended_gpu): CUDA's rules without its kernels."""

import json
from pathlib import Path

import pytest
import torch

from tests.anomaly_detection_mgfn.conftest import make_small_set
from tests.commands import ROOT, python

FOLDER = ROOT / "tests" / "pretended_gpu"


def run(*command: str | Path, artefacts: Path, **more: str | Path):
    if not torch.__version__.startswith("2.14."):
        pytest.skip("the pretended GPU fits torch 2.14")
    return python(FOLDER / "run.py", *command, TED_SPAD_ARTIFACT_ROOT=artefacts, **more)


def test_the_pretended_gpu_keeps_cudas_rules(tmp_path: Path):
    result = run(FOLDER / "self_test.py", artefacts=tmp_path)
    found = json.loads(result.stdout)
    assert found["device"] == "cuda:0" and found["parameters"] == 2
    bf16, fp32 = "bfloat16", "float32"
    lower = dict.fromkeys(("matmul", "conv", "mean"), bf16)
    others = ("softmax", "add", "sum", "exp", "cross_entropy", "scatter_add")
    assert found["dtypes"] == lower | dict.fromkeys(others, fp32)
    refused = found["refused"]
    assert "unsafe to autocast" in refused.pop("binary_cross_entropy")
    assert "numpy" in refused.pop("numpy")
    assert all("same device" in message for message in refused.values()), refused
    assert not any(found["allowed"].values()), found["allowed"]
    waits = {"item": 1, "cpu": 1, "bool": 1, "nonzero": 1, "mask": 1, "tolist": 1}
    assert found["syncs"] == {**waits, "to the GPU": 0, "sum": 0}
    on_gpu, on_cpu = found["losses"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5) and on_gpu[3] < on_gpu[0]
    assert "pretended GPU: " in result.stderr.splitlines()[-1]


def test_stage_4_trains_and_evaluates_in_bf16(tmp_path: Path):
    """CUDA's autocast forbids F.binary_cross_entropy: the losses are computed outside of it."""
    small = make_small_set(tmp_path)
    options = ["--preset", "miniature", "--device", "cuda", "--precision", "bf16", "--run_id", "a"]
    options += ["--dataset", small.dataset, "--features", small.features, "--epochs", "2"]
    run("anomaly_detection_mgfn/main.py", *options, artefacts=tmp_path)
    results = json.loads((tmp_path / "results" / "anomaly_own_a.json").read_text())
    assert results["device"] == "cuda"
    assert set(results["protocols"]) == {"last", "validation", "best_on_test"}
