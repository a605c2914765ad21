"""The two steps: who learns, from what, and what stays as it is (paper, Algorithm 1)."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training import minimax
from anonymization_training.minimax import NonFiniteLoss, step_adversaries, step_anonymizer
from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer
from aux_code.model_loaders import apply_anonymizer
from aux_code.models.anonymizers import ANONYMIZERS
from tests.anonymization_training.conftest import CPU, batch, networks, params, updater, updaters
from tests.losses.test_contrastive import obvious_nt_xent

TERMS = ["ce", "triplet", "lltc", "invariance"]


def snapshot(players) -> dict[str, dict[str, Tensor]]:
    """Parameters and buffers of each."""
    return {name: copy.deepcopy(getattr(players, name).state_dict()) for name in ("fa", "ft", "fb")}


def changed(before, players) -> dict[str, set[str]]:
    """Names of the entries of each that differ."""
    found = {}
    for name, old in before.items():
        now = getattr(players, name).state_dict()
        found[name] = {entry for entry in now if not torch.equal(old[entry], now[entry])}
    return found


def weights(net: nn.Module) -> set[str]:
    """Names of what an optimizer moves."""
    return {name for name, _ in net.named_parameters()}


def modes(players) -> list[bool]:
    """Whether f_A, f_T and f_B take the batch's statistics."""
    return [net.training for net in (players.fa, players.ft, players.fb)]


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("chunk", [0, 5])
def test_step_1_changes_the_anonymizer_alone(statistics, chunk):
    players = networks()
    before, adversaries = snapshot(players), [*players.ft.parameters(), *players.fb.parameters()]
    adversaries[0].requires_grad_(False)  # it stays so
    goal = params(batch_norm=statistics, recompute_chunk=chunk)
    step_anonymizer(players, *batch(), goal, updater(players.fa))
    found = changed(before, players)
    assert weights(players.fa) == found["fa"] and not found["ft"] and not found["fb"]
    assert modes(players) == [False, statistics == "batch", statistics == "batch"]
    assert all(p.grad is None for p in adversaries)
    assert [p.requires_grad for p in adversaries] == [False] + [True] * (len(adversaries) - 1)


def test_step_2_changes_the_adversaries_alone_and_the_anonymizer_runs_without_gradient():
    players, outputs = networks(), []
    before = snapshot(players)
    players.fa.register_forward_hook(lambda net, inputs, output: outputs.append(output))
    step_adversaries(players, *batch(), params(), updaters(players))
    assert [output.requires_grad for output in outputs] == [False, False]  # clips, images
    assert all(p.grad is None for p in players.fa.parameters())
    found = changed(before, players)
    assert not found["fa"]
    assert weights(players.ft) <= found["ft"] and weights(players.fb) <= found["fb"]


def test_settling_changes_the_utility_network_alone():
    players = networks()
    before = snapshot(players)
    losses = minimax.step_utility(players, batch()[0], params(), updater(players.ft))
    found = changed(before, players)
    assert not found["fa"] and not found["fb"]
    assert any("running_mean" in name for name in found["ft"])
    assert set(losses) == {"settle/utility", "settle/cross_entropy", "settle/triplet"}


@pytest.mark.parametrize("statistics, of_fa", [("running", "00"), ("batch", "11"), ("step1", "10")])
@pytest.mark.parametrize("others", ["batch", "running"])
def test_modes_follow_the_phase_and_the_parameters(statistics, of_fa, others):
    players, goal = networks(teacher=True), params(fa_batch_norm=statistics, batch_norm=others)
    for phase, fa, adversaries in (
        ("step 1", of_fa[0] == "1", others == "batch"),
        ("step 2", of_fa[1] == "1", True),
        ("validation", False, False),
    ):
        minimax.set_modes(players, phase, goal)
        assert modes(players) == [fa, adversaries, adversaries] and not players.teacher.training
    if statistics != "running":
        with pytest.raises(UserError, match=f"--fa_batch_norm {statistics} .*--recompute_chunk 0"):
            params(fa_batch_norm=statistics, recompute_chunk=8)


