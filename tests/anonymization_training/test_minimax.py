"""The two steps: who learns, from what, and what stays as it is (paper, Algorithm 1)."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training.minimax import (
    NonFiniteLoss,
    Updater,
    anonymize,
    budget_loss,
    finite,
    frozen,
    minimax_step,
    set_modes,
    step_adversaries,
    step_anonymizer,
    step_utility,
    utility_loss,
)
from tests.anonymization_training.conftest import SwapRedAndBlue
from tests.losses.test_nt_xent import obvious_nt_xent

CPU = torch.device("cpu")
TERMS = ["ce", "triplet", "lltc", "invariance"]


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before: dict[str, Tensor], net: nn.Module) -> list[str]:
    """Names of the entries that differ."""
    return [
        name for name, value in net.state_dict().items() if not torch.equal(before[name], value)
    ]


def modes(players) -> list[bool]:
    """Whether f_A, f_T and f_B take the batch's statistics."""
    return [net.training for net in (players.fa, players.ft, players.fb)]


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("recompute_chunk", [0, 5])
def test_step_1_changes_the_anonymizer_alone(
    networks, batch, params, updater, statistics, recompute_chunk
):
    players = networks()
    before = {name: snapshot(getattr(players, name)) for name in ("fa", "ft", "fb")}
    goal = params(batch_norm=statistics, recompute_chunk=recompute_chunk)
    step_anonymizer(players, *batch(), goal, updater(players.fa))
    parameters = {name for name, _ in players.fa.named_parameters()}
    assert parameters <= set(changed(before["fa"], players.fa))
    assert modes(players) == [True, statistics == "batch", statistics == "batch"]
    for name in ("ft", "fb"):
        net = getattr(players, name)
        assert changed(before[name], net) == []
        assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_step_2_changes_the_adversaries_alone_and_the_anonymizer_runs_without_gradient(
    networks, batch, params, updaters
):
    players = networks()
    before = {name: snapshot(getattr(players, name)) for name in ("fa", "ft", "fb")}
    outputs = []
    players.fa.register_forward_hook(lambda net, inputs, output: outputs.append(output))
    step_adversaries(players, *batch(), params(), updaters(players))
    assert [output.requires_grad for output in outputs] == [False, False]  # clips, images
    assert all(p.grad is None for p in players.fa.parameters())
    weights = {name for name, _ in players.fa.named_parameters()}
    assert not set(changed(before["fa"], players.fa)) & weights
    for name in ("ft", "fb"):
        net = getattr(players, name)
        assert {n for n, _ in net.named_parameters()} <= set(changed(before[name], net)), name


@pytest.mark.parametrize("phase, adversaries", [("step 1", False), ("step 2", True)])
def test_modes_follow_the_phase_and_the_parameters(networks, params, phase, adversaries):
    players = networks(teacher=True)
    set_modes(players, phase, params(fa_batch_norm="running", batch_norm="running"))
    assert modes(players) == [False, adversaries, adversaries] and not players.teacher.training
    set_modes(players, phase, params())
    assert modes(players) == [True, True, True] and not players.teacher.training
    set_modes(players, "validation", params())
    assert modes(players) == [False, False, False]


@pytest.mark.parametrize("adversary_steps", [1, 2])
def test_in_turn_f_a_waits_for_its_adversaries(networks, batch, params, updaters, adversary_steps):
    """Release: one step per batch."""
    players, goal = networks(), params(alternate="batches", adversary_steps=adversary_steps)
    each = updaters(players)
    kinds = []
    for _ in range(4):
        losses = minimax_step(players, *batch(), goal, each)
        kinds.append({name.split("/")[0] for name in losses})
    assert kinds == [{"step1"}, {"step2"}] * 2
    assert each.ft.n_updates == each.fb.n_updates == 2 * adversary_steps and each.fa.n_updates == 2


def test_settling_changes_the_utility_network_alone(networks, batch, params, updater):
    players = networks()
    before = {name: snapshot(getattr(players, name)) for name in ("fa", "ft", "fb")}
    losses = step_utility(players, batch()[0], params(), updater(players.ft))
    assert changed(before["fa"], players.fa) == [] and changed(before["fb"], players.fb) == []
    assert any("running_mean" in name for name in changed(before["ft"], players.ft))
    assert set(losses) == {"settle/utility", "settle/cross_entropy", "settle/triplet"}


def test_both_steps_see_the_same_losses_only_with_batch_statistics(
    networks, batch, params, updater, updaters
):
    differences = {}
    for statistics in ("batch", "running"):
        players = networks()
        goal = params(batch_norm=statistics)
        first = step_anonymizer(players, *batch(), goal, updater(players.fa, 0.0))
        second = step_adversaries(players, *batch(), goal, updaters(players))
        names = ("utility", "cross_entropy", "triplet", "budget")
        differences[statistics] = {
            n: abs(first[f"step1/{n}"] - second[f"step2/{n}"]) for n in names
        }
    assert max(differences["batch"].values()) < 1e-6
    assert differences["running"]["utility"] > 1e-3


