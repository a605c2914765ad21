"""Runs scripts as if this machine had a GPU:

    python tests/pretended_gpu/run.py SCRIPT ARGUMENTS --device cuda [+ SCRIPT ARGUMENTS ...]

See device.py for what holds there. The last line on stderr counts operations and syncs: how often
the host waited for the device. Processes that a script starts have no such GPU.
"""

import atexit
import os
import runpy
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


if __name__ == "__main__":
    device.install()
    atexit.register(lambda: sys.stderr.write(f"pretended GPU: {device.COUNTS}\n"))
    sys.path.insert(1, os.getcwd())
    main(sys.argv[1:])
