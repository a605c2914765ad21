"""Copies of the fork server and plain children: both are what `python SCRIPT` would have been."""

import json
import os
import signal
import sys
import textwrap
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from reproduction import processes
from reproduction.processes import Command, ForkedProcess, PlainProcess, stop

REPORT = """
import atexit, json, multiprocessing, os, signal, sys, threading
atexit.register(lambda: print("left", flush=True))
print(json.dumps({
    "argv": sys.argv, "name": __name__, "path": sys.path[0], "value": os.environ.get("STEP_VALUE"),
    "leader": os.getsid(0) == os.getpid(), "threads": threading.active_count(),
    "folder": os.getcwd(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "project": "aux_code" in sys.modules, "start": multiprocessing.get_start_method(),
    "ps": open("/proc/self/comm").read().strip(),
}))
while sum(os.times()[:2]) < 0.3: pass
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(params=[ForkedProcess, PlainProcess])
def start(request, tmp_path, monkeypatch):
    """start(words) -> a process whose output goes to tmp_path/log; `start.reading` ends with it."""
    monkeypatch.setattr(processes, "PRELOADED", ("torch", "numpy", "tyro", "a_library_nobody_has"))
    reading, writing = os.pipe()
    environment = {**os.environ, "STEP_VALUE": "7"}
    (tmp_path / "log").touch()
    log = str(tmp_path / "log")

    def run(*words):
        command = Command([*map(str, words)], str(tmp_path), log, environment, run.kept)
        return request.param(command)

    run.reading, run.kept = Connection(reading, writable=False), Connection(writing, readable=False)
    yield run
    for connection in (run.reading, run.kept):
        connection.close()


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def wait(process) -> int:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.poll()


def test_a_step_is_what_python_would_have_run(start, tmp_path):
    write(tmp_path / "a step.py", REPORT)
    (tmp_path / "log").write_text("first line\n")
    for status in (0, 3, 1):
        process = start("a step.py", status)
        assert process.cpu_seconds is None
        assert wait(process) == status and 0.2 < process.cpu_seconds < 20
    first, *lines = (tmp_path / "log").read_text().splitlines()
    assert first == "first line" and lines.count("left") == 3, "exit handlers run, output is kept"
    said = json.loads(lines[0])
    assert said["argv"][0].endswith("a step.py") and said["argv"][1:] == ["0"]
    assert said["path"] in ("", str(tmp_path)) and said["folder"] == str(tmp_path)
    assert said["name"] == "__main__" and said["value"] == "7" and said["leader"]
    assert said["interrupt"] and said["threads"] == 1 and said["start"] == "fork"
    assert not said["project"], "its paths come from the environment of the step"
    assert said["ps"] in ("a step.py", Path(sys.executable).resolve().name, "python")
    assert "STEP_VALUE" not in os.environ


def test_modules_run_too_and_an_uncaught_error_shows_its_traceback(start, tmp_path):
    assert wait(start("-m", "json.tool", "--help")) == 0
    assert "usage" in (tmp_path / "log").read_text()
    write(tmp_path / "bad.py", "raise ValueError('this went wrong')")
    assert wait(start("bad.py")) == 1 and "this went wrong" in (tmp_path / "log").read_text()


def test_steps_run_side_by_side_and_end_by_signals(start, tmp_path):
    script = write(tmp_path / "sleeps.py", "import time; print('up', flush=True); time.sleep(60)")
    running = [start(script.name) for _ in range(2)]
    assert len({process.pid for process in running}) == 2
    assert [process.poll() for process in running] == [None, None]
    os.killpg(running[0].pid, signal.SIGKILL)
    assert wait(running[0]) == -signal.SIGKILL and running[1].poll() is None
    stop(running[1:], seconds=20)
    assert running[1].poll() == -signal.SIGTERM


def test_what_does_not_leave_is_killed_with_its_children(start, tmp_path):
    text = """
        import os, signal, time
        os.fork()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(60)
    """
    process = start(write(tmp_path / "stays.py", text).name)
    while len((tmp_path / "log").read_text().split()) < 2:
        time.sleep(0.02)
    stop([process], seconds=0.2)
    assert process.poll() == -signal.SIGKILL
    for pid in (tmp_path / "log").read_text().split():
        state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 20
        while state.exists() and state.read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_lock_is_held_until_the_last_step_has_ended(start, tmp_path):
    """As long as a step of a killed reproduce.py works, nobody else may."""
    marker = tmp_path / "end"
    start(
        write(tmp_path / "slow.py", f"import time; time.sleep(1); open({str(marker)!r}, 'w')").name
    )
    start.kept.close()
    with pytest.raises(EOFError):
        start.reading.recv()
    assert marker.exists(), "the pipe's other end closed with the step, not before"


def test_a_killed_server_is_replaced_and_its_step_has_failed(tmp_path, start):
    if not isinstance(start("-c", "pass"), ForkedProcess):
        pytest.skip("plain processes have no server")
    running = start(write(tmp_path / "slow.py", "import time; time.sleep(60)").name)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert wait(running) == 255
    stop([running], seconds=20)
    assert wait(start(write(tmp_path / "short.py", "pass").name)) == 0