def test_step_1_minimises_weighted_utility_minus_weighted_budget(networks, batch, params, updater):
    players, goal = networks(), params(utility_weight=0.7, budget_weight=2.0)
    losses = step_anonymizer(players, *batch(), goal, updater(players.fa))
    total, utility, budget, cross_entropy, triplet = (
        losses[f"step1/{n}"] for n in ("total", "utility", "budget", "cross_entropy", "triplet")
    )
    assert total == pytest.approx(0.7 * utility - 2.0 * budget)
    assert utility == pytest.approx(cross_entropy + 0.1 * triplet)


@pytest.mark.parametrize("weights, sign", [((1.0, 0.0), 1), ((0.0, 1.0), -1)])
def test_the_gradient_lowers_utility_loss_and_raises_budget_loss(
    networks, batch, params, updater, weights, sign
):
    players, (clips, images) = networks(), batch()
    goal = params(utility_weight=weights[0], budget_weight=weights[1], batch_norm="running")
    fa_updater = updater(players.fa, 1e-3)
    name = "step1/utility" if sign > 0 else "step1/budget"
    values = [step_anonymizer(players, clips, images, goal, fa_updater)[name] for _ in range(6)]
    assert sign * (values[0] - values[-1]) > 1e-3


def test_recomputing_in_chunks_gives_the_same_update(networks, batch, params, updater):
    states = []
    for chunk in (0, 5):
        players = networks()
        # batch statistics would be those of a chunk
        goal = params(recompute_chunk=chunk, fa_batch_norm="running")
        step_anonymizer(players, *batch(), goal, updater(players.fa, 0.0))
        states.append(torch.cat([p.grad.flatten() for p in players.fa.parameters()]))
    whole, chunked = states
    assert (whole - chunked).norm() <= 1e-3 * whole.norm()


def slow_utility_loss(players, clips, goal) -> float:
    """L_T from single outputs of f_T with explicit loops."""
    n_views, n_videos = clips.clips.shape[:2]
    frames = torch.stack([
        torch.stack([players.fa(clip[:, t][None])[0] for t in range(clip.shape[1])], dim=1)
        for view in clips.clips for clip in view
    ])  # fmt: skip
    logits, embedding = players.ft(frames)
    counted = n_views if goal.ce_on_all_clips else 1
    terms = [
        -F.log_softmax(logits[k * n_videos + b], 0)[clips.labels[b]]
        for k in range(counted)
        for b in range(n_videos)
    ]
    total, z = float(sum(terms)) / len(terms), embedding.unflatten(0, (n_views, n_videos))
    term = {"ce": 0.0}
    if goal.utility_loss == "triplet":
        near, far = (torch.stack([(z[0][b] - z[k][b]).norm() for b in range(3)]) for k in (1, 2))
        term["triplet"] = float((near - far + goal.margin).clamp(min=0).mean())
    elif goal.utility_loss == "invariance":
        term["invariance"] = obvious_nt_xent(z[0], z[1], goal.temperature)
    elif goal.utility_loss == "lltc":
        videos = [obvious_nt_xent(z[:4, b], z[4:, b], goal.temperature) for b in range(n_videos)]
        term["lltc"] = sum(videos) / n_videos
    return total + goal.omega * term[goal.utility_loss]


@pytest.mark.parametrize("on_all_clips", [False, True])
@pytest.mark.parametrize("term", TERMS)
@torch.no_grad()
def test_utility_loss_equals_a_slow_version(networks, batch, params, term, on_all_clips):
    players, (clips, _) = networks(), batch(term)
    players.fa.eval(), players.ft.eval()
    goal = params(utility_loss=term, omega=0.3, margin=0.2, ce_on_all_clips=on_all_clips)
    total, parts = utility_loss(players, clips, goal)
    assert total.item() == pytest.approx(slow_utility_loss(players, clips, goal), rel=1e-4)
    assert set(parts) == {"cross_entropy", term if term != "ce" else "cross_entropy"}


