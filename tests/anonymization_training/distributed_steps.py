"""Run by test_distributed.py, alone or under torchrun: minimax steps on this rank's share of fixed
batches. Rank 0 writes each term's losses and weights to the file of the first argument."""

import sys

import torch

from anonymization_training.minimax import Networks, build_updaters, minimax_step
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code import distributed
from aux_code.devices import prepare_for_training
from tests.anonymization_training.conftest import CPU, N_VIEWS, networks, params

POSITIVES = {"triplet": "views", "invariance": "frames", "lltc": "views"}
N_VIDEOS, N_IMAGES, SIZE, N_STEPS = 8, 8, 16, 3


def three_steps(term: str) -> dict[str, list]:
    """In double precision: what is left of differences is no rounding."""
    nets = list(vars(networks()).values())[:3]
    players = Networks(*(prepare_for_training(net.double(), CPU) for net in nets))
    changed = {"gradient_clip": 0.5, "omega": 0.5, "budget_positives": POSITIVES[term]}
    goal = params(utility_loss=term, **changed)
    updaters = build_updaters(players, goal, CPU)
    for updater in updaters:
        # Biases before a batch norm have no gradient but rounding, which Adam would blow up to full
        # steps.
        updater.optimizer.param_groups[0]["eps"] = 1e-5
    shares = [own_share(step, N_VIEWS[term]) for step in range(N_STEPS)]
    losses = [minimax_step(players, *share, goal, updaters) for share in shares]
    return {"losses": losses, "states": [net.state_dict() for net in nets]}


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
    torch.set_num_threads(1)
    results = {term: three_steps(term) for term in POSITIVES}
    if distributed.is_main():
        torch.save(results, sys.argv[1])
    distributed.leave()
