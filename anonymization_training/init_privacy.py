"""Initialises the privacy (budget) network f_B: NT-Xent on two views of VISPR images, without
labels.

Writes <run>/fb_ssl.pth, which train_anonymizer.py finds by default. The release lacks this script.
"""

import sys
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor, nn

from anonymization_training.minimax import Updater, finite
from anonymization_training.params_anonymization import INIT_PRIVACY, made_of, starting_weights
from anonymization_training.step_loop import StepLoop
from anonymization_training.training_batches import image_source
from anonymization_training.validation import nt_xent_accuracy
from aux_code import config
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.vispr import Vispr
from aux_code.devices import prepare_for_training
from aux_code.distributed import gather_rows
from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.model_loaders import load_fb_model
from aux_code.parameters import parse
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import TrainingState, is_finished

OUTPUT, STATE = "fb_ssl.pth", "fb_ssl_state.pth"


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, saves; the quality is the NT-Xent accuracy of the last epoch."""
    params = parse(INIT_PRIVACY, argv, __doc__)
    recipe, folder = made_of(params), run_folder(params, "init_privacy")
    if is_finished(folder / OUTPUT, folder / STATE, recipe, params):
        return
    run = start_run(params, "init_privacy")
    cache = DecodedCache(params.cache_megabytes * 2**20)
    paths = Vispr(config.VISPR_ROOT, "train", load_labels=False).paths
    image_batches = image_source(paths, params, cache, folder)
    fb = load_fb_model(params.fb_arch, starting_weights(params), ssl=True)
    fb = prepare_for_training(fb, run.device)
    updater = Updater(fb, params.learning_rate, params.precision, run.device)
    stateful = {"fb": fb, "updater": updater}
    state = TrainingState(folder / STATE, recipe, stateful, params.minutes_between_saves)

    with StepLoop(run, params, state) as loop:
        for (images,) in loop.steps("init f_B", params.epochs, [updater], image_batches):
            losses = contrastive_step(fb, images.views, params.temperature, updater)
            if means := loop.note(losses):
                loop.position.nt_xent_accuracy = means["contrast/accuracy"]

    accuracy = loop.position.nt_xent_accuracy
    metrics = {} if accuracy is None else {"nt_xent_accuracy": accuracy}
    quality = f"NT-Xent accuracy {accuracy:.3f}" if metrics else "not trained"
    loop.finish(OUTPUT, {"fb": fb}, metrics, quality)


def contrastive_step(
    fb: nn.Module, views: Tensor, temperature: float, updater: Updater
) -> dict[str, float]:
    """One update of f_B: NT-Xent between two views (2, N, 3, H, W) of each image, of all ranks."""
    fb.train()
    with updater.autocast():
        embedding = fb(views.flatten(0, 1)).float()  # (2*N, D)
        first, second = map(gather_rows, embedding.chunk(2))  # (R*N, D) each, of R ranks
        loss = nt_xent_loss(first, second, temperature)
        accuracy = nt_xent_accuracy(first, second)
    losses = finite({"nt_xent": loss, "accuracy": accuracy}, "contrast/")
    updater.update(loss)
    return losses


if __name__ == "__main__":
    run_script(main)
