"""Run by test_distributed.py, alone or under torchrun: minimax steps on this rank's share of fixed
batches.

Usage: distributed_steps.py OUTPUT UTILITY_LOSS BUDGET_POSITIVES. Rank 0 writes the losses of each
step and the weights.
"""

import sys
from dataclasses import replace

import torch

from anonymization_training.minimax import Networks, build_updaters, minimax_step
from anonymization_training.params_anonymization import MINIATURE
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code import distributed
from aux_code.devices import prepare_for_training
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model

CPU = torch.device("cpu")
N_VIEWS = {"triplet": 3, "invariance": 2, "lltc": 8}
N_VIDEOS, N_IMAGES, SIZE, N_STEPS = 8, 8, 16, 3


def main() -> None:
    """Three steps of each kind in double precision: what is left of differences is no rounding."""
    output, term, positives = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=5)
    nets = [fa, ft, load_fb_model("small", ssl=True)]
    networks = Networks(*(prepare_for_training(net.double(), CPU) for net in nets))
    params = replace(
        MINIATURE,
        precision="fp32",
        gradient_clip=0.5,
        utility_loss=term,
        omega=0.5,
        utility_weight=0.7,
        budget_positives=positives,
    )
    updaters = build_updaters(networks, params, CPU)
    for updater in updaters:
        # Biases before a batch norm have no gradient but rounding, which Adam would blow up to full
        # steps.
        updater.optimizer.param_groups[0]["eps"] = 1e-5
    losses = [
        minimax_step(networks, *own_share(step, N_VIEWS[term]), params, updaters)
        for step in range(N_STEPS)
    ]
    if distributed.is_main():
        torch.save({"losses": losses, "states": [net.state_dict() for net in nets]}, output)
    distributed.leave()


def own_share(step: int, n_views: int) -> tuple[ClipBatch, ImageBatch]:
    """This rank's videos and images of the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    shape, double = (n_views, N_VIDEOS, 3, 4, SIZE, SIZE), torch.float64
    clips = torch.rand(shape, generator=generator, dtype=double)
    views = torch.rand(2, N_IMAGES, 3, SIZE, SIZE, generator=generator, dtype=double)
    videos, images = (distributed.share(list(range(n))) for n in (N_VIDEOS, N_IMAGES))
    labels = torch.tensor(videos) % 5
    return ClipBatch(clips[:, videos], labels, None, ("a",)), ImageBatch(views[:, images], ("b",))


if __name__ == "__main__":
    main()
