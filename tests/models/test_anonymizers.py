"""f_A: published layouts, golden values, any picture size, and the narrow output."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aux_code.errors import UserError
from aux_code.model_loaders import apply_anonymizer, load_fa_model, noise_keys
from aux_code.models.anonymizers import NarrowOutput, Up, as_8_bit, build_anonymizer
from aux_code.models.unet_plus_plus import UNetPlusPlus, UpsampledConv2d
from tests.fill import GOLDEN, fill, layout, picture, relative_error, shapes

NARROW = {"output_channels": 1, "output_scale": 0.5}


@torch.no_grad()
@pytest.mark.parametrize(("arch", "name"), [("unet++", "fa_unetpp"), ("unet", "fa_unet")])
def test_published_layout_and_golden_values(arch, name):
    network = fill(load_fa_model(arch, output_channels=3, output_scale=1.0, output_noise=0.0))
    assert shapes(network) == shapes(load_fa_model(arch)) == layout(name)
    golden, frames = np.load(GOLDEN / "networks.npz"), picture("frames", 2, 3, 64, 64)
    assert relative_error(network(frames), golden[f"{name}_out"]) < 1e-4
    if arch == "unet++":  # which has no sigmoid, but takes one
        assert network(frames).min() < 0
        squashed = fill(load_fa_model(arch, sigmoid=True))(frames)
        torch.testing.assert_close(squashed, network(frames).sigmoid())


@torch.no_grad()
@pytest.mark.parametrize("arch", ["unet++", "unet", "small"])
def test_any_size_and_the_narrow_output(arch):
    network = build_anonymizer(arch).eval()
    for size in ((48, 48), (37, 50), (17, 16)):
        output = network(torch.rand(2, 3, *size))
        assert output.shape == (2, 3, *size) and torch.isfinite(output).all()
    output = build_anonymizer(arch, **NARROW).eval()(torch.rand(2, 3, 48, 48))
    assert output.shape == (2, 3, 48, 48) and output.std() > 0
    assert torch.equal(output, output[:, :1].expand_as(output))
    blocks = output.unflatten(-1, (24, 2)).unflatten(-3, (24, 2))
    assert torch.equal(blocks, blocks[..., :1, :, :1].expand_as(blocks))


@torch.no_grad()
@pytest.mark.parametrize(("n_fine", "bias"), [(5, True), (5, False), (0, True)])
def test_convolution_of_doubled_maps(n_fine, bias):
    """Borders and odd sizes included."""
    conv = torch.nn.Conv2d(4 + n_fine, 3, 3, padding=1, bias=bias)
    coarse, fine = torch.randn(2, 4, 5, 7), torch.randn(2, n_fine, 10, 14)
    doubled = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = conv(torch.cat([doubled, fine], dim=1))
    torch.testing.assert_close(UpsampledConv2d(conv, 4)(coarse, fine if n_fine else None), expected)


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"sigmoid": True, "out_channels": 1}])
@pytest.mark.parametrize("size", [(48, 32), (37, 50)])
def test_folded_upsampling_gives_the_same_outputs(arguments, size):
    network, frames = fill(UNetPlusPlus(**arguments)).eval(), picture("frames", 2, 3, *size)
    expected = network(frames)
    network.fold_upsampling()
    assert relative_error(network(frames), expected.numpy()) < 1e-5
    assert not any(hasattr(module, "interpolation_mode") for module in network.modules())


def test_unet_places_the_smaller_map_as_the_published_one_does():
    """Where a halving dropped a row or column, the doubled map is centred, zeros around it."""
    up = Up(8, 2).eval()
    skip, x = torch.rand(1, 4, 7, 9), torch.rand(1, 4, 3, 3)
    placed = torch.zeros(1, 4, 7, 9)
    placed[..., 0:6, 1:7] = F.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True)
    torch.testing.assert_close(up(x, skip), up.conv(torch.cat([skip, placed], dim=1)))


def test_frames_do_not_mix_and_padding_keeps_the_place():
    network, frames = build_anonymizer("small").eval(), torch.rand(3, 3, 48, 48)
    torch.testing.assert_close(network(frames)[1:2], network(frames[1:2]))
    # an untouched corner far from the padded border gives the same output with and without padding
    wide = F.pad(frames, (0, 3, 0, 3), mode="replicate")
    torch.testing.assert_close(network(wide)[..., :8, :8], network(frames)[..., :8, :8])


def test_narrow_output_keeps_the_mean_of_each_block():
    network, frames = NarrowOutput(torch.nn.Identity(), 3, 0.5, 0.0), torch.rand(1, 3, 8, 8)
    expected = F.avg_pool2d(frames, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(network(frames), expected)


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_drawn_per_released_value_in_both_modes(training):
    network = NarrowOutput(torch.nn.Identity(), 3, 0.5, output_noise=0.05).train(training)
    noise = network(torch.full((50, 3, 16, 16), 0.5)) - 0.5
    assert noise.mean().abs().item() < 0.002 and not torch.allclose(noise[0], noise[1])
    # repeated pixels carry the same noise, so averaging them removes none of it
    for values in (noise, F.avg_pool2d(noise, 2)):
        assert values.std().item() == pytest.approx(0.05, rel=0.05)


def test_noise_belongs_to_a_frame_and_passes_gradients():
    """To the seed, the medium's name, the frame and the release, whatever passes with it."""
    network = build_anonymizer("small", output_noise=0.1, **NARROW).eval()
    frames = torch.full((4, 3, 16, 16), 0.5)

    def released(*numbers, seed=3, medium="folder/v.mp4", release=0):
        keys = noise_keys(seed, medium, numbers, release)
        return apply_anonymizer(network, frames[: len(numbers)], noise=keys)

    together = released(0, 1, 2, 3)
    assert all(torch.equal(released(i)[0], together[i]) for i in range(4))
    assert torch.equal(released(3, 1, medium="elsewhere/v.mkv"), together[[3, 1]])
    others = (released(1), released(0, seed=4), released(0, medium="w"), released(0, release=1))
    assert not any(torch.equal(other[0], together[0]) for other in others)
    # a training's noise comes from the global generator, which its steps seed
    assert not torch.equal(apply_anonymizer(network, frames), apply_anonymizer(network, frames))
    apply_anonymizer(network.train(), torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_release_holds_8_bits_and_lets_every_gradient_through():
    frames = torch.linspace(-0.5, 1.5, 999).requires_grad_()
    released = as_8_bit(frames)
    levels = (released * 255).round()
    assert torch.equal(released, levels / 255) and levels.unique().tolist() == list(range(256))
    assert (released - frames.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    (released * torch.arange(999)).sum().backward()
    assert torch.equal(frames.grad, torch.arange(999.0))
    assert as_8_bit(frames.bfloat16()).dtype == torch.float32


def test_impossible_values():
    for name, value in (("output_channels", 2), ("output_scale", 0.0), ("output_noise", -1.0)):
        with pytest.raises(UserError, match=name):
            build_anonymizer("small", **{name: value})
