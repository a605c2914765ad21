"""Parameters and operations of the published and the small networks, on the meta device."""

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anomaly_detection_mgfn.mgfn import MGFN
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model


def folded_fa():
    network = load_fa_model().eval()
    network.fold_upsampling()
    return network


@torch.no_grad()
@pytest.mark.parametrize("build, shape, parameters, gflop, tolerance", [
    (load_fa_model, (1, 3, 224, 224), 13.90e6, 24.6, 0.005),
    (load_ft_model, (1, 3, 16, 224, 224), 28.55e6, 32.8, 0.005),
    (load_fb_model, (1, 3, 224, 224), 23.52e6, 8.2, 0.005),
    # a training step, forward and backward, takes three times this: 175.5
    (MGFN, (32, 1, 32, 2049), 28.65e6, 175.5 / 3, 0.005),
    (folded_fa, (1, 3, 224, 224), None, 19.7, 0.005),
    (partial(load_fa_model, "small"), (1, 3, 48, 48), None, 28e-3, 0.03),
    (partial(load_ft_model, "small"), (1, 3, 8, 48, 48), None, 64e-3, 0.03),
    (partial(load_fb_model, "small"), (1, 3, 48, 48), None, 41e-3, 0.03),
])  # fmt: skip
def test_costs(build, shape, parameters, gflop, tolerance):
    with torch.device("meta"):
        network = build().eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(shape))
    if parameters:
        found = sum(p.numel() for p in network.parameters())
        assert found == pytest.approx(parameters, rel=1e-3)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=tolerance)
