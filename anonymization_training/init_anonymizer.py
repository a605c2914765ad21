"""Initialises the anonymizer f_A as the identity: L1 reconstruction of UCF101 frames and VISPR
images.

Writes <run>/fa_recon.pth, which train_anonymizer.py finds by default.
"""

import sys
from pathlib import Path

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anonymization_training.initialisation import reconstruction_psnr, reconstruction_step
from anonymization_training.minimax import Updater
from anonymization_training.params_anonymization import INIT_ANONYMIZER, InitAnonymizerParams
from anonymization_training.step_loop import StepLoop, finish, planned_steps
from anonymization_training.training_batches import (
    Sampling,
    TrainingData,
    clip_source,
    image_source,
    load_training_data,
    readable_images,
)
from aux_code.artefacts import build_meta
from aux_code.devices import prepare_for_training
from aux_code.model_loaders import load_fa_model
from aux_code.parameters import parse
from aux_code.runs import Run, run_script, start_run
from aux_code.training_state import TrainingState, detached_copy

N_JUDGED_IMAGES = 64
"""Images on which the reconstruction is judged."""


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, judges, saves."""
    params = parse(INIT_ANONYMIZER, argv, __doc__)
    run = start_run(params, "init_anonymizer")
    data = load_training_data(params)
    narrow = {
        name: getattr(params, name) for name in ("output_channels", "output_scale", "output_noise")
    }
    fa = prepare_for_training(load_fa_model(params.fa_arch, **narrow), run.device)
    updater = Updater(fa, params.learning_rate, params.precision, run.device, gradient_clip=0.0)
    output = run.folder / "fa_recon.pth"
    state = TrainingState(run.folder / "fa_recon_state.pth", vars(params), {"fa": fa, "updater": updater},
                          params.minutes_between_saves)  # fmt: skip
    if state.is_complete(output, params.resume):
        return
    train(fa, updater, state, data, params, run)
    images = readable_images(data.images.paths[:N_JUDGED_IMAGES], data.cache)
    psnr = reconstruction_psnr(fa, images, params.size, run.device)
    meta = build_meta("init_anonymizer", {"fa": fa.architecture}, params, {}, {"psnr": psnr})
    checkpoint = {"fa_model_state_dict": detached_copy(fa), "epoch": params.epochs, "meta": meta}
    finish(state, output, checkpoint, f"PSNR {psnr:.1f} dB")


def train(
    fa,
    updater: Updater,
    state: TrainingState,
    data: TrainingData,
    params: InitAnonymizerParams,
    run: Run,
) -> None:
    """Runs all steps."""
    sampling = Sampling(
        params.clip_length, params.stride, params.size, "ce", 0, params.augmentation, params.seed
    )
    clips = clip_source(data.train, sampling, data.cache, params, run.folder)
    images = image_source(data.images, data.cache, params, run.folder)
    n_steps = planned_steps(params, clips.steps_per_epoch)
    position = state.restore(params.resume) or {"step": 0}
    remaining = (position["step"], n_steps - position["step"])
    loop = StepLoop(
        run,
        params,
        state,
        [updater],
        clips.steps_per_epoch,
        "init f_A",
        0,
        n_steps,
        lambda *_: None,
    )
    batches = zip(clips.batches(*remaining), images.batches(*remaining), strict=True)
    loop.train(
        position,
        batches,
        lambda *pair: reconstruction_step(fa, *pair, params.frames_per_video, updater),
    )


if __name__ == "__main__":
    run_script(main)
