"""Run by test_distributed.py, alone or under torchrun: minimax steps on this rank's share of fixed
batches.

Usage: distributed_steps.py OUTPUT UTILITY_LOSS BUDGET_POSITIVES. Rank 0 writes the losses of each
step and the weights.
"""

import sys

import torch

from anonymization_training.minimax import (
    Networks,
    Objective,
    Updater,
    step_adversaries,
    step_anonymizer,
)
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
    nets = [
        load_fa_model("small"),
        load_ft_model("small", num_classes=5),
        load_fb_model("small", ssl=True),
    ]
    networks = Networks(*(prepare_for_training(net.double(), CPU) for net in nets))
    networks.fa.train()
    updaters = [
        Updater(net, 1e-3, "fp32", CPU, gradient_clip)
        for net, gradient_clip in zip(nets, (0.5, 0, 0))
    ]
    for updater in updaters:
        # Biases before a batch norm have no gradient but rounding, which Adam would blow up to full
        # steps.
        updater.optimizer.param_groups[0]["eps"] = 1e-5
    objective = Objective(term, 0.5, 1.0, 0.1, 0.7, 1.0, positives, False, 0.0, "batch", 0)
    losses = []
    for step in range(N_STEPS):
        batch = own_share(step, N_VIEWS[term])
        named = step_anonymizer(networks, *batch, objective, updaters[0])
        losses.append(named | step_adversaries(networks, *batch, objective, *updaters[1:]))
    if distributed.is_main():
        torch.save({"losses": losses, "states": [net.state_dict() for net in nets]}, output)
    distributed.leave()


def own_share(step: int, n_views: int) -> tuple[ClipBatch, ImageBatch]:
    """This rank's videos and images of the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    clips = torch.rand(
        n_views, N_VIDEOS, 3, 4, SIZE, SIZE, generator=generator, dtype=torch.float64
    )
    views = torch.rand(2, N_IMAGES, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    videos, images = (distributed.share(list(range(n))) for n in (N_VIDEOS, N_IMAGES))
    labels = torch.tensor(videos) % 5
    return ClipBatch(clips[:, videos], labels, None, ("a",)), ImageBatch(views[:, images], ("b",))


if __name__ == "__main__":
    main()
