"""Initialises the privacy (budget) network f_B: NT-Xent on two views of VISPR images, without
labels.

Writes <run>/fb_ssl.pth, which train_anonymizer.py finds by default. The release lacks this script.
"""

import sys
from pathlib import Path

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anonymization_training.initialisation import contrastive_step
from anonymization_training.minimax import Updater
from anonymization_training.params_anonymization import INIT_PRIVACY
from anonymization_training.step_loop import StepLoop, finish, planned_steps
from anonymization_training.training_batches import image_source
from aux_code import config
from aux_code.artefacts import build_meta
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.vispr import Vispr
from aux_code.devices import prepare_for_training
from aux_code.model_loaders import load_fb_model
from aux_code.parameters import parse
from aux_code.runs import run_script, start_run
from aux_code.training_state import TrainingState, detached_copy


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, saves; the quality is the NT-Xent accuracy of the last epoch."""
    params = parse(INIT_PRIVACY, argv, __doc__)
    run = start_run(params, "init_privacy")
    fb = prepare_for_training(load_fb_model(params.fb_arch, ssl=True), run.device)
    updater = Updater(fb, params.learning_rate, params.precision, run.device, gradient_clip=0.0)
    output = run.folder / "fb_ssl.pth"
    state = TrainingState(run.folder / "fb_ssl_state.pth", vars(params), {"fb": fb, "updater": updater},
                          params.minutes_between_saves)  # fmt: skip
    if state.is_complete(output, params.resume):
        return
    cache = DecodedCache(params.cache_megabytes * 2**20)
    images = image_source(
        Vispr(config.VISPR_ROOT, "train", load_labels=False), cache, params, run.folder
    )
    n_steps = planned_steps(params, images.steps_per_epoch)
    position = state.restore(params.resume) or {"step": 0}

    def keep_quality(position: dict, means: dict[str, float]) -> None:
        position["nt_xent_accuracy"] = means["contrast/accuracy"]

    loop = StepLoop(
        run, params, state, [updater], images.steps_per_epoch, "init f_B", 0, n_steps, keep_quality
    )
    loop.train(
        position,
        zip(images.batches(position["step"], n_steps - position["step"])),
        lambda batch: contrastive_step(fb, batch, params.temperature, updater),
    )
    metrics = {"nt_xent_accuracy": position["nt_xent_accuracy"]}
    meta = build_meta("init_privacy", {"fb": fb.architecture}, params, {}, metrics)
    checkpoint = {"fb_model_state_dict": detached_copy(fb), "epoch": params.epochs, "meta": meta}
    finish(state, output, checkpoint, f"NT-Xent accuracy {metrics['nt_xent_accuracy']:.3f}")


if __name__ == "__main__":
    run_script(main)
