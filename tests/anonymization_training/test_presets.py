"""Every preset builds its networks; the paper's take a step of each kind at full architecture and
full size."""

from dataclasses import replace

import pytest
import torch

from anonymization_training.minimax import (
    Networks,
    build_updaters,
    step_adversaries,
    step_anonymizer,
)
from anonymization_training.params_anonymization import (
    INIT_ANONYMIZER,
    INIT_PRIVACY,
    INIT_UTILITY,
    TRAIN_ANONYMIZER,
)
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model

ALL = {
    "init_anonymizer": INIT_ANONYMIZER,
    "init_utility": INIT_UTILITY,
    "init_privacy": INIT_PRIVACY,
    "train_anonymizer": TRAIN_ANONYMIZER,
}
CPU = torch.device("cpu")


def test_the_paper_is_the_default_of_every_script_and_the_miniature_exists():
    for script, presets in ALL.items():
        assert next(iter(presets)) == "paper" and "miniature" in presets, script


def test_the_papers_values():
    """Paper, sections 3 and 4, and the release where the paper is silent."""
    paper = TRAIN_ANONYMIZER["paper"]
    assert (paper.size, paper.clip_length, paper.stride) == (224, 16, 2)
    assert (paper.batch_videos, paper.batch_images) == (8, 12)
    assert (paper.omega, paper.margin, paper.temperature, paper.epochs) == (0.1, 1.0, 0.1, 80)
    assert (paper.utility_weight, paper.budget_weight, paper.learning_rate) == (0.7, 1.0, 1e-4)
    assert (paper.utility_loss, paper.alternate) == ("triplet", "steps")
    assert TRAIN_ANONYMIZER["paper_spact"] == replace(paper, utility_loss="ce", omega=0.0)
    release = TRAIN_ANONYMIZER["release"]
    changed = (release.alternate, release.batch_norm, release.fa_learning_rate_factor)
    assert changed == ("batches", "running", 0.4)


@pytest.mark.parametrize("name", INIT_ANONYMIZER)
def test_anonymizers_of_the_presets_keep_the_shape_of_frames(name):
    params = INIT_ANONYMIZER[name]
    narrow = {k: getattr(params, k) for k in ("output_channels", "output_scale", "output_noise")}
    fa = load_fa_model(params.fa_arch, **narrow).eval()
    frames = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        output = fa(frames)
    assert output.shape == frames.shape
    if "plus" in name:
        assert torch.equal(output[:, 0], output[:, 1])
        columns = [output[..., i::4] for i in range(4)]
        assert all(torch.equal(columns[0], other) for other in columns[1:])


@pytest.mark.parametrize("name", TRAIN_ANONYMIZER)
def test_every_preset_has_initialisations_and_omega_0_without_a_term(name):
    params = TRAIN_ANONYMIZER[name]
    assert (params.utility_loss == "ce") == (params.omega == 0)
    scale = name.split("_")[0].replace("release", "paper")
    assert scale in INIT_UTILITY and scale in INIT_PRIVACY and scale in INIT_ANONYMIZER


@pytest.fixture(scope="module")
def paper_networks() -> Networks:
    """UNet++, I3D-ResNet50 and ResNet-50 with random weights."""
    torch.manual_seed(0)
    params = INIT_ANONYMIZER["paper"], INIT_UTILITY["paper"], INIT_PRIVACY["paper"]
    archs = [params[0].fa_arch, params[1].ft_arch, params[2].fb_arch]
    assert archs == ["unet++", "largei3d", "r50"]
    fa, ft = load_fa_model("unet++"), load_ft_model("largei3d")
    return Networks(fa, ft, load_fb_model("r50", ssl=True))


def take_both_steps(networks: Networks, params, n_views: int, n_frames: int) -> dict[str, float]:
    """Both steps of a preset on one video and two images; all players move."""
    clips = torch.rand(n_views, 1, 3, n_frames, params.size, params.size)
    batch = ClipBatch(clips, torch.tensor([1]), None, ("a",))
    images = ImageBatch(torch.rand(2, 2, 3, params.size, params.size), ("b", "c"))
    updaters = build_updaters(networks, params, CPU)
    watched = [next(net.parameters()) for net in (networks.fa, networks.ft, networks.fb)]
    before = [weight.clone() for weight in watched]
    losses = step_anonymizer(networks, batch, images, params, updaters.fa)
    moved = [not torch.equal(a, b) for a, b in zip(before, watched, strict=True)]
    assert moved == [True, False, False]
    losses |= step_adversaries(networks, batch, images, params, updaters)
    assert all(not torch.equal(a, b) for a, b in zip(before, watched, strict=True))
    return losses


def test_the_papers_steps_at_full_size(paper_networks):
    """Everything as the preset has it, 3 clips of 16 frames of 224 x 224 pixels, of one video."""
    params = TRAIN_ANONYMIZER["paper"]
    losses = take_both_steps(paper_networks, params, n_views=3, n_frames=params.clip_length)
    assert set(losses) >= {"step1/total", "step1/triplet", "step2/cross_entropy", "step2/budget"}
    assert losses["step1/utility"] == pytest.approx(losses["step2/utility"], rel=0.2)


@pytest.mark.parametrize("name", ["release", "paper_spact", "paper_ted_spad_plus"])
def test_presets_step_at_full_architecture_and_full_clip_length(paper_networks, name):
    """16 frames, small ones, every other parameter as it is but fp16, which a CPU emulates."""
    params = replace(TRAIN_ANONYMIZER[name], size=48, precision="fp32")
    losses = take_both_steps(paper_networks, params, n_views=3, n_frames=16)
    assert set(losses) >= {"step1/total", "step2/cross_entropy", "step2/budget"}
    assert ("step1/triplet" in losses) == (params.utility_loss == "triplet")
