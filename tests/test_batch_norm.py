"""Passes that leave running statistics alone; re-computed activations among them."""

import pytest
import torch
from torch import nn

from aux_code import batch_norm
from aux_code.layout import apply_per_frame


def norms() -> nn.Sequential:
    """A small f_A with statistics that start elsewhere than at 0 and 1."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=0.3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 3, 1))
    net[1].running_mean.fill_(0.5)
    return net


@pytest.mark.parametrize("chunk", [0, 2])
def test_recomputation_does_not_update_running_statistics_again(chunk: int):
    clips = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    states = []
    for recompute in (False, True):
        net = norms()
        apply_per_frame(net, clips, chunk, recompute).square().mean().backward()
        assert net[1].num_batches_tracked == (3 if chunk else 1) and net[1].momentum == 0.3
        states.append((net[1].running_mean.clone(), net[1].running_var.clone(), net[0].weight.grad))
    for kept, again in zip(*states, strict=True):
        torch.testing.assert_close(again, kept)
    assert (states[0][0] - 0.5).abs().min() > 1e-3


def test_statistics_are_kept_and_restored_after_an_error():
    net = norms()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(KeyError), batch_norm.keep_running_statistics(net):
        net(torch.rand(2, 3, 4, 4))
        raise KeyError
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net[1].momentum == 0.3 and net.training


def test_one_process_keeps_its_batch_norms():
    net = norms()
    assert batch_norm.synchronise_batch_norms(net) is net and type(net[1]) is nn.BatchNorm2d
    synchronised = batch_norm.SynchronisedBatchNorm(4)
    x = torch.rand(5, 4, 3, 3)
    assert torch.equal(synchronised(x), nn.BatchNorm2d(4)(x))
    with pytest.raises(ValueError, match="dimensions"):
        synchronised(torch.rand(4))
