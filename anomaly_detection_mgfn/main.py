"""Stage 4: trains MGFN on the features of stage 3 and evaluates it per frame; or scores a video.

python main.py --dataset ucf_crime --features DIR     results/anomaly_<dataset>_<run_id>.json
python main.py --seeds 0 1 2                          several trainings: ..._seeds.json
python main.py --eval_only --checkpoint PATH          evaluate (--pretrained_ckpt: a published one)
python main.py --score VIDEO --checkpoint PATH        frame scores, intervals and a plot of a video
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly_detection_mgfn.evaluation import (
    evaluate_checkpoint,
    evaluate_choices,
    keep_training,
    results_path,
    write_seeds,
)
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import network_arguments
from anomaly_detection_mgfn.mil_training import STATE, MilTraining
from anomaly_detection_mgfn.params_mgfn import PRESETS, MgfnParams, dataset_label
from anomaly_detection_mgfn.stage_data import (
    label_videos,
    load_training_data,
    open_features,
    recipe_of,
)
from aux_code.checkpoints import read_json
from aux_code.parameters import parse
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import is_finished


def main() -> int:
    """Trains and evaluates, or does one of the other two things the options ask for."""
    params = parse(PRESETS, description=__doc__)
    if params.score:
        # the networks of the other stages: half of the start-up time, needed here only
        from anomaly_detection_mgfn.score_video import score_command

        return score_command(params)
    kind = "_eval_only" if params.eval_only else ""
    params = replace(params, run_id=params.run_id or f"main_{params.preset}{kind}")
    if params.eval_only:
        keep_training(params)
        evaluate_checkpoint(params, start_run(params, f"main_{dataset_label(params.dataset)}"))
    elif params.seeds:
        runs = [
            replace(params, seeds=(), seed=seed, run_id=f"{params.run_id}_s{seed}")
            for seed in params.seeds
        ]
        write_seeds(params, [train(own) for own in runs])
    else:
        train(params)
    return 0


def train(params: MgfnParams) -> dict[str, Any]:
    """One training with its evaluation; returns what its results file holds."""
    label = dataset_label(params.dataset)
    source = open_features(params)
    recipe = recipe_of(params, source)
    folder = run_folder(params, "main") / f"mgfn_{label}"
    if is_finished(results_path(params), folder / STATE, recipe, params):
        return read_json(results_path(params))
    run = start_run(params, f"main_{label}")
    net = MGFN(**network_arguments(params, source.feature_dim)).to(run.device)
    training = MilTraining(params, net, run, folder, recipe)
    videos = label_videos(params, source)
    data = load_training_data(params, source, videos, run.device)
    run.write_parameters(params)
    training.train(data)
    content = evaluate_choices(training, data, source, videos)
    training.state.finish()
    return content


if __name__ == "__main__":
    run_script(main)
