"""Measures how well f_T recognises the actions of UCF101's test list 1, raw or anonymized.

    python evaluate_utility.py --checkpoint last.pth --anonymizer last.pth

Writes results/utility_<run_id>.json. Checkpoints of this stage and published ones are taken; the
release states 75.04 % for its f_T on videos that its f_A has anonymized.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anonymization_training.params_anonymization import EVALUATE_UTILITY, made_of
from anonymization_training.person_detection import find_people
from anonymization_training.validation import N_CLIPS, recognition_accuracy, require_fitting
from aux_code import config
from aux_code.checkpoints import read_json, write_json
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.ucf101 import Ucf101
from aux_code.distributed import is_main
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.parameters import parse
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import is_finished


def main(argv: list[str] | None = None) -> None:
    """Loads, evaluates, writes the result and prints it in a line."""
    params = parse(EVALUATE_UTILITY, argv, __doc__)
    if not params.checkpoint:
        raise UserError("--checkpoint: give the file of an f_T, such as last.pth")
    recipe, folder = made_of(params), run_folder(params, "evaluate_utility")
    output = config.RESULTS_ROOT / f"utility_{folder.name}.json"
    if not is_finished(output, folder / "none", recipe, params):
        run, started = start_run(params, "evaluate_utility"), time.monotonic()
        ft, anonymizer = load_utility(params.checkpoint), load_anonymizer(params.anonymizer)
        videos = Ucf101(config.UCF101_ROOT, train=False)
        require_fitting(ft, params, videos.num_classes, f"--checkpoint {params.checkpoint}")
        ft, anonymizer = ft.to(run.device), anonymizer.to(run.device)
        run.write_parameters(params)
        paths = [video.path for video in videos]
        people = find_people(params, paths, run.device) if anonymizer.requires_boxes else None
        cache = DecodedCache(0)
        found = recognition_accuracy(ft, anonymizer, videos, cache, params, run.device, people)
        result = {"run_id": run.run_id, **found._asdict(), "clips_per_video": N_CLIPS}
        result |= {"list": "testlist01", **asdict(recipe), "parameters": asdict(params)}
        result |= {"device": str(run.device), "seconds": time.monotonic() - started}
        if is_main():
            write_json(output, result)
    if is_main():
        result = read_json(output)
        counts = f"{result['n_videos']:,} videos of testlist01, {N_CLIPS} clips each"
        sys.stdout.write(f"{output}: top-1 {result['top1']:.4f} on {counts}\n")


if __name__ == "__main__":
    run_script(main)
