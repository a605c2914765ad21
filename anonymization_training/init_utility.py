"""Trains the utility network f_T to recognise UCF101 actions, on raw or anonymized frames.

The result on raw frames starts the minimax; on the frames of another anonymizer it is that method's
f_T, and its accuracy is the paper's Criterion 1. Writes <run>/ft_action.pth.
"""

import sys
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training.minimax import Updater, finite
from anonymization_training.params_anonymization import INIT_UTILITY, InitUtilityParams, made_of
from anonymization_training.person_detection import detect_in_videos
from anonymization_training.step_loop import StepLoop
from anonymization_training.training_batches import (
    ClipBatch,
    TrainingData,
    clip_source,
    load_training_data,
)
from anonymization_training.validation import obfuscate, recognition_accuracy
from aux_code import config
from aux_code.devices import prepare_for_training
from aux_code.losses.temporal import temporally_distinct_loss
from aux_code.model_loaders import load_anonymizer, load_ft_model
from aux_code.models.person_boxes import PersonBoxes, open_person_boxes
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
    people = find_people(params, data, run.device) if anonymizer.requires_boxes else None
    views = "triplet" if params.omega > 0 else "ce"
    clip_batches = clip_source(data.train, views, params, data.cache, folder, people)
    weights, n_classes = params.init_weights or None, data.train.num_classes
    ft = load_ft_model(params.ft_arch, weights, num_classes=n_classes)
    ft = prepare_for_training(ft, run.device)
    updater = Updater(ft, params.learning_rate, params.precision, run.device)
    stateful = {"ft": ft, "updater": updater}
    state = TrainingState(folder / STATE, recipe, stateful, params.minutes_between_saves)

    with StepLoop(run, params, state) as loop:
        for (clips,) in loop.steps("init f_T", params.epochs, [updater], clip_batches):
            loop.note(recognition_step(ft, anonymizer, clips, params, updater))

    accuracy = recognition_accuracy(ft, anonymizer, data, params, run.device, people)
    quality = f"top-1 by video on the validation part {accuracy:.3f}"
    loop.finish(OUTPUT, {"ft": ft}, {"validation_top1": accuracy}, quality)


def find_people(params: InitUtilityParams, data: TrainingData, device: torch.device) -> PersonBoxes:
    """Who blur and blacken hide; a detector looks at all frames once, before the training."""
    root = config.UCF101_ROOT
    people = open_person_boxes(params.boxes, params.detector_weights, root, device)
    videos = [video.path for video in (*data.train, *data.validation)]
    if people.needs_frames:
        return detect_in_videos(people, videos, root)
    people.require(videos)
    return people


def recognition_step(
    ft: nn.Module,
    anonymizer: nn.Module,
    clips: ClipBatch,
    params: InitUtilityParams,
    updater: Updater,
) -> dict[str, float]:
    """One update of f_T: cross-entropy on the anchors, with omega > 0 the triplet loss too."""
    ft.train()
    with updater.autocast():
        total, parts = recognition_loss(ft, anonymizer, clips, params)
    losses = finite({"loss": total} | parts, "recognition/")
    updater.update(total)
    return losses


def recognition_loss(
    ft: nn.Module, anonymizer: nn.Module, batch: ClipBatch, params: InitUtilityParams
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `recognition_step` minimises, and its named parts."""
    n_views, n_videos = batch.clips.shape[:2]
    clips = batch.clips.flatten(0, 1)  # (K*B, 3, T, H, W)
    masks = None if batch.person_masks is None else batch.person_masks.flatten(0, 1)
    logits, embedding = ft(obfuscate(anonymizer, clips, masks))  # (K*B, n_classes), (K*B, D)
    total = cross_entropy = F.cross_entropy(logits[:n_videos], batch.labels)
    parts = {"cross_entropy": cross_entropy}
    if params.omega > 0:
        views = embedding.float().unflatten(0, (n_views, n_videos))  # (3, B, D)
        parts["triplet"] = temporally_distinct_loss(*views, params.margin)
        total = total + params.omega * parts["triplet"]
    return total, parts


if __name__ == "__main__":
    run_script(main)
