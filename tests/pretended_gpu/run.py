"""Runs a script as if this machine had a GPU:

    python tests/pretended_gpu/run.py SCRIPT ARGUMENTS --device cuda

See device.py for what holds there. The last line on stderr counts operations and syncs: how often
the host waited for the device.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import device

if __name__ == "__main__":
    device.install()
    script = str(Path(sys.argv[1]).resolve())
    sys.argv = sys.argv[1:]
    sys.path[:1] = [os.path.dirname(script), os.getcwd()]
    atexit.register(lambda: sys.stderr.write(f"pretended GPU: {device.COUNTS}\n"))
    runpy.run_path(script, run_name="__main__")
