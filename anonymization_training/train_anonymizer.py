"""Trains the anonymizer f_A against the privacy network f_B and for the utility network f_T (the
paper's stage 1).

Starts from the three initialisations and writes <run>/last.pth and <run>/best.pth with all three
networks; with --validation_fraction 0, which holds out no video, the latter is chosen on the test
list and called best_on_test.pth. The presets are TeD-SPAD as the paper and as its release have it,
TeD-SPAD+ (ours), the miniature, and the rows they are compared with.

Several GPUs: torchrun --standalone --nproc_per_node N train_anonymizer.py ... ; with --resume and
--max_restarts 3 a worker that died is replaced and the training goes on from the last saved state.
"""

import sys
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import nn

from anonymization_training.minimax import Networks, build_updaters, minimax_step, step_utility
from anonymization_training.params_anonymization import (
    TRAIN_ANONYMIZER,
    TrainAnonymizerParams,
    initial_files,
    made_of,
)
from anonymization_training.step_loop import StepLoop
from anonymization_training.training_batches import (
    N_VIEWS,
    clip_source,
    image_source,
    load_training_data,
)
from anonymization_training.validation import Validation, require_fitting, seen_by_utility
from aux_code.devices import prepare_for_training
from aux_code.distributed import is_main
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_budget, load_utility, require_size
from aux_code.models.privacy import SelfSupervised
from aux_code.parameters import parse
from aux_code.runs import run_folder, run_script, start_run
from aux_code.training_state import TrainingState, is_finished

OUTPUT, STATE = "last.pth", "train_anonymizer_state.pth"


def main(argv: list[str] | None = None) -> None:
    """Builds; minimax epochs, settling of f_T, last validation; saves."""
    params = parse(TRAIN_ANONYMIZER, argv, __doc__)
    recipe, folder = made_of(params), run_folder(params, "train_anonymizer")
    if is_finished(folder / OUTPUT, folder / STATE, recipe, params):
        return
    run = start_run(params, "train_anonymizer")
    data = load_training_data(params)
    loaded = load_networks(params, data.train.num_classes)
    networks = Networks(*(prepare_for_training(network, run.device) for network in loaded))
    players = {"fa": networks.fa, "ft": networks.ft, "fb": networks.fb}
    updaters = build_updaters(networks, params, run.device)
    stateful = players | {f"updater_{name}": u for name, u in updaters._asdict().items()}
    state = TrainingState(folder / STATE, recipe, stateful, params.minutes_between_saves)
    views = "triplet" if params.ce_on_all_clips else params.utility_loss
    sources = [clip_source(data.train, views, params, data.cache, folder)]
    if params.budget_positives == "views":
        sources.append(image_source(data.images.paths, params, data.cache, folder))
    validation = Validation(networks, data, params, run)

    with StepLoop(run, params, state) as loop:
        for clips, *images in loop.steps("minimax", params.epochs, updaters[:3], *sources):
            losses = minimax_step(networks, clips, *(images or [None]), params, updaters)
            if loop.note(losses):  # an epoch has ended
                validate_and_keep_best(loop, players, validation)
        for (clips,) in loop.steps(
            "settle f_T", params.settle_epochs, [updaters.settle], sources[0]
        ):
            losses = step_utility(networks, clips, params, updaters.settle)
            if loop.note(losses):
                validate_and_keep_best(loop, players, validation)

    metrics = validation.metrics()
    keep_best(loop, players, metrics, params.epochs)
    quality = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    n_steps = updaters.ft.n_updates + updaters.settle.n_updates
    seen = n_steps, n_steps * params.batch_videos * N_VIEWS[views]
    metrics |= seen_by_utility(recipe.inputs["init_ft"]["path"], *seen)
    loop.finish(OUTPUT, players, metrics, quality)


def load_networks(params: TrainAnonymizerParams, n_classes: int) -> list[nn.Module]:
    """f_A, f_T, f_B from their checkpoints; with distillation the untouched f_T as teacher.

    Raises:
        UserError: an f_T that does not have `n_classes` outputs or takes other clips, an f_B
            without projection head, or frames too small for one of them.
    """
    files = initial_files(params)
    fa = load_anonymizer(files["init_fa"])
    ft, fb = load_utility(files["init_ft"]), load_budget(files["init_fb"])
    require_fitting(ft, params, n_classes, f"--init_ft {files['init_ft']}")
    if not isinstance(fb, SelfSupervised):
        words = "predicts attributes and has no projection head for NT-Xent"
        remedy = "give fb_ssl.pth of init_privacy.py, which adapts weights by --init_weights"
        raise UserError(f"--init_fb {files['init_fb']}: f_B {words}; {remedy}")
    loaded = [fa, ft, fb]
    for role, network in zip(("fa", "ft", "fb"), loaded, strict=True):
        require_size(params.size, role, network.architecture["arch"])
    if params.distillation_weight:
        loaded.append(load_utility(files["init_ft"]).requires_grad_(False))
    return loaded


def validate_and_keep_best(
    loop: StepLoop, players: dict[str, nn.Module], validation: Validation
) -> None:
    """At the end of an epoch, what is due of: images, probe, validation, best.pth."""
    params, epoch = loop.params, loop.position.epoch
    if is_main():
        validation.show(epoch)
        if params.probe_every and epoch % params.probe_every == 0:
            validation.probe(epoch)
    if epoch % params.validate_every == 0:
        metrics = validation.metrics()
        for name, value in metrics.items():
            loop.run.writer.add_scalar(f"validation/{name}", value, epoch)
        keep_best(loop, players, metrics, epoch)


def keep_best(
    loop: StepLoop, players: dict[str, nn.Module], metrics: dict[str, float], epoch: int
) -> None:
    """Writes best.pth where f_T's accuracy minus f_B's is higher than before; no label of what is
    private is in it."""
    top1, nt_xent_accuracy = metrics.values()
    trade_off = top1 - nt_xent_accuracy
    if loop.position.best is None or trade_off > loop.position.best:
        loop.position.best = trade_off
        name = "best.pth" if loop.params.chosen_on == "validation" else "best_on_test.pth"
        loop.save(name, players, metrics, epoch)


if __name__ == "__main__":
    run_script(main)
