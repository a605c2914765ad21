"""Stage 4: trains MGFN on the features of stage 3 and evaluates it per frame; or scores a video.

python main.py --dataset ucf_crime --features DIR            train, then results/anomaly_<dataset>_<run_id>.json
python main.py --seeds 0 1 2                                 several trainings: ..._seeds.json, mean and deviation
python main.py --eval_only --checkpoint PATH                 evaluate a checkpoint (--pretrained_ckpt: a published one)
python main.py --score VIDEO --checkpoint PATH               frame scores, intervals and a plot of a video or a folder
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly_detection_mgfn.evaluation import evaluate_checkpoint, evaluate_choices, results_path
from anomaly_detection_mgfn.mgfn_files import build_network, network_arguments
from anomaly_detection_mgfn.mil_training import MilTraining
from anomaly_detection_mgfn.params_mgfn import PRESETS, MgfnParams
from anomaly_detection_mgfn.seed_series import runs_of_seeds, write_seeds
from anomaly_detection_mgfn.stage_data import dataset_label, load_training_data, open_features
from aux_code.checkpoints import read_json
from aux_code.parameters import parse
from aux_code.runs import run_script, start_run

log = logging.getLogger(__name__)


def main() -> int:
    """Trains and evaluates, or does one of the other two things the options ask for."""
    started = time.monotonic()
    params = parse(PRESETS, description=__doc__)
    if params.score:
        # pictures and the networks of the other stages: half of the start-up time, needed here only
        from anomaly_detection_mgfn.score_video import score_command

        return score_command(params)
    if params.eval_only:
        params = replace(params, run_id=params.run_id or f"main_{params.preset}_eval_only")
        return evaluate_checkpoint(
            params, start_run(params, f"main_{dataset_label(params.dataset)}"), started
        )
    params = replace(params, run_id=params.run_id or f"main_{params.preset}")
    if params.seeds:
        write_seeds(params, [train(own) for own in runs_of_seeds(params)])
    else:
        train(params)
    return 0


def train(params: MgfnParams) -> dict:
    """One training with its evaluation; returns what its results file holds."""
    started, label = time.monotonic(), dataset_label(params.dataset)
    source = open_features(params)
    run = start_run(params, f"main_{label}")
    net = build_network(network_arguments(params, source.feature_dim)).to(run.device)
    training = MilTraining(params, net, run, run.folder / f"mgfn_{label}")
    path = results_path(params)
    if path.is_file() and training.is_complete():
        log.info("%s is complete; nothing to resume", path)
        return read_json(path)
    data = load_training_data(params, source, run)
    training.restore()
    training.train(data.bags, data.held_out)
    content = evaluate_choices(training, data, started)
    training.state.finish()
    return content


if __name__ == "__main__":
    run_script(main)
