"""Artefacts below a temporary folder, and tasks whose script is a few lines of Python."""

from pathlib import Path

import pytest

from aux_code import config
from reproduction import warm_start
from reproduction.tasks import Task

SCRIPT = """
import pathlib, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
log = pathlib.Path(arguments["--log"])
with open(log, "a") as file:
    file.write(arguments["--name"] + (" resumed" if "--resume" in sys.argv else "") + chr(10))
time.sleep(float(arguments.get("--sleep", 0)))
if arguments.get("--status", "0") in ("0", "3"):
    text = "".join(pathlib.Path(p).read_text() for p in arguments.get("--reads", "").split(",") if p)
    pathlib.Path(arguments["--writes"]).write_text(text + arguments["--name"])
else:
    print("something went wrong here")
sys.exit(int(arguments.get("--status", "0")))
"""


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of these tests need no libraries, whose import takes seconds."""
    monkeypatch.setattr(warm_start, "LIBRARIES", ())


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder that the stages write to, and the repository root, lie in the temporary
    folder."""
    for name in ("SAVED_MODELS_ROOT", "FEATURES_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / name.removesuffix("_ROOT").lower())
    for name in ("ARTIFACT_ROOT", "REPOSITORY_ROOT"):
        monkeypatch.setattr(config, name, tmp_path)
    monkeypatch.setattr(config, "DATA_ROOT", tmp_path / "data")
    (tmp_path / "step.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture
def make_task(artifacts: Path):
    """make_task(name, needs=[tasks], **options of the script) -> Task."""

    def make(
        name: str, needs: tuple[Task, ...] = (), method: str = "raw", **options: object
    ) -> Task:
        output = artifacts / f"{name}.txt"
        reads = ",".join(str(task.outputs[0]) for task in needs)
        words = {
            "log": artifacts / "calls",
            "name": name,
            "writes": output,
            "reads": reads,
            **options,
        }
        arguments = tuple(str(word) for key, value in words.items() for word in (f"--{key}", value))
        return Task(
            name, "step.py", method, 0, arguments, outputs=(output,),
            inputs=tuple(task.outputs[0] for task in needs), needs=tuple(task.name for task in needs),
        )  # fmt: skip

    return make


@pytest.fixture
def calls(artifacts: Path):
    """calls() -> names of the steps in the order in which their processes began."""
    return lambda: (
        (artifacts / "calls").read_text().splitlines() if (artifacts / "calls").exists() else []
    )
