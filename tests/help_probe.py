"""Runs entry scripts with --help in forked children, so that the heavy libraries are imported once.

Usage: help_probe.py REPOSITORY FOREIGN_FOLDER SCRIPT...; prints one JSON object {"script|folder":
complaint or ""}. Each child forgets every path to the repository that an installation put on the
module path: the scripts have to work in an uninstalled clone, by their own preamble.
"""

import io
import json
import os
import runpy
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.figure  # noqa: F401 imported before the fork, to save time in every child
import numpy  # noqa: F401
import PIL.Image  # noqa: F401
import torch
import torchvision  # noqa: F401
import tyro  # noqa: F401


def main(repository: Path, foreign: Path, scripts: list[str]) -> dict[str, str]:
    """Every script from its own folder, from the repository's root and from a foreign folder."""
    results = {}
    for script in scripts:
        path = repository / script
        places = ((repository, script), (path.parent, path.name), (foreign, str(path)))
        for folder, argument in places:
            results[f"{script}|{folder}"] = in_child(repository, folder, argument)
    return results


def in_child(repository: Path, folder: Path, script: str) -> str:
    """Forks, runs the script there, and returns the child's complaint."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            complaint = run_help(repository, folder, script)
        except BaseException:
            complaint = traceback.format_exc()
        os.write(write_end, complaint.encode()[-60000:])
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        complaint = pipe.read().decode()
    os.waitpid(child, 0)
    return complaint


def run_help(repository: Path, folder: Path, script: str) -> str:
    """What python SCRIPT --help does in a folder, in this process."""
    os.chdir(folder)
    known = {repository, Path(__file__).parent}
    sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in known]
    finders = [(f, getattr(f, "__module__", repr(f))) for f in sys.meta_path]
    sys.meta_path[:] = [f for f, module in finders if "__editable__" not in module]
    sys.path.insert(0, str((folder / script).resolve().parent))
    sys.argv = [script, "--help"]
    text, status = io.StringIO(), None
    with redirect_stdout(text):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code
    if status not in (0, None):
        return f"exit status {status}"
    if "--preset" not in text.getvalue() and "--anonymizer" not in text.getvalue():
        return "prints no usage"
    if torch.cuda.is_initialized():
        return "touches CUDA"
    if "nvidia.dali" in sys.modules:
        return "imports DALI"
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
