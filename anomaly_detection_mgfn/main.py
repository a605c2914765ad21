"""Stage 4: trains MGFN on the features of stage 3 and evaluates it per frame; or scores a video.

python main.py --dataset ucf_crime --features DIR            train, then results/anomaly_<dataset>_<run_id>.json
python main.py --eval_only --checkpoint PATH                 evaluate a checkpoint (--pretrained_ckpt: a published one)
python main.py --score VIDEO --checkpoint PATH               frame scores, intervals and a plot of a video or a folder
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly_detection_mgfn.evaluation import evaluate_checkpoint, evaluate_choices
from anomaly_detection_mgfn.mgfn_files import build_network, network_arguments
from anomaly_detection_mgfn.mil_training import MilTraining
from anomaly_detection_mgfn.params_mgfn import PRESETS
from anomaly_detection_mgfn.stage_data import dataset_label, load_training_data, open_features
from aux_code.parameters import parse
from aux_code.runs import run_script, start_run


def main() -> int:
    """Trains and evaluates, or does one of the other two things the options ask for."""
    started = time.monotonic()
    params = parse(PRESETS, description=__doc__)
    if params.score:
        # pictures and the networks of the other stages: half of the start-up time, needed here only
        from anomaly_detection_mgfn.score_video import score_command

        return score_command(params)
    label = dataset_label(params.dataset)
    if params.eval_only:
        params = replace(params, run_id=params.run_id or f"main_{params.preset}_eval_only")
        return evaluate_checkpoint(params, start_run(params, f"main_{label}"), started)
    params = replace(params, run_id=params.run_id or f"main_{params.preset}")
    source = open_features(params)
    run = start_run(params, f"main_{label}")
    data = load_training_data(params, source, run)
    net = build_network(network_arguments(params, source.feature_dim)).to(run.device)
    training = MilTraining(params, net, run, run.folder / f"mgfn_{label}")
    training.restore()
    training.train(data.bags, data.held_out)
    evaluate_choices(training, data, started)
    training.state.finish()
    return 0


if __name__ == "__main__":
    run_script(main)
