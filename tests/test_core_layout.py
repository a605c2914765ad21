"""The one place where clips meet frames (defects 1 and 2 of the release), and batch norms there."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aux_code import batch_norm
from aux_code.layout import FRAMES_PER_PASS, apply_per_frame


class SwapChannels(nn.Module):
    """Red becomes green, green blue, blue red, each stronger: an identity would see no layout."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        assert frames.shape[1] == 3
        return frames[:, [2, 0, 1]] * torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("chunk", [None, 0, 1, 4, 10, 99])
def test_every_frame_passes_as_a_picture_and_returns_to_its_place(chunk, gradients):
    """The release hands f_A one colour of three consecutive frames."""
    clips = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(clips)
    for b in range(2):
        for t in range(5):
            red, green, blue = clips[b, :, t]
            expected[b, :, t] = torch.stack([blue, 10 * red, 100 * green])
    with torch.set_grad_enabled(gradients):
        for recompute in (False, True):
            assert torch.equal(apply_per_frame(SwapChannels(), clips, chunk, recompute), expected)


def test_output_may_have_other_channels_and_another_size():
    net = nn.Conv2d(3, 7, kernel_size=3, stride=2)
    clips = torch.rand(2, 3, 4, 9, 11)
    output = apply_per_frame(net, clips)
    assert output.shape == (2, 7, 4, 4, 5)
    torch.testing.assert_close(output[1, :, 2], net(clips[1:, :, 2])[0])


def pass_sizes(net: nn.Module, n_frames: int, **options) -> list[int]:
    seen = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    apply_per_frame(net, torch.rand(1, 3, n_frames, 2, 2), **options)
    return seen


def test_chunks_bound_the_frames_of_a_pass_and_where_nobody_says_the_device_does():
    assert pass_sizes(nn.Identity(), 10, chunk=4) == [4, 4, 2]
    for n_frames, recompute in ((8, False), (40, False), (8, True), (40, True)):
        seen = pass_sizes(nn.Conv2d(3, 3, 1), n_frames, recompute=recompute)
        assert sum(seen) == n_frames and max(seen) == FRAMES_PER_PASS["cpu"]


def test_batch_statistics_are_those_of_all_frames_where_nobody_says():
    net = nn.BatchNorm2d(3, affine=False)
    clips = torch.rand(1, 3, 40, 2, 2) + torch.arange(40.0).view(1, 1, 40, 1, 1)
    output = apply_per_frame(net, clips)
    assert output.mean().abs() < 1e-4 and output[:, :, 0].mean() < -1
    assert max(pass_sizes(net.eval(), 40)) == FRAMES_PER_PASS["cpu"]


def pointwise(width: int) -> nn.Sequential:
    first, second = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1)
    return nn.Sequential(first, nn.Sigmoid(), second, nn.Sigmoid(), nn.Conv2d(width, 3, 1))


def highest_bytes(net: nn.Module, n_frames: int, recompute: bool, gradients: bool) -> int:
    """The most that a pass holds, in bytes beyond the clips, their gradient and the output."""
    clips = torch.rand(1, 3, n_frames, 32, 32, requires_grad=gradients)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        torch.set_grad_enabled(gradients),
    ):
        output = apply_per_frame(net, clips, chunk=2, recompute=recompute)
        if gradients:
            output.backward(torch.ones_like(output))
    held = highest = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("gradients", [False, True])
def test_peak_memory_of_the_activations_does_not_grow_with_the_clip(gradients: bool):
    net = pointwise(64)
    frame = 3 * 32 * 32 * 4
    short, long = (highest_bytes(net, n, gradients, gradients) for n in (4, 24))
    # what must grow: output (twice while its pieces are joined), and with gradients those of input
    # and output
    assert long - short <= 20 * (4 if gradients else 2) * frame + 2**16
    if gradients:
        kept = highest_bytes(net, 24, False, True) - highest_bytes(net, 4, False, True)
        assert kept > 20 * 40 * frame


def norms() -> nn.Sequential:
    """A small f_A with statistics that start elsewhere than at 0 and 1."""
    torch.manual_seed(0)
    first, norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, momentum=0.3)
    norm.running_mean.fill_(0.5)
    return nn.Sequential(first, norm, nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 1))


def test_recomputed_activations_give_the_same_gradients():
    clips = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for recompute in (False, True):
        net, leaf = norms(), clips.clone().requires_grad_()
        net[1].eval()
        torch.manual_seed(1)  # dropout: the second pass must draw what the first drew
        apply_per_frame(net, leaf, 2, recompute).square().mean().backward()
        results.append([leaf.grad, *(p.grad for p in net.parameters())])
    assert all(gradient.abs().sum() > 0 for gradient in results[0])
    for kept, again in zip(*results, strict=True):
        torch.testing.assert_close(again, kept)


@pytest.mark.parametrize("affine", [True, False])
def test_the_gradient_of_the_batch_norm_of_all_ranks_is_right(affine):
    """Of one rank here; tests/anonymization_training/test_distributed.py compares two."""
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    both = torch.randn(2, 3, dtype=torch.float64) if affine else (None, None)
    weight, bias = (own if own is None else own.requires_grad_(True) for own in both)
    output, mean, variance, n = batch_norm.Normalised.apply(x, weight, bias, 1e-5)
    expected = nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    torch.testing.assert_close(output, expected)
    of_channels = x.var((0, 2, 3), correction=0), x.mean((0, 2, 3))
    torch.testing.assert_close((variance, mean, n.item()), (*of_channels, 16.0))
    normalised = lambda *inputs: batch_norm.Normalised.apply(*inputs, 1e-5)[0]  # noqa: E731
    assert torch.autograd.gradcheck(normalised, (x, weight, bias))


def test_batch_norms_are_kept_and_their_statistics_restored_after_an_error():
    net = norms()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(KeyError), batch_norm.keep_running_statistics(net):
        net(torch.rand(2, 3, 4, 4))
        raise KeyError
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net[1].momentum == 0.3 and net.training
    # and one process keeps its batch norms
    assert batch_norm.synchronise_batch_norms(net) is net and type(net[1]) is nn.BatchNorm2d
    synchronised = batch_norm.SynchronisedBatchNorm(4)
    x = torch.rand(5, 4, 3, 3)
    assert torch.equal(synchronised(x), nn.BatchNorm2d(4)(x))
    with pytest.raises(ValueError, match="dimensions"):
        synchronised(torch.rand(4))
