"""Commands that tests run in other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EACH = """
import contextlib, io, json, runpy, sys
answers = []
for script, words in json.loads(sys.argv[1]):
    sys.argv = [script.removeprefix("-m "), *words]
    run = runpy.run_module if script.startswith("-m ") else runpy.run_path
    out, status = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            run(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
    answers.append([status, out.getvalue()])
print(json.dumps(answers))
"""


def python(*words: str | Path, status: int = 0, cwd: Path = ROOT, **variables: str | Path):
    """What Python prints with these words and environment variables; it must end so."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in variables.items()}
    options = {"cwd": cwd, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run([sys.executable, *map(str, words)], **options)
    assert result.returncode == status, result.stderr[-3000:]
    return result


def answers(commands: list[tuple[str, list[str]]], **options) -> tuple[list[tuple[int, str]], str]:
    """(exit status, standard output) of each script or `-m module`, and what they all logged. They
    share a process, since each would spend seconds on importing PyTorch."""
    result = python("-c", EACH, json.dumps(commands), **options)
    return json.loads(result.stdout.splitlines()[-1]), result.stderr
