"""The least frames that each network learns from: bf16 gives the gradients of fp32 there."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training import params_anonymization as stage_1
from aux_code.errors import UserError
from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model
from aux_code.models import anonymizers, privacy, utility
from privacy_training.attackers import build_attacker
from privacy_training.params_privacy import PRESETS

LEAST = {"fa": anonymizers.LEAST_SIZES, "ft": utility.LEAST_SIZES, "fb": privacy.LEAST_SIZES}
CASES = [(role, arch) for role, sizes in LEAST.items() for arch in sizes]
TRAINED = [(role, arch) for role, arch in CASES if arch != "mvitv2"]
"""MViT takes no other size, and has no convolution of small maps."""
LOAD = {"fa": load_fa_model, "ft": load_ft_model, "fb": partial(load_fb_model, ssl=True)}


def pictures(n: int, n_frames: int, size: int) -> Tensor:
    """(n, 3, n_frames, size, size) in [0, 1]: of each a colour of its own, shapes and noise."""
    colours = torch.rand(n, 3, 1, 1, 1)
    shapes = F.interpolate(torch.rand(n, 3, n_frames, 4, 4), size=(n_frames, size, size))
    return 0.5 * colours + 0.4 * shapes + 0.1 * torch.rand(shapes.shape)


def gradient(role: str, arch: str, size: int, precision: torch.dtype) -> Tensor:
    """Of a network with random weights in train mode by all weights, flat: f_A reconstructs, f_T
    tells classes apart, f_B views. Residual branches of fifty layers are as weak as trained ones:
    at full strength rounding decides the gradient at every size."""
    torch.manual_seed(0)
    network = LOAD[role](arch)
    inputs = pictures(6, 16 if arch == "largei3d" else 8 if role == "ft" else 1, size)
    inputs = inputs if role == "ft" else inputs[:, :, 0]
    for name, norm in network.named_modules():
        if arch in ("r50", "largei3d") and name.endswith("bn3"):
            nn.init.constant_(norm.weight, 0.2)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        output = network.train()(inputs)
    if role == "fa":
        loss = F.l1_loss(output.float(), inputs)
    elif role == "ft":
        loss = F.cross_entropy(output.logits.float(), torch.arange(6))
    else:
        loss = nt_xent_loss(*output.float().chunk(2), 0.1)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("role, arch", TRAINED)
def test_gradients_in_bf16_are_those_of_fp32(role, arch):
    """The cosine was 0.93 and more, a pixel below 0.85 (unet++) and 0.80 (r50, 17 pixels)."""
    size = LEAST[role][arch]
    expected, found = (gradient(role, arch, size, p) for p in (torch.float32, torch.bfloat16))
    assert found.isfinite().all()
    assert F.cosine_similarity(found, expected, dim=0) > 0.88
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.1)


@pytest.mark.parametrize("role, arch", TRAINED)
def test_no_convolution_sees_a_single_pixel(role, arch):
    """By shapes alone; a pixel less, and one does."""
    maps = []
    with torch.device("meta"):
        network = LOAD[role](arch)
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.register_forward_pre_hook(lambda conv, x: maps[-1].add(x[0].shape[-1]))
        for size in (LEAST[role][arch] - 1, LEAST[role][arch]):
            maps.append(set())
            network(torch.rand(2, 3, *([16] if role == "ft" else []), size, size))
    assert min(maps[0]) == 1 and min(maps[1]) == 2


SCRIPTS = {"fa": stage_1.INIT_ANONYMIZER, "ft": stage_1.INIT_UTILITY, "fb": stage_1.INIT_PRIVACY}


@pytest.mark.parametrize("role, arch", CASES)
def test_smaller_frames_are_refused_by_the_script_that_trains_it(role, arch):
    params, least = SCRIPTS[role]["ours"], LEAST[role][arch]
    assert replace(params, **{f"{role}_arch": arch}, size=least).size == least
    with pytest.raises(
        UserError, match=f"--size must be at least {least}, not {least - 1}.*{arch}"
    ):
        replace(params, **{f"{role}_arch": arch}, size=least - 1)


def test_an_attacker_is_trained_on_images_that_it_learns_from():
    small, paper = PRESETS["miniature"], PRESETS["paper"]
    inversion = {"attacker": "inversion", "inversion_network": "unet"}
    for params, least in ((small, 9), (paper, 33), (replace(small, **inversion), 32)):
        build_attacker(replace(params, size=least), 7)
        with pytest.raises(UserError, match=f"--size must be at least {least}, not {least - 1}"):
            build_attacker(replace(params, size=least - 1), 7)
    with pytest.raises(UserError, match="--size must be at least 16, not 15"):
        replace(paper, attacker="vit", size=15)
    build_attacker(replace(paper, level="feature", size=24), 7, torch.rand(4, 2048))
