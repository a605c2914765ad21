"""Artefacts below a temporary folder, and steps whose script is a stage in small."""

from pathlib import Path

import pytest

from aux_code import config
from reproduction import plan, processes
from reproduction.plan import Stage, Step
from tests.reproduction import toy_step


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder that the stages read from and write to lies in the temporary folder."""
    for name in ("SAVED_MODELS", "FEATURES", "RESULTS", "LOGS", "DATA"):
        monkeypatch.setattr(config, f"{name}_ROOT", tmp_path / name.lower())
    for name in ("UCF101", "VISPR", "UCF_CRIME", "XD_VIOLENCE", "SHANGHAITECH"):
        folder = getattr(config, f"{name}_ROOT").name
        monkeypatch.setattr(config, f"{name}_ROOT", tmp_path / "data" / folder)
    monkeypatch.setattr(config, "ARTIFACT_ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def make_step(artifacts: Path, monkeypatch: pytest.MonkeyPatch):
    """make_step(name, needs=[steps], **options of the toy) -> Step."""
    script, presets = "tests/reproduction/toy_step.py", toy_step.PRESETS
    monkeypatch.setitem(plan.STAGES, "toy", Stage(script, "toy", presets, toy_step.made_of))
    monkeypatch.setattr(processes, "PRELOADED", ("torch", "numpy", "tyro"))

    def make(name: str, needs: tuple[Step, ...] = (), **options) -> Step:
        folder = config.SAVED_MODELS_ROOT / name
        reads = [str(step.outputs[0]) for step in needs]
        options = {"preset": "miniature", "run_id": name, **options}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        words += ["--reads", *reads] if reads else []
        return Step(
            name, "toy", "miniature", 0, tuple(words),
            outputs=(folder / "out.json",), state=folder / "toy_state.pth",
            needs=tuple(step.name for step in needs),
            environment={"TED_SPAD_ARTIFACT_ROOT": str(artifacts), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return make


@pytest.fixture
def calls(artifacts: Path):
    """calls() -> run ids of the steps in the order in which their processes began."""
    path = artifacts / "calls"
    return lambda: path.read_text().splitlines() if path.exists() else []
