"""Every preset builds its networks; the paper's take both steps at full architecture."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from anonymization_training import minimax
from anonymization_training import params_anonymization as presets
from anonymization_training.minimax import Networks, Updater, build_updaters
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model
from tests.anonymization_training.conftest import CPU

FA, FT, FB = presets.INIT_ANONYMIZER, presets.INIT_UTILITY, presets.INIT_PRIVACY
MINIMAX = presets.TRAIN_ANONYMIZER


def test_the_papers_values_are_the_default_of_every_script():
    """Paper, sections 3 and 4; the release where its code says something else."""
    for script in (FA, FT, FB, MINIMAX):
        assert list(script)[:4] == ["paper", "release", "ours", "miniature"]
        assert script["paper_ted_spad_plus"] is script["ours"]
    paper, release = MINIMAX["paper"], MINIMAX["release"]
    assert (paper.size, paper.clip_length, paper.stride) == (224, 16, 2)
    assert (paper.batch_videos, paper.batch_images) == (8, 12)
    assert (paper.omega, paper.margin, paper.temperature, paper.epochs) == (0.1, 1.0, 0.1, 80)
    assert (paper.utility_weight, paper.budget_weight, paper.learning_rate) == (1.0, 1.0, 1e-4)
    assert (paper.utility_loss, paper.alternate) == ("triplet", "steps")
    assert MINIMAX["paper_spact"] == replace(paper, utility_loss="ce", omega=0.0)
    assert (release.alternate, release.batch_norm) == ("batches", "running")
    assert (release.fa_learning_rate_factor, release.utility_weight) == (0.4, 0.7)
    assert (paper.budget_positives, paper.gradient_clip, paper.settle_epochs) == ("frames", 0, 0)
    assert (release.budget_positives, release.joint_views) == ("views", False)
    assert FA["paper"].fa_arch == "unet" and FT["paper"].epochs == FB["paper"].epochs == 0


@pytest.mark.parametrize("name", FA)
@torch.no_grad()
def test_anonymizers_of_the_presets_keep_the_shape_of_frames(name):
    params = FA[name]
    narrow = {k: getattr(params, k) for k in ("output_channels", "output_scale", "output_noise")}
    frames = torch.rand(1, 3, 48, 48)
    output = load_fa_model(params.fa_arch, **narrow).eval()(frames)
    assert output.shape == frames.shape
    if "plus" in name:
        assert torch.equal(output[:, 0], output[:, 1])
        assert all(torch.equal(output[..., 0::4], output[..., i::4]) for i in range(1, 4))


@pytest.mark.parametrize("name", MINIMAX)
def test_every_preset_has_initialisations_and_omega_0_without_a_term(name):
    params = MINIMAX[name]
    assert (params.utility_loss == "ce") == (params.omega == 0)
    scale = name.split("_")[0]
    assert scale in FT and scale in FB and scale in FA


def build_paper_networks(name: str = "paper") -> Networks:
    """f_A of a preset, I3D-ResNet50 and ResNet-50 with random weights."""
    torch.manual_seed(0)
    fa, ft = load_fa_model(FA[name].fa_arch), load_ft_model("largei3d")
    return Networks(fa, ft, load_fb_model("r50", ssl=True))


def random_batch(params, n_videos: int, n_images: int) -> tuple[ClipBatch, ImageBatch]:
    """Clips and views as the parameters say."""
    shape = (n_videos, 3, params.clip_length, params.size, params.size)
    clips = ClipBatch(torch.rand(3, *shape), torch.ones(n_videos).long(), None, ("a",))
    views = torch.rand(2, n_images, 3, params.size, params.size)
    return clips, ImageBatch(views, ("b", "c"))


def test_the_papers_steps_at_full_size(monkeypatch):
    """3 clips of 16 frames of 224 x 224 pixels of each of two videos and 24 images, everything else
    as the preset has it, on tensors that have shapes and no values: the weights that a step trains
    get a gradient, and no others."""
    params, learned = MINIMAX["paper"], []

    def backward(self, loss) -> None:
        loss.backward()
        learned.append([])
        for net in (players.fa, players.ft, players.fb):
            learned[-1].append({p.grad is not None for p in net.parameters()})

    monkeypatch.setattr(Updater, "backward", backward)
    monkeypatch.setattr(Updater, "step", lambda self: None)
    monkeypatch.setattr(minimax, "finite", lambda losses, prefix: {
        prefix + name: loss.shape for name, loss in losses.items()
    })  # fmt: skip
    with FakeTensorMode():
        players = build_paper_networks()
        updaters = build_updaters(players, params, CPU)
        data = random_batch(params, 2, params.batch_images)
        losses = minimax.minimax_step(players, *data, params, updaters)
    yes, no = {True}, {False}
    assert learned == [[yes, no, no], [no, yes, no], [no, yes, yes]]  # f_T keeps its own to the end
    parts = ("utility", "budget", "cross_entropy", "triplet")
    names = ["step1/total", *(f"{step}/{part}" for step in ("step1", "step2") for part in parts)]
    assert losses == dict.fromkeys(names, torch.Size([]))


@pytest.fixture(scope="module")
def paper_networks() -> Networks:
    """With values, and the f_A that takes less than half of the time."""
    return build_paper_networks("release")


@pytest.mark.parametrize("name", ["paper", "release", "paper_spact", "paper_ted_spad_plus"])
def test_presets_step_at_full_architecture_and_full_clip_length(paper_networks, name):
    """3 clips of 16 small frames of a video, 2 images, every other parameter as it is but fp16,
    which a CPU emulates, and one video's two frames, which have no negatives; all players move."""
    changed = {"size": 48, "precision": "fp32", "budget_positives": "views"}
    params = replace(MINIMAX[name], **changed)
    n_videos = 1 if params.joint_views else 2  # a clip of one video alone has no statistics
    data = random_batch(params, n_videos, 2)
    updaters = build_updaters(paper_networks, params, CPU)
    players = (paper_networks.fa, paper_networks.ft, paper_networks.fb)
    before = [next(net.parameters()).clone() for net in players]

    def moved() -> list[bool]:
        now = [next(net.parameters()) for net in players]
        return [not torch.equal(a, b) for a, b in zip(before, now, strict=True)]

    losses = minimax.step_anonymizer(paper_networks, *data, params, updaters.fa)
    assert moved() == [True, False, False]
    losses |= minimax.step_adversaries(paper_networks, *data, params, updaters)
    assert moved() == [True, True, True]
    assert losses.keys() >= {"step1/total", "step2/cross_entropy", "step2/budget"}
    assert ("step1/triplet" in losses) == (params.utility_loss == "triplet")
    if name == "paper":
        assert losses["step1/utility"] == pytest.approx(losses["step2/utility"], rel=0.2)
