"""A stage in small: copies what it reads; waits, fails, is killed or interrupted like one."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aux_code import config
from aux_code.artefacts import Recipe, recipe
from aux_code.checkpoints import read_json, write_json
from aux_code.parameters import CommonParams, by_content, free, parse
from aux_code.runs import run_folder, run_script
from aux_code.training_state import TrainingState, is_finished


@dataclass(frozen=True, kw_only=True)
class ToyParams(CommonParams):
    reads: tuple[Path, ...] = by_content(())
    value: int = 0
    n_workers: int = free(0)
    steps: int = 1
    nap: float = free(0.0)
    busy: float = free(0.0)
    status: int = free(0)
    took: float = free(0.0)


PRESETS = {"paper": ToyParams(), "miniature": ToyParams(), "changed": ToyParams(value=1)}


def made_of(params: ToyParams) -> Recipe:
    return recipe(params, {str(i): path for i, path in enumerate(params.reads)})


def main() -> int:
    params = parse(PRESETS)
    made, folder = made_of(params), run_folder(params, "toy")
    output, state_path = folder / "out.json", folder / "toy_state.pth"
    with open(config.ARTIFACT_ROOT / "calls", "a") as calls:
        calls.write(params.run_id + (" resumed" if params.resume else "") + "\n")
    if is_finished(output, state_path, made, params):
        return 0
    state = TrainingState(state_path, made, {}, minutes=0)
    position = state.restore(params.resume) or {"step": 0}
    for i in range(position["step"], params.steps):
        time.sleep(params.nap)
        state.save({"step": i + 1})
        sys.stderr.write(f"saved {i + 1}\n")
    while sum(os.times()[:2]) < params.busy:
        pass
    if params.status < 0:
        os.kill(os.getpid(), -params.status)
    if params.status not in (0, 3):
        sys.stderr.write("something went wrong here\n")
        return params.status
    text = "".join(read_json(path)["text"] for path in params.reads) + params.run_id
    write_json(output, {**vars(made), "text": text, "seconds": params.took})
    state.finish()
    return params.status


if __name__ == "__main__":
    run_script(main)
