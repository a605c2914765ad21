"""Trains the utility network f_T to recognise UCF101 actions, on raw or anonymized frames.

The result on raw frames starts the minimax; on the frames of another anonymizer it is that method's
f_T, and its accuracy is the paper's Criterion 1. Writes <run>/ft_action.pth.
"""

import sys
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import nn
from torch.nn import functional as F

from anonymization_training.minimax import Updater, finite
from anonymization_training.params_anonymization import INIT_UTILITY, made_of, starting_weights
from anonymization_training.person_detection import find_people
from anonymization_training.step_loop import StepLoop
from anonymization_training.training_batches import ClipBatch, clip_source, load_training_data
from anonymization_training.validation import (
    obfuscate,
    recognition_accuracy,
    require_fitting,
    seen_by_utility,
)
from aux_code.devices import prepare_for_training
from aux_code.model_loaders import load_anonymizer, load_ft_model
from aux_code.parameters import parse
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import TrainingState, is_finished

OUTPUT, STATE = "ft_action.pth", "ft_action_state.pth"


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, evaluates, saves."""
    params = parse(INIT_UTILITY, argv, __doc__)
    recipe, folder = made_of(params), run_folder(params, "init_utility")
    if is_finished(folder / OUTPUT, folder / STATE, recipe, params):
        return
    run = start_run(params, "init_utility")
    data = load_training_data(params, with_images=False)
    anonymizer = load_anonymizer(params.anonymizer).to(run.device).eval()
    videos = [video.path for video in (*data.train, *data.validation)]
    people = find_people(params, videos, run.device) if anonymizer.requires_boxes else None
    views = "triplet" if params.clips_per_video == 3 else "ce"
    clip_batches = clip_source(data.train, views, params, data.cache, folder, people)
    start = starting_weights(params)
    ft = load_ft_model(params.ft_arch, start, data.train.num_classes)
    require_fitting(ft, params, data.train.num_classes, f"--ft_arch {params.ft_arch}")
    ft = prepare_for_training(ft, run.device)
    updater = Updater(ft, params.learning_rate, params.precision, run.device)
    stateful = {"ft": ft, "updater": updater}
    state = TrainingState(folder / STATE, recipe, stateful, params.minutes_between_saves)

    with StepLoop(run, params, state) as loop:
        for (clips,) in loop.steps("init f_T", params.epochs, [updater], clip_batches):
            loop.note(recognition_step(ft, anonymizer, clips, updater))

    n_clips = updater.n_updates * params.batch_videos * params.clips_per_video
    metrics, quality = seen_by_utility(start, updater.n_updates, n_clips), "not trained"
    if params.epochs:
        of_list = (data.validation, data.cache, params, run.device, people)
        found = recognition_accuracy(ft, anonymizer, *of_list)
        metrics[f"{params.chosen_on}_top1"] = found.top1
        quality = f"top-1 by video of {found.n_videos} {params.chosen_on} videos {found.top1:.3f}"
    loop.finish(OUTPUT, {"ft": ft}, metrics, quality)


def recognition_step(
    ft: nn.Module, anonymizer: nn.Module, batch: ClipBatch, updater: Updater
) -> dict[str, float]:
    """One update of f_T: cross-entropy on all anonymized clips."""
    ft.train()
    clips = batch.clips.flatten(0, 1)  # (K*B, 3, T, H, W)
    masks = None if batch.person_masks is None else batch.person_masks.flatten(0, 1)
    with updater.autocast():
        logits, _ = ft(obfuscate(anonymizer, clips, masks))  # (K*B, n_classes)
        cross_entropy = F.cross_entropy(logits, batch.labels.repeat(len(batch.clips)))
    losses = finite({"loss": cross_entropy}, "recognition/")
    updater.update(cross_entropy)
    return losses


if __name__ == "__main__":
    run_script(main)
