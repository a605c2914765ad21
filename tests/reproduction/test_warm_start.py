"""Steps that start as copies of a process: they must be what `python SCRIPT` would have been."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aux_code.errors import UserError
from reproduction import warm_start
from reproduction.warm_start import StepServer

REPORT = """
import atexit, json, os, signal, sys, threading
atexit.register(lambda: print("left", flush=True))
print(json.dumps({
    "argv": sys.argv, "name": __name__, "path": sys.path[0], "value": os.environ.get("STEP_VALUE"),
    "leader": os.getpgrp() == os.getpid(), "torch": "fractions" in sys.modules, "threads": threading.active_count(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "project": "aux_code" in sys.modules,
}))
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def server():
    server = StepServer({"STEP_SERVER": "yes"})
    yield server
    server.close()


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def test_a_step_is_what_python_would_have_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(warm_start, "LIBRARIES", ("fractions", "a_library_that_nobody_has"))
    script = write(tmp_path / "a step.py", REPORT)
    output = tmp_path / "log"
    output.write_text("first line\n")
    for status in (0, 3, 1):
        step = server.start(
            [sys.executable, str(script), str(status)], str(output), {"STEP_VALUE": "7"}
        )
        assert step.cpu_seconds is None
        assert step.wait(timeout=30) == status == step.returncode
        assert 0 < step.cpu_seconds < 5
    lines = output.read_text().splitlines()
    assert lines[0] == "first line" and lines.count("left") == 3, (
        "exit handlers run, output is kept"
    )
    said = json.loads(lines[1])
    assert (
        said["argv"] == [str(script), "0"]
        and said["name"] == "__main__"
        and said["path"] == str(tmp_path)
    )
    assert said["value"] == "7" and said["leader"] and said["interrupt"] and said["threads"] == 1
    assert said["torch"] and not said["project"], "libraries are there, nothing of the project is"
    assert "STEP_VALUE" not in os.environ


def test_modules_run_too(server, tmp_path):
    step = server.start([sys.executable, "-m", "json.tool", "--help"], str(tmp_path / "log"), {})
    assert step.wait(timeout=30) == 0 and "usage" in (tmp_path / "log").read_text()


def test_an_uncaught_error_shows_its_traceback(server, tmp_path):
    script = write(tmp_path / "bad.py", "raise ValueError('this went wrong')")
    step = server.start([sys.executable, str(script)], str(tmp_path / "log"), {})
    assert step.wait(timeout=30) == 1 and "this went wrong" in (tmp_path / "log").read_text()


def test_steps_run_side_by_side_and_end_by_signals(server, tmp_path):
    script = write(tmp_path / "sleeps.py", "import time; time.sleep(60)")
    steps = [
        server.start([sys.executable, str(script)], str(tmp_path / "log"), {}) for _ in range(2)
    ]
    assert len({step.pid for step in steps}) == 2 and all(step.poll() is None for step in steps)
    with pytest.raises(subprocess.TimeoutExpired):
        steps[0].wait(timeout=0.1)
    os.killpg(steps[0].pid, signal.SIGKILL)
    os.killpg(steps[1].pid, signal.SIGTERM)
    assert [step.wait(timeout=30) for step in steps] == [-signal.SIGKILL, -signal.SIGTERM]


def test_steps_outlive_their_server_and_keep_what_it_was_given(tmp_path):
    """As with plain processes: a lock that a killed reproduce.py held is held until its last step
    has ended."""
    reading, writing = os.pipe()
    server = StepServer({}, kept_open=(writing,))
    marker = tmp_path / "end"
    script = write(
        tmp_path / "slow.py", f"import time; time.sleep(1); open({str(marker)!r}, 'w').close()"
    )
    server.start([sys.executable, str(script)], str(tmp_path / "log"), {})
    server.close()
    os.close(writing)
    assert os.read(reading, 1) == b"" and marker.exists(), (
        "the pipe's other end closed with the step, not before"
    )
    os.close(reading)


def test_a_server_that_dies_is_named(server, tmp_path):
    script = write(tmp_path / "short.py", "pass")
    server.start([sys.executable, str(script)], str(tmp_path / "log"), {}).wait(timeout=30)
    server.process.kill()
    server.process.wait()
    with pytest.raises(UserError, match="status -9"):
        server.start([sys.executable, str(script)], str(tmp_path / "log"), {})