@torch.no_grad()
def test_distillation_compares_with_the_teacher_on_raw_clips(networks, batch, params):
    players, (clips, _) = networks(teacher=True), batch()
    players.fa.eval(), players.ft.eval()
    total, parts = utility_loss(players, clips, params(distillation_weight=2.0))
    flat = clips.clips.flatten(0, 1)
    anonymized = torch.stack([players.fa(clip.transpose(0, 1)).transpose(0, 1) for clip in flat])
    student = players.ft.extract_features(anonymized)
    pairs = zip(student, players.teacher.extract_features(flat), strict=True)
    cosines = [float(s @ t / (s.norm() * t.norm())) for s, t in pairs]
    assert parts["distillation"].item() == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-5)
    assert parts["distillation"] > 1e-3
    expected = parts["cross_entropy"] + 0.1 * parts["triplet"] + 2 * parts["distillation"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert "distillation" not in utility_loss(players, clips, params(distillation_weight=0.0))[1]


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("recompute_chunk", [0, 4])
def test_the_anonymizer_gets_whole_frames_of_clips(recompute_chunk, with_gradient):
    """The release hands f_A one colour of three consecutive frames."""
    clips = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    output = anonymize(SwapRedAndBlue(), clips, recompute_chunk, with_gradient)
    assert torch.equal(output, clips.flip(1))


def test_budget_positives_are_two_views_of_an_image_or_two_times_of_a_video(
    networks, batch, params
):
    players, (clips, images) = networks(), batch()
    players.fa.eval(), players.fb.eval()
    pairs = {"views": images.views, "frames": (clips.clips[0, :, :, 0], clips.clips[2, :, :, 7])}
    for positives, (first, second) in pairs.items():
        value = budget_loss(players, clips, images, params(budget_positives=positives)).item()
        embeddings = [players.fb(players.fa(frames)) for frames in (first, second)]
        assert value == pytest.approx(obvious_nt_xent(*embeddings, 0.1), rel=1e-4), positives


@pytest.mark.parametrize("step", ["anonymizer", "adversaries", "utility"])
def test_nothing_is_updated_when_a_loss_is_not_finite(
    networks, batch, params, updater, updaters, step
):
    players, (clips, images) = networks(), batch()
    clips.clips[0, 1, 0, 3] = float("nan")
    before = {n: [p.clone() for p in getattr(players, n).parameters()] for n in ("fa", "ft", "fb")}
    with pytest.raises(NonFiniteLoss, match="nan"):
        if step == "anonymizer":
            step_anonymizer(players, clips, images, params(), updater(players.fa))
        elif step == "adversaries":
            step_adversaries(players, clips, images, params(), updaters(players))
        else:
            step_utility(players, clips, params(), updater(players.ft))
    for name, parameters in before.items():
        net = getattr(players, name)
        assert all(
            torch.equal(old, new) for old, new in zip(parameters, net.parameters(), strict=True)
        )
        assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_part_that_is_not_finite_is_named(value: float):
    with pytest.raises(NonFiniteLoss, match="step1/triplet is"):
        finite({"total": torch.tensor(1.0), "triplet": torch.tensor(value)}, "step1/")
    assert finite({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, "x/") == {
        "x/a": 1.0,
        "x/b": 2.0,
    }


def test_frozen_passes_gradients_through_and_restores_only_what_it_froze():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[1].bias.requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(KeyError), frozen(net):
        net(x).sum().backward()
        raise KeyError
    assert x.grad is not None and all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, False]


def test_gradients_are_clipped_and_scaled_out(networks, batch, params, updater):
    players = networks()
    clipped = updater(players.fa, clip=1e-3)
    step_anonymizer(players, *batch(), params(), clipped)
    norm = torch.cat([p.grad.flatten() for p in players.fa.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_an_updater_comes_back_with_its_moments_and_count():
    torch.manual_seed(0)
    nets = [nn.Linear(3, 1) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    updaters = [Updater(net, 0.1, "fp32", CPU, 0.0) for net in nets]
    x = torch.rand(4, 3)
    for _ in range(3):
        updaters[0].update(nets[0](x).square().mean())
    updaters[1].load_state_dict(copy.deepcopy(updaters[0].state_dict()))  # as from a file
    nets[1].load_state_dict(nets[0].state_dict())
    for net, one in zip(nets, updaters, strict=True):
        one.update(net(x).square().mean())
        assert one.n_updates == 4
    assert torch.equal(nets[0].weight, nets[1].weight)


def test_half_precision_losses_stay_in_full_precision(networks, batch, params, updater):
    players = networks()
    losses = step_anonymizer(players, *batch(), params(), updater(players.fa, precision="bf16"))
    exact = networks()
    reference = step_anonymizer(exact, *batch(), params(), updater(exact.fa))
    assert losses["step1/budget"] == pytest.approx(reference["step1/budget"], rel=0.05)
    assert losses["step1/utility"] == pytest.approx(reference["step1/utility"], rel=0.05)
    assert all(
        p.dtype == torch.float32 and torch.isfinite(p).all() for p in players.fa.parameters()
    )


def test_fp16_scales_gradients_so_that_small_ones_survive_and_leaves_out_what_overflows(updater):
    """The release trains in fp16 without scaling: a gradient of 1e-8 becomes 0."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    scaled = updater(net, precision="fp16")
    x = torch.ones(2, 4)

    def loss(factor: float) -> Tensor:
        with scaled.autocast():
            output = net(x)
            assert output.dtype == torch.float16
            return output.float().mean() * factor

    scaled.update(loss(1e-8))
    torch.testing.assert_close(net.weight.grad, torch.full((1, 4), 1e-8), rtol=1e-2, atol=0)
    before, scale = net.weight.clone(), scaled.scaler.get_scale()
    scaled.update(loss(1e6))
    assert torch.equal(net.weight, before) and scaled.scaler.get_scale() == scale / 2


def test_images_of_the_budget_are_computed_again_too_in_equal_parts(
    networks, batch, params, updater
):
    players, seen = networks(), []
    players.fa.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    step_anonymizer(players, *batch(), params(recompute_chunk=5), updater(players.fa))
    forward = [5] * 14 + [2] + [4, 4]  # 72 frames of 9 clips, 8 images
    assert seen == forward + forward[::-1]
