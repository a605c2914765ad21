"""Run by test_distributed.py, alone or under torchrun: minimax steps on this rank's share of fixed
batches. Rank 0 writes each case's losses, first gradients and networks to the file of the first
argument."""

import sys

import torch

from anonymization_training.minimax import (
    Networks,
    build_updaters,
    step_adversaries,
    step_anonymizer,
)
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code import distributed
from aux_code.devices import prepare_for_training
from tests.anonymization_training.conftest import CPU, N_VIEWS, networks, params
from tests.anonymization_training.test_minimax import gradient

POSITIVES = {"triplet": "views", "invariance": "frames", "lltc": "views"}
N_VIDEOS, N_IMAGES, SIZE = 8, 8, 16


def steps(term: str, dtype: torch.dtype, n_steps: int) -> dict[str, list]:
    """f_A in chunks; in double precision what is left of differences is no rounding.

    Adam turns rounding into steps: a single step compares the gradients of one and the same f_A.
    """
    nets = list(vars(networks()).values())[:3]
    players = Networks(*(prepare_for_training(net.to(dtype), CPU) for net in nets))
    changed = {"gradient_clip": 0.5, "omega": 0.5, "budget_positives": POSITIVES[term]}
    changed |= {"recompute_chunk": 3, "fa_learning_rate_factor": float(n_steps > 1)}
    goal, losses, gradients = params(utility_loss=term, **changed), [], []
    updaters = build_updaters(players, goal, CPU)
    for updater in updaters:
        # Biases before a batch norm have no gradient but rounding, which Adam would blow up to full
        # steps.
        updater.optimizer.param_groups[0]["eps"] = 1e-5
    for step in range(n_steps):
        share = own_share(step, N_VIEWS[term], dtype)
        losses.append(step_anonymizer(players, *share, goal, updaters.fa))
        gradients.append(gradient(players.fa))
        losses[-1] |= step_adversaries(players, *share, goal, updaters)
        gradients += [gradient(players.ft), gradient(players.fb)]
    states = [net.state_dict() for net in nets]
    return {"losses": losses, "gradients": gradients[:3], "states": states}


def own_share(step: int, n_views: int, dtype: torch.dtype) -> tuple[ClipBatch, ImageBatch]:
    """This rank's videos and images of the batch of a step; noise alone looks alike to f_T."""
    generator = torch.Generator().manual_seed(step)
    clips = torch.rand(n_views, N_VIDEOS, 3, 4, SIZE, SIZE, generator=generator).to(dtype)
    clips *= torch.rand(n_views, N_VIDEOS, 1, 1, 1, 1, generator=generator)  # brightness
    views = torch.rand(2, N_IMAGES, 3, SIZE, SIZE, generator=generator).to(dtype)
    videos, images = (distributed.share(list(range(n))) for n in (N_VIDEOS, N_IMAGES))
    labels = torch.tensor(videos) % 5
    return ClipBatch(clips[:, videos], labels, None, ("a",)), ImageBatch(views[:, images], ("b",))


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {term: steps(term, torch.float64, 3) for term in POSITIVES}
    results["float32"] = steps("triplet", torch.float32, 1)
    if distributed.is_main():
        torch.save(results, sys.argv[1])
    distributed.leave()
