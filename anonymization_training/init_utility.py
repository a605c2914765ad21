"""Trains the utility network f_T to recognise UCF101 actions, on raw or anonymized frames.

The result on raw frames starts the minimax; on the frames of another anonymizer it is that method's
f_T, and its accuracy is the paper's Criterion 1. Writes <run>/ft_action.pth.
"""

import sys
from pathlib import Path

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anonymization_training.initialisation import Obfuscator, recognition_accuracy, recognition_step
from anonymization_training.minimax import Updater
from anonymization_training.params_anonymization import INIT_UTILITY, InitUtilityParams
from anonymization_training.person_detection import detect_in_videos
from anonymization_training.step_loop import StepLoop, finish, planned_steps
from anonymization_training.training_batches import (
    PersonMasks,
    Sampling,
    TrainingData,
    clip_source,
    load_training_data,
)
from aux_code import config
from aux_code.artefacts import build_meta
from aux_code.devices import prepare_for_training
from aux_code.model_loaders import load_anonymizer, load_ft_model
from aux_code.models.person_boxes import open_person_boxes
from aux_code.parameters import parse
from aux_code.runs import Run, run_script, start_run
from aux_code.training_state import TrainingState, detached_copy


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, judges, saves."""
    params = parse(INIT_UTILITY, argv, __doc__)
    run = start_run(params, "init_utility")
    data = load_training_data(params, with_images=False)
    anonymizer = load_anonymizer(params.anonymizer)
    masks = person_masks(params, data, run) if anonymizer.requires_boxes else None
    obfuscate = Obfuscator(anonymizer, run.device)
    ft = load_ft_model(
        params.ft_arch, params.init_weights or None, num_classes=data.train.num_classes
    )
    ft = prepare_for_training(ft, run.device)
    updater = Updater(ft, params.learning_rate, params.precision, run.device, gradient_clip=0.0)
    output = run.folder / "ft_action.pth"
    state = TrainingState(run.folder / "ft_action_state.pth", vars(params), {"ft": ft, "updater": updater},
                          params.minutes_between_saves)  # fmt: skip
    if state.is_complete(output, params.resume):
        return
    views = "triplet" if params.omega > 0 else "ce"
    sampling = Sampling(
        params.clip_length, params.stride, params.size, views, 0, params.augmentation, params.seed
    )
    clips = clip_source(data.train, sampling, data.cache, params, run.folder, masks)
    n_steps = planned_steps(params, clips.steps_per_epoch)
    position = state.restore(params.resume) or {"step": 0}
    loop = StepLoop(
        run,
        params,
        state,
        [updater],
        clips.steps_per_epoch,
        "init f_T",
        0,
        n_steps,
        lambda *_: None,
    )
    loop.train(
        position,
        zip(clips.batches(position["step"], n_steps - position["step"])),
        lambda batch: recognition_step(ft, obfuscate, batch, params.omega, params.margin, updater),
    )
    accuracy = recognition_accuracy(
        ft, obfuscate, data.validation, data.cache, params, masks, device=run.device
    )
    inputs = {"anonymizer": params.anonymizer, "init_weights": params.init_weights}
    inputs |= {"person_boxes": masks.people.origin["source"]} if masks else {}
    meta = build_meta(
        "init_utility", {"ft": ft.architecture}, params, inputs, {"validation_top1": accuracy}
    )
    checkpoint = {"ft_model_state_dict": detached_copy(ft), "epoch": params.epochs, "meta": meta}
    finish(state, output, checkpoint, f"top-1 by video on the validation part {accuracy:.3f}")


def person_masks(params: InitUtilityParams, data: TrainingData, run: Run) -> PersonMasks:
    """The masks for blur and blacken; a detector looks at all frames of all videos once, before the
    training."""
    people = open_person_boxes(
        params.boxes, params.detector_weights, config.UCF101_ROOT, run.device
    )
    videos = [video.path for video in (*data.train, *data.validation)]
    if people.needs_frames:
        people = detect_in_videos(people, videos, config.UCF101_ROOT)
    else:
        people.require(videos)
    return PersonMasks(people)


if __name__ == "__main__":
    run_script(main)