def test_in_turn_f_a_waits_for_its_adversaries():
    """Release: one step per batch."""
    players, goal, kinds = networks(), params(alternate="batches"), []
    each = updaters(players)
    for _ in range(4):
        losses = minimax.minimax_step(players, *batch(), goal, each)
        kinds.append({name.split("/")[0] for name in losses})
    assert kinds == [{"step1"}, {"step2"}] * 2
    assert each.ft.n_updates == each.fb.n_updates == each.fa.n_updates == 2


def gradient(net: nn.Module) -> Tensor:
    """Of all parameters, flat."""
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def test_step_1_minimises_weighted_utility_minus_weighted_budget_by_a_clipped_gradient():
    players, goal = networks(), params(utility_weight=0.7, budget_weight=2.0)
    losses = step_anonymizer(players, *batch(), goal, updater(players.fa, clip=1e-3))
    loss = {name.removeprefix("step1/"): value for name, value in losses.items()}
    assert loss["total"] == pytest.approx(0.7 * loss["utility"] - 2.0 * loss["budget"])
    assert loss["utility"] == pytest.approx(loss["cross_entropy"] + 0.1 * loss["triplet"])
    assert gradient(players.fa).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("weights, sign", [((1.0, 0.0), 1), ((0.0, 1.0), -1)])
def test_the_gradient_lowers_utility_loss_and_raises_budget_loss(weights, sign):
    players, data = networks(), batch()
    goal = params(utility_weight=weights[0], budget_weight=weights[1], batch_norm="running")
    slow = updater(players.fa, 1e-3)
    name = "step1/utility" if sign > 0 else "step1/budget"
    values = [step_anonymizer(players, *data, goal, slow)[name] for _ in range(6)]
    assert sign * (values[0] - values[-1]) > 1e-3


def test_frames_and_images_pass_in_equal_parts():
    players, seen = networks(), []
    players.fa.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    step_anonymizer(players, *batch(), params(recompute_chunk=5), updater(players.fa))
    forward = [5] * 14 + [2] + [4, 4]  # 72 frames of 9 clips, 8 images
    assert seen == [*forward, *forward[::-1]]


@pytest.mark.parametrize(
    "dtype, tolerance, chunks", [(torch.float64, 1e-10, (0, 8, 1)), (torch.float32, 1e-4, (0, 8))]
)
def test_the_frames_of_a_pass_make_no_difference(dtype, tolerance, chunks):
    """All at once, a clip's or one by one: gradients of both steps, running statistics, noise."""
    found, (clips, images) = [], batch()
    clips = clips._replace(clips=clips.clips.to(dtype))
    images = images._replace(views=images.views.to(dtype))
    for chunk in chunks:
        players, goal = networks(output_noise=0.05), params(recompute_chunk=chunk)
        nets = [net.to(dtype) for net in (players.fa, players.ft, players.fb)]
        torch.manual_seed(1)  # as every step does
        step_anonymizer(players, clips, images, goal, updater(players.fa, 0.0))
        vectors = [gradient(players.fa)]
        step_adversaries(players, clips, images, goal, updaters(players))
        buffers = [torch.cat([b.flatten().to(dtype) for b in net.buffers()]) for net in nets]
        found.append([*vectors, gradient(players.ft), gradient(players.fb), *buffers])
    for others in found[1:]:
        for whole, pieces in zip(found[0], others, strict=True):
            assert (whole - pieces).norm() <= tolerance * whole.norm()


def test_single_frames_differ_by_rounding_alone():
    """In float32 a value may come to the next level, from which f_T's gradient can move far."""
    clips, found = batch()[0].clips.flatten(0, 1), []
    weights = torch.rand(clips.shape, generator=torch.Generator().manual_seed(0))
    for chunk in (0, 1):
        fa = networks().fa.eval()
        released = minimax.anonymize(fa, clips, chunk, with_gradient=True)
        (released * weights).sum().backward()
        found.append((released.detach(), gradient(fa)))
    (whole, of_whole), (single, of_single) = found
    assert (whole - single).abs().max() < 1.01 / 255 and (whole != single).float().mean() < 1e-3
    assert (of_whole - of_single).norm() <= 1e-4 * of_whole.norm()


