"""Parameters and operations of the published networks, counted on the meta device."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anomaly_detection_mgfn.mgfn import MGFN
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model


@pytest.mark.parametrize(
    ("build", "shape", "parameters", "gflop"),
    [
        (load_fa_model, (1, 3, 224, 224), 13.90e6, 24.6),
        (load_ft_model, (1, 3, 16, 224, 224), 28.55e6, 32.8),
        (load_fb_model, (1, 3, 224, 224), 23.52e6, 8.2),
        # a training step, forward and backward, takes three times this: 175.5
        (MGFN, (32, 1, 32, 2049), 28.65e6, 175.5 / 3),
    ],
)
@torch.no_grad()
def test_costs(build, shape, parameters, gflop):
    with torch.device("meta"):
        network = build().eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(shape))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=1e-3)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.005)


@torch.no_grad()
def test_folded_upsampling_saves_a_fifth():
    with torch.device("meta"):
        network = load_fa_model().eval()
        network.fold_upsampling()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 1e9 == pytest.approx(19.7, rel=0.005)


@pytest.mark.parametrize(
    ("build", "shape", "mflop"),
    [
        (load_fa_model, (1, 3, 48, 48), 28),
        (load_ft_model, (1, 3, 8, 48, 48), 64),
        (load_fb_model, (1, 3, 48, 48), 41),
    ],
)
@torch.no_grad()
def test_costs_of_the_small_siblings(build, shape, mflop):
    with torch.device("meta"):
        network = build("small").eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(shape))
    assert counter.get_total_flops() / 1e6 == pytest.approx(mflop, rel=0.03)
