"""Trains the anonymizer f_A against the privacy network f_B and for the utility network f_T (the
paper's stage 1).

Starts from the three initialisations and writes <run>/last.pth and <run>/best.pth with all three
networks. The presets are TeD-SPAD at the paper's and at the miniature's scale, and the rows it is
compared with.

Several GPUs: torchrun --standalone --nproc_per_node N train_anonymizer.py ... ; with --resume and
--max_restarts 3 a worker that died is replaced and the training goes on from the last saved state.
"""

import sys
from pathlib import Path

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from anonymization_training.anonymizer_training import AnonymizerTraining
from anonymization_training.minimax import Networks
from anonymization_training.params_anonymization import TRAIN_ANONYMIZER, TrainAnonymizerParams
from anonymization_training.training_batches import (
    Sampling,
    clip_source,
    image_source,
    load_training_data,
)
from aux_code import config
from aux_code.artefacts import build_meta
from aux_code.checkpoints import save_checkpoint
from aux_code.devices import prepare_for_training
from aux_code.distributed import is_main
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_budget, load_utility
from aux_code.parameters import parse
from aux_code.runs import run_script, start_run
from aux_code.training_state import detached_copy


def main(argv: list[str] | None = None) -> None:
    """Builds, trains, saves."""
    params = parse(TRAIN_ANONYMIZER, argv, __doc__)
    run = start_run(params, "train_anonymizer")
    inits = initial_files(params)
    networks = load_networks(inits, params, run.device)
    data = load_training_data(params)
    sampling = Sampling(
        params.clip_length,
        params.stride,
        params.size,
        params.utility_loss,
        params.negative_distance,
        params.augmentation,
        params.seed,
    )
    clips = clip_source(data.train, sampling, data.cache, params, run.folder)
    images = image_source(data.images, data.cache, params, run.folder)

    def save(name: str, metrics: dict[str, float], epoch: int) -> None:
        if not is_main():
            return
        roles = {"fa": networks.fa, "ft": networks.ft, "fb": networks.fb}
        architectures = {role: net.architecture for role, net in roles.items()}
        meta = build_meta("train_anonymizer", architectures, params, inits, metrics)
        states = {f"{role}_model_state_dict": detached_copy(net) for role, net in roles.items()}
        save_checkpoint(run.folder / name, {**states, "epoch": epoch, "meta": meta})

    training = AnonymizerTraining(networks, params, run, data, save)
    if training.state.is_complete(run.folder / "last.pth", params.resume):
        return
    metrics = training.run_all(clips, images)
    described = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    if is_main():
        sys.stdout.write(f"{run.folder / 'last.pth'}: {described}\n")


def initial_files(params: TrainAnonymizerParams) -> dict[str, str]:
    """Role -> checkpoint to start from; by default where the initialisation of the same preset
    writes it.

    Raises:
        UserError: a file is missing.
    """
    scale = params.preset.split("_")[0].replace("release", "paper")
    narrow = params.preset.endswith("_ted_spad_plus")
    defaults = {
        "init_fa": f"init_anonymizer_{params.preset if narrow else scale}/fa_recon.pth",
        "init_ft": f"init_utility_{scale}/ft_action.pth",
        "init_fb": f"init_privacy_{scale}/fb_ssl.pth",
    }
    files = {
        role: getattr(params, role) or str(config.SAVED_MODELS_ROOT / path)
        for role, path in defaults.items()
    }
    for role, path in files.items():
        if not Path(path).is_file():
            script = {
                "init_fa": "init_anonymizer.py",
                "init_ft": "init_utility.py",
                "init_fb": "init_privacy.py",
            }[role]
            raise UserError(
                f"--{role}: {path} does not exist; run {script} first or name another file"
            )
    return files


def load_networks(
    files: dict[str, str], params: TrainAnonymizerParams, device: torch.device
) -> Networks:
    """The players from their checkpoints; with distillation the untouched f_T as teacher."""
    players = (
        load_anonymizer(files["init_fa"]),
        load_utility(files["init_ft"]),
        load_budget(files["init_fb"]),
    )
    teacher = (
        load_utility(files["init_ft"]).requires_grad_(False) if params.distillation_weight else None
    )
    return Networks(
        *(prepare_for_training(network, device) for network in players),
        prepare_for_training(teacher, device) if teacher is not None else None,
    )


if __name__ == "__main__":
    run_script(main)