@pytest.mark.parametrize("fa_arch", sorted({*ANONYMIZERS} - {"unet"}))  # which takes a minute
def test_what_is_trained_is_what_is_released(fa_arch):
    """Normalised by a clip, f_A's trained and released pictures came to differ altogether."""
    players, (clips, images) = networks(fa_arch=fa_arch), batch("ce", size=16)
    goal = params(utility_loss="ce", omega=0.0, learning_rate=1e-4)
    each = minimax.build_updaters(players, goal, CPU)
    clips = clips._replace(clips=clips.clips[:, :, :, :2])
    images = images._replace(views=images.views[:, :2])
    for step in range(20):
        torch.manual_seed(step)
        minimax.minimax_step(players, clips, images, goal, each)
    minimax.set_modes(players, "step 1", goal)
    frames = clips.clips[0].transpose(1, 2).flatten(0, 1)  # (6, 3, 16, 16)
    with torch.no_grad():
        trained = apply_anonymizer(players.fa, frames)
    released = apply_anonymizer(prepare_anonymizer(players.fa, CPU), frames)
    assert (trained - released).square().mean().sqrt() < 0.01 * trained.std()


def slow_utility_loss(players, clips, goal) -> float:
    """L_T from single outputs of f_T with explicit loops."""
    n_views, n_videos = clips.clips.shape[:2]
    frames = torch.stack([
        torch.stack([apply_anonymizer(players.fa, clip[:, t][None])[0] for t in range(8)], dim=1)
        for view in clips.clips for clip in view
    ])  # fmt: skip
    logits, embedding = players.ft(frames)
    terms = [
        -F.log_softmax(logits[k * n_videos + b], 0)[clips.labels[b]]
        for k in range(n_views if goal.ce_on_all_clips else 1)
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
def test_utility_loss_equals_a_slow_version(term, on_all_clips):
    players, (clips, _) = networks(), batch(term)
    players.fa.eval(), players.ft.eval()
    goal = params(utility_loss=term, omega=0.3, margin=0.2, ce_on_all_clips=on_all_clips)
    total, parts = minimax.utility_loss(players, clips, goal)
    assert total.item() == pytest.approx(slow_utility_loss(players, clips, goal), rel=1e-4)
    assert set(parts) == {"cross_entropy", term if term != "ce" else "cross_entropy"}


@torch.no_grad()
def test_distillation_compares_with_the_teacher_on_raw_clips():
    players, (clips, _) = networks(teacher=True), batch()
    players.fa.eval(), players.ft.eval()
    total, parts = minimax.utility_loss(players, clips, params(distillation_weight=2.0))
    flat = clips.clips.flatten(0, 1)
    frames = [apply_anonymizer(players.fa, clip.transpose(0, 1)) for clip in flat]
    anonymized = torch.stack(frames).transpose(1, 2)
    student, teacher = (net.extract_features for net in (players.ft, players.teacher))
    cosines = F.normalize(student(anonymized)) * F.normalize(teacher(flat))
    assert parts["distillation"].item() == pytest.approx(1 - cosines.sum().item() / 9, abs=1e-5)
    assert parts["distillation"] > 1e-3
    expected = parts["cross_entropy"] + 0.1 * parts["triplet"] + 2 * parts["distillation"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    without = minimax.utility_loss(players, clips, params(distillation_weight=0.0))
    assert "distillation" not in without[1]


def test_budget_positives_are_two_views_of_an_image_or_two_times_of_a_video():
    players, (clips, images) = networks(), batch()
    players.fa.eval(), players.fb.eval()
    pairs = {"views": images.views, "frames": (clips.clips[0, :, :, 0], clips.clips[2, :, :, 7])}
    for positives, (first, second) in pairs.items():
        value = minimax.budget_loss(players, clips, images, params(budget_positives=positives))
        embeddings = [players.fb(apply_anonymizer(players.fa, x)) for x in (first, second)]
        assert value.item() == pytest.approx(obvious_nt_xent(*embeddings, 0.1), rel=1e-4), positives


@pytest.mark.parametrize("step", ["anonymizer", "adversaries", "utility"])
def test_nothing_is_updated_when_a_loss_is_not_finite(step):
    players, (clips, images) = networks(), batch()
    clips.clips[0, 1, 0, 3] = float("nan")
    before, each = snapshot(players), updaters(players)
    own = {"anonymizer": each.fa, "adversaries": each, "utility": each.settle}[step]
    data = [clips] if step == "utility" else [clips, images]
    with pytest.raises(NonFiniteLoss, match="nan"):
        getattr(minimax, f"step_{step}")(players, *data, params(), own)
    for name, entries in changed(before, players).items():
        net = getattr(players, name)
        assert not entries & weights(net) and all(p.requires_grad for p in net.parameters())


def test_a_gradient_that_is_not_finite_leaves_both_adversaries_as_they_were():
    players = networks()
    before = snapshot(players)
    next(players.fb.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteLoss, match="gradient"):
        step_adversaries(players, *batch(), params(), updaters(players))
    assert not changed(before, players)["ft"] & weights(players.ft)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_part_that_is_not_finite_is_named(value: float):
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    with pytest.raises(NonFiniteLoss, match="step1/triplet is"):
        minimax.finite({"total": one, "triplet": torch.tensor(value)}, "step1/")
    assert minimax.finite({"a": one, "b": two}, "x/") == {"x/a": 1.0, "x/b": 2.0}


def test_an_updater_comes_back_with_its_moments_and_count():
    torch.manual_seed(0)
    first, second = (nn.Linear(3, 1) for _ in range(2))
    one, other = updater(first, 0.1), updater(second, 0.1)
    x = torch.rand(4, 3)
    for _ in range(3):
        one.update(first(x).square().mean())
    other.load_state_dict(copy.deepcopy(one.state_dict()))  # as from a file
    second.load_state_dict(first.state_dict())
    one.update(first(x).square().mean())
    other.update(second(x).square().mean())
    assert one.n_updates == other.n_updates == 4 and torch.equal(first.weight, second.weight)


def test_half_precision_losses_stay_in_full_precision():
    half, full = networks(), networks()
    losses = step_anonymizer(half, *batch(), params(), updater(half.fa, precision="bf16"))
    reference = step_anonymizer(full, *batch(), params(), updater(full.fa))
    for name in ("step1/budget", "step1/utility"):
        assert losses[name] == pytest.approx(reference[name], rel=0.05)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.fa.parameters())


def test_fp16_scales_gradients_so_that_small_ones_survive_and_leaves_out_what_overflows():
    """The release trains in fp16 without scaling: a gradient of 1e-8 becomes 0."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    scaled = updater(net, precision="fp16")

    def loss(factor: float) -> Tensor:
        with scaled.autocast():
            output = net(torch.ones(2, 4))
            assert output.dtype == torch.float16
            return output.float().mean() * factor

    scaled.update(loss(1e-8))
    torch.testing.assert_close(net.weight.grad, torch.full((1, 4), 1e-8), rtol=1e-2, atol=0)
    before, scale = net.weight.clone(), scaled.scaler.get_scale()
    scaled.update(loss(1e6))
    assert torch.equal(net.weight, before) and scaled.scaler.get_scale() == scale / 2


def test_views_one_by_one_have_statistics_of_their_own():
    """Release: f_T sees anchor, positive and negative one after the other, f_B the two views."""
    players, (clips, images), goal = networks(), batch(), params(joint_views=False)
    players.fa.eval()
    read = [players.ft(minimax.anonymize(players.fa, view, 0, False)) for view in clips.clips]
    z = [embedding for _, embedding in read]
    near, far = (z[0] - z[1]).norm(dim=1), (z[0] - z[2]).norm(dim=1)
    expected = F.cross_entropy(read[0][0], clips.labels)
    expected += goal.omega * (near - far + goal.margin).clamp(min=0).mean()
    total, together = (minimax.utility_loss(players, clips, p)[0] for p in (goal, params()))
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert abs(together - total) > 1e-3
    frames = images.views.unsqueeze(3)  # (2, N, 3, 1, H, W)
    views = [players.fb(minimax.anonymize(players.fa, x, 0, False).squeeze(2)) for x in frames]
    budget = minimax.budget_loss(players, clips, images, goal).item()
    assert budget == pytest.approx(obvious_nt_xent(*views, 0.1), rel=1e-4)
