"""Runs scripts as if this machine had a GPU:

    python tests/pretended_gpu/run.py SCRIPT ARGUMENTS --device cuda [+ SCRIPT ARGUMENTS ...]

See device.py for what holds there. The last line on stderr counts operations and syncs: how often
the host waited for the device. What a script starts by subprocess.run runs inside its process.
"""

import atexit
import os
import runpy
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import device


def main(words: list[str]) -> None:
    end = words.index("+") if "+" in words else len(words)
    sys.argv, rest = words[:end], words[end + 1 :]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ending:
        if ending.code:
            raise
    if rest:
        main(rest)


def run_inside(command: list[str], run=subprocess.run, **options) -> subprocess.CompletedProcess:
    """subprocess.run, but of Python in this process: another one would have no such GPU."""
    if command[0] != sys.executable:
        return run(command, **options)
    before, status = (sys.argv, list(sys.path)), 0
    try:
        main(command[1:])
    except SystemExit as ending:
        status = ending.code
    sys.argv, sys.path[:] = before
    return subprocess.CompletedProcess(command, status)


if __name__ == "__main__":
    device.install()
    atexit.register(lambda: sys.stderr.write(f"pretended GPU: {device.COUNTS}\n"))
    sys.path.insert(1, os.getcwd())
    subprocess.run = run_inside
    sys.modules["nvidia.dali"] = None  # it would look for a real one
    main(sys.argv[1:])
