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
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "project": "aux_code" in sys.modules, "start": multiprocessing.get_start_method(),
    "folder": os.getcwd(), "ps": open("/proc/self/comm").read().strip(),
}))
while sum(os.times()[:2]) < 0.3: pass
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(params=[ForkedProcess, PlainProcess])
def start(request, tmp_path, monkeypatch):
    """start(text of a script, words) -> process; start.log is its output."""
    monkeypatch.setattr(processes, "PRELOADED", ("torch", "numpy", "tyro", "a_library_nobody_has"))
    reading, writing = os.pipe()
    environment = {**os.environ, "STEP_VALUE": "7"}

    def run(text, *words):
        (tmp_path / "a step.py").write_text(textwrap.dedent(text))
        words = ("a step.py" if text else "-m", *words)
        return run.kind(Command(words, str(tmp_path), str(run.log), environment, run.kept))

    run.kind, run.log = request.param, tmp_path / "log"
    run.log.touch()
    run.reading, run.kept = Connection(reading, writable=False), Connection(writing, readable=False)
    with run.reading, run.kept:
        yield run


def wait(process) -> int:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.poll()


def test_a_step_is_what_python_would_have_run(start, tmp_path):
    start.log.write_text("first line\n")
    for status in (0, 3, 1):
        process = start(REPORT, str(status))
        assert process.cpu_seconds is None
        assert wait(process) == status and 0.2 < process.cpu_seconds < 20
    first, *lines = start.log.read_text().splitlines()
    assert first == "first line" and lines.count("left") == 3, "exit handlers run, output is kept"
    said = json.loads(lines[0])
    assert said["argv"][0].endswith("a step.py") and said["argv"][1:] == ["0"]
    assert said["path"] in ("", str(tmp_path)) and said["folder"] == str(tmp_path)
    assert said["name"] == "__main__" and said["value"] == "7" and said["leader"]
    assert said["interrupt"] and said["threads"] == 1 and said["start"] == "fork"
    assert not said["project"], "its paths come from the environment of the step"
    assert said["ps"] in ("a step.py", Path(sys.executable).resolve().name, "python")
    assert "STEP_VALUE" not in os.environ
    module = start("", "json.tool", "--help")
    assert wait(module) == 0 and "usage" in start.log.read_text()
    assert wait(start("raise ValueError('this went wrong')")) == 1
    assert "this went wrong" in start.log.read_text()


def test_steps_run_side_by_side_end_by_signals_and_hold_a_lock_until_the_last_one(start):
    """As long as a step of a killed reproduce.py works, nobody else may."""
    killed, stopped = (start("import time; time.sleep(60)") for _ in range(2))
    start.kept.close()
    assert killed.pid != stopped.pid and killed.poll() is stopped.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    assert wait(killed) == -signal.SIGKILL and stopped.poll() is None
    assert not start.reading.poll(), "the pipe's other end is open"
    stop([stopped], seconds=20)
    assert stopped.poll() == -signal.SIGTERM
    with pytest.raises(EOFError):
        start.reading.recv()


def test_what_does_not_leave_is_killed_with_its_children(start):
    process = start("""
        import os, signal, time
        os.fork()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(60)
    """)
    while len(start.log.read_text().split()) < 2:
        time.sleep(0.02)
    stop([process], seconds=0.2)
    assert process.poll() == -signal.SIGKILL
    for pid in start.log.read_text().split():
        state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 20
        while state.exists() and state.read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_killed_server_is_replaced_and_its_step_has_failed(start):
    if start.kind is PlainProcess:
        pytest.skip("plain processes have no server")
    running = start("import time; time.sleep(60)")
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert wait(running) == 255
    stop([running], seconds=20)
    assert wait(start("pass")) == 0
