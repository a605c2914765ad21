"""Runs scripts with --help in forks, which share heavy imports, and without the paths that an
installation added: help_probe.py REPOSITORY FOREIGN_FOLDER SCRIPT... prints their complaints."""

import io
import json
import multiprocessing
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
    places = {}
    for script in scripts:
        path = repository / script
        own = ((repository, script), (path.parent, path.name), (foreign, str(path)))
        places |= {f"{script}|{folder}": (repository, folder, name) for folder, name in own}
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return dict(zip(places, pool.starmap(complaint_of, places.values(), chunksize=1)))


def complaint_of(repository: Path, folder: Path, script: str) -> str:
    os.chdir(folder)
    known = {repository, Path(__file__).parent}
    sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in known]
    finders = [(f, getattr(f, "__module__", repr(f))) for f in sys.meta_path]
    sys.meta_path[:] = [f for f, module in finders if "__editable__" not in module]
    sys.path.insert(0, str((folder / script).resolve().parent))
    sys.argv = [script, "--help"]
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            return f"exit status {end.code}"
    except BaseException:
        return traceback.format_exc()
    if not ("--preset" in text.getvalue() or "--anonymizer" in text.getvalue()):
        return "prints no usage"
    touched = {"CUDA": torch.cuda.is_initialized(), "DALI": "nvidia.dali" in sys.modules}
    return ", ".join(name for name, is_touched in touched.items() if is_touched)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
