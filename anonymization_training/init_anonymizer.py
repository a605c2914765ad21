"""Initialises the anonymizer f_A as the identity: L1 reconstruction of UCF101 frames and VISPR
images.

Writes <run>/fa_recon.pth, which train_anonymizer.py finds by default.
"""

import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from anonymization_training.minimax import Updater, finite
from anonymization_training.params_anonymization import (
    INIT_ANONYMIZER,
    made_of,
    starting_weights,
)
from anonymization_training.step_loop import StepLoop
from anonymization_training.training_batches import (
    ClipBatch,
    ImageBatch,
    clip_source,
    image_source,
    load_training_data,
    readable_images,
)
from aux_code.datasets.transforms import evaluation_images
from aux_code.devices import prepare_for_training
from aux_code.model_loaders import apply_anonymizer, load_fa_model, noise_keys
from aux_code.parameters import parse
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import TrainingState, is_finished

OUTPUT, STATE = "fa_recon.pth", "fa_recon_state.pth"
N_EVALUATED_IMAGES = 64
"""Images on which the reconstruction is evaluated."""


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, evaluates, saves."""
    params = parse(INIT_ANONYMIZER, argv, __doc__)
    recipe, folder = made_of(params), run_folder(params, "init_anonymizer")
    if is_finished(folder / OUTPUT, folder / STATE, recipe, params):
        return
    run = start_run(params, "init_anonymizer")
    data = load_training_data(params)
    frames = {"n_used": params.frames_per_video}
    clip_batches = clip_source(data.train, "ce", params, data.cache, folder, **frames)
    image_batches = image_source(data.images.paths, params, data.cache, folder)
    narrow = {k: getattr(params, k) for k in ("output_channels", "output_scale", "output_noise")}
    fa = load_fa_model(params.fa_arch, starting_weights(params), **narrow)
    fa = prepare_for_training(fa, run.device)
    updater = Updater(fa, params.learning_rate, params.precision, run.device)
    stateful = {"fa": fa, "updater": updater}
    state = TrainingState(folder / STATE, recipe, stateful, params.minutes_between_saves)

    with StepLoop(run, params, state) as loop:
        for clips, images in loop.steps(
            "init f_A", params.epochs, [updater], clip_batches, image_batches
        ):
            loop.note(reconstruction_step(fa, clips, images, updater))

    images = readable_images(data.images.paths[:N_EVALUATED_IMAGES], data.cache)
    psnr = reconstruction_psnr(fa, images, params.size, run.device)
    loop.finish(OUTPUT, {"fa": fa}, {"psnr": psnr}, f"PSNR {psnr:.1f} dB")


def reconstruction_step(
    fa: nn.Module, clips: ClipBatch, images: ImageBatch, updater: Updater
) -> dict[str, float]:
    """One update of f_A towards the identity: L1 on frames of videos and on images."""
    frames = clips.clips[0].transpose(1, 2).flatten(0, 1)  # (B*T, 3, H, W)
    raw = torch.cat([frames, images.views[0]])  # (B*T + N, 3, H, W)
    fa.train()
    with updater.autocast():
        loss = F.l1_loss(fa(raw).float(), raw)
    losses = finite({"l1": loss}, "reconstruction/")
    updater.update(loss)
    return losses


@torch.no_grad()
def reconstruction_psnr(
    fa: nn.Module, images: Sequence[np.ndarray], size: int, device: torch.device
) -> float:
    """Peak signal-to-noise ratio in dB (peak 1) of f_A's releases at evaluation geometry."""
    fa.eval()
    raw = evaluation_images(images, size).to(device)
    noise = noise_keys(0, Path("validation"), count())
    released = torch.cat([apply_anonymizer(fa, part, noise=noise) for part in raw.split(32)])
    error = (released - raw).square().mean((1, 2, 3))
    return float(-10 * torch.log10(error.clamp_min(1e-10)).mean())


if __name__ == "__main__":
    run_script(main)
