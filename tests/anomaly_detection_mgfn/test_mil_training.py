"""Shuffled pairs, held-out videos, choice of the epoch, a resumed run that equals a whole one."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from anomaly_detection_mgfn import mil_training
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mgfn_files import network_arguments
from anomaly_detection_mgfn.mil_training import (
    Choice,
    MilTraining,
    pair_batches,
    split_validation,
    training_losses,
    validation_criterion,
    with_noise,
)
from anomaly_detection_mgfn.params_mgfn import MINIATURE, PAPER, RELEASE
from anomaly_detection_mgfn.stage_data import (
    label_videos,
    load_bags,
    load_training_data,
    open_features,
    recipe_of,
)
from aux_code.errors import UserError
from aux_code.runs import seeded_generator, start_run


def epoch_pairs(n_normal, n_anomalous, batch_size, epoch, seed=0):
    generator = seeded_generator(seed, "pairs", epoch)
    pairs = pair_batches(n_normal, n_anomalous, batch_size, generator)
    return [(n.tolist(), a.tolist()) for n, a in pairs]


@pytest.mark.parametrize(
    "n_normal, n_anomalous, batch_size",
    [(800, 810, 16), (40, 7, 16), (3, 50, 16), (5, 5, 16), (1, 1, 4)],
)
def test_every_video_is_used_in_every_epoch(n_normal, n_anomalous, batch_size):
    for epoch in range(2):
        pairs = epoch_pairs(n_normal, n_anomalous, batch_size, epoch)
        assert {i for normal, _ in pairs for i in normal} == set(range(n_normal))
        assert {i for _, anomalous in pairs for i in anomalous} == set(range(n_anomalous))
        assert len({len(side) for pair in pairs for side in pair}) == 1, "all of one size"
        uses = Counter(i for normal, _ in pairs for i in normal)
        assert max(uses.values()) - min(uses.values()) <= 1


def test_other_pairs_meet_in_each_epoch():
    met = []
    for epoch in range(2):
        batches = epoch_pairs(64, 64, 16, epoch)
        met.append({(i, j) for normal, anomalous in batches for i in normal for j in anomalous})
    assert len(met[0] & met[1]) < 0.5 * len(met[0])
    assert epoch_pairs(64, 64, 16, 0) == epoch_pairs(64, 64, 16, 0)
    assert epoch_pairs(64, 64, 16, 0) != epoch_pairs(64, 64, 16, 0, seed=1)


def test_held_out_videos_cover_classes_and_categories():
    labels = [0] * 40 + [1] * 40
    categories = ["normal"] * 40 + ["abuse"] * 20 + ["arson"] * 20
    split = split_validation(labels, categories, 0.2, seed=3)
    assert sorted(split[0] + split[1]) == list(range(80))
    assert Counter(categories[i] for i in split[1]) == {"normal": 8, "abuse": 4, "arson": 4}
    assert split == split_validation(labels, categories, 0.2, seed=3)
    assert split != split_validation(labels, categories, 0.2, seed=4)


@pytest.mark.parametrize(
    "fraction, labels", [(0.0, [0, 0, 1, 1]), (1.0, [0, 0, 1, 1]), (0.2, [0, 0, 1])]
)
def test_impossible_validation_parts_are_refused(fraction, labels):
    with pytest.raises(UserError, match="validation"):
        split_validation(labels, ["a"] * len(labels), fraction, seed=0)


def test_validation_prefers_the_area_and_then_the_likelihood():
    labels = np.array([0, 1, 0, 1])

    def criterion(*scores):
        return validation_criterion(torch.tensor(scores)[:, None], labels, 3)

    assert criterion(0.4, 0.6, 0.4, 0.6) > criterion(0.1, 0.05, 0.1, 0.9)
    assert criterion(0.1, 0.9, 0.1, 0.9) > criterion(0.4, 0.6, 0.4, 0.6)
    choice, net = Choice(), torch.nn.Linear(1, 1)
    for epoch, value in enumerate([(0.5, 0.0), (0.7, -1.0), (0.7, -1.0), (0.6, 0.0)], start=1):
        choice.offer(value, epoch, net)
    assert choice.epoch == 2


def test_kept_weights_do_not_change_with_the_network():
    net, choice = torch.nn.Linear(2, 1), Choice()
    choice.offer((1.0,), 1, net)
    before = choice.weights["weight"].clone()
    with torch.no_grad():
        net.weight.add_(1.0)
    assert torch.equal(choice.weights["weight"], before)


@pytest.mark.parametrize(
    "params", [PAPER, RELEASE, MINIATURE], ids=["paper", "release", "miniature"]
)
def test_loss_reaches_every_part_of_the_network(params):
    torch.manual_seed(0)
    net = MGFN(feature_dim=8, dims=(8, 8, 8), depths=(1, 1, 1))
    parts = training_losses(net, torch.rand(4, 2, 8, 9), torch.rand(4, 2, 8, 9), params)
    sum(parts.values()).backward()
    without = [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    # the convolutions before a channel norm shift all times alike: their bias may have no gradient
    assert not [name for name in without if not name.endswith(("bias", ".b"))]


@pytest.mark.parametrize("params", [PAPER, RELEASE], ids=["paper", "release"])
def test_losses_and_gradients_in_bf16_are_close_to_those_in_fp32(params):
    params = replace(params, candidate_dropout=0.0)
    torch.manual_seed(0)
    net = MGFN(feature_dim=64, dims=(16, 32, 128), depths=(1, 1, 2))
    # before training all features have one magnitude, and rounding decides which are selected
    torch.nn.init.uniform_(net.to_logits[0].weight, 0.0, 3.0)
    bags = torch.randn(2, 4, 1, 16, 65)
    normal, anomalous = bags + 2 * torch.randn(2, 1, 1, 1, 65)  # two kinds that differ
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            parts = training_losses(net, normal.to(dtype), anomalous.to(dtype), params)
        sum(parts.values()).backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        found[dtype] = {name: value.item() for name, value in parts.items()}, gradient
    (exact, gradient), (rounded, other) = found.values()
    assert rounded == pytest.approx(exact, rel=0.05, abs=1e-6) and rounded != exact
    assert torch.nn.functional.cosine_similarity(gradient, other, dim=0) > 0.99
    assert other.norm() == pytest.approx(gradient.norm().item(), rel=0.05)


def test_the_loss_is_computed_in_fp32_outside_autocast(monkeypatch):
    """CUDA refuses F.binary_cross_entropy under autocast, in whatever dtype its inputs are."""
    seen, loss = [], mil_training.mgfn_loss

    def observed(normal, anomalous, scores, *more):
        tensors = (*normal, *anomalous, scores)
        seen.append((torch.is_autocast_enabled("cpu"), {tensor.dtype for tensor in tensors}))
        return loss(normal, anomalous, scores, *more)

    monkeypatch.setattr(mil_training, "mgfn_loss", observed)
    net = MGFN(feature_dim=8, dims=(8, 8, 8), depths=(1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        training_losses(net, torch.rand(4, 1, 8, 9), torch.rand(4, 1, 8, 9), PAPER)
    assert seen == [(False, {torch.float32})]


def tiny(small_set, **changes):
    where = {"dataset": str(small_set.dataset), "features": str(small_set.features)}
    size = {"epochs": 4, "n_segments": 8, "dims": (8, 8, 8), "batch_size": 4, "n_threads": 1}
    fixed = {**where, **size, "device": "cpu", "minutes_between_saves": 0.0}
    return replace(MINIATURE, **{**fixed, **changes})


def make_training(params, run_id):
    params = replace(params, run_id=run_id)
    run = start_run(params, "main_own")
    source = open_features(params)
    data = load_training_data(params, source, label_videos(params, source), run.device)
    torch.manual_seed(params.seed)
    net = MGFN(**network_arguments(params, source.feature_dim))
    folder, recipe = run.folder / "mgfn_own", recipe_of(params, source)
    return MilTraining(params, net, run, folder, recipe), data


class Killed(BaseException):
    """Stands for a signal."""


def test_resumed_run_equals_an_uninterrupted_one(small_set, monkeypatch):
    whole, data = make_training(tiny(small_set), "whole")
    whole.train(data)
    broken, data = make_training(tiny(small_set), "broken")
    step = MilTraining.train_epoch

    def die(self, data, epoch):
        losses = step(self, data, epoch)
        if epoch == 2:
            raise Killed
        return losses

    monkeypatch.setattr(MilTraining, "train_epoch", die)
    with pytest.raises(Killed):
        broken.train(data)
    trained = []

    def noted(self, data, epoch):
        trained.append(epoch)
        return step(self, data, epoch)

    monkeypatch.setattr(MilTraining, "train_epoch", noted)
    resumed, data = make_training(tiny(small_set, resume=True), "broken")
    torch.manual_seed(77)
    resumed.train(data)
    assert trained == [2, 3]
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
    for kind, choice in whole.choices.items():
        other = resumed.choices[kind]
        assert (choice.criterion, choice.epoch) == (other.criterion, other.epoch)
        assert all(torch.equal(own, other.weights[name]) for name, own in choice.weights.items())


def test_resuming_with_other_parameters_is_refused(small_set):
    training, data = make_training(tiny(small_set, epochs=1), "run")
    training.train(data)
    other, data = make_training(tiny(small_set, epochs=1, lr=0.5, resume=True), "run")
    with pytest.raises(UserError, match="lr"):
        other.train(data)


def test_a_score_that_is_not_finite_is_noticed_wherever_it_is():
    """Also in a segment of a normal bag that is no candidate: no part of the loss takes it."""
    net = MGFN(feature_dim=8, dims=(8, 8), depths=(0, 1)).eval()  # no view of the whole video
    normal, anomalous = torch.rand(2, 4, 1, 32, 9)
    normal[0, 0, 0] = torch.inf  # reaches segments 0 to 4
    seed = next(seed for seed in range(99) if not _candidates(seed)[0, :5].any())
    torch.manual_seed(seed)
    with pytest.raises(UserError, match="scores are not finite"):
        training_losses(net, normal, anomalous, PAPER)


def _candidates(seed):
    torch.manual_seed(seed)
    return mil_training.draw_candidates(8, 32, PAPER.top_k, PAPER.candidate_dropout)


def test_a_diverging_loss_ends_the_run(small_set):
    training, data = make_training(tiny(small_set, lr=1e30), "diverging")
    with pytest.raises(UserError, match="--lr"):
        training.train(data)


def test_all_training_videos_are_in_bags_or_held_out(small_set):
    """Held-out videos are bags as the training ones; every bag has the label of its kind."""
    params = tiny(small_set)
    _, data = make_training(params, "counts")
    train = [name for name in small_set.labels if name.startswith("train")]
    source, cpu = open_features(params), torch.device("cpu")
    every = dict(zip(train, load_bags(params, source, train, cpu), strict=True))
    kinds = [(bag, 0) for bag in data.normal] + [(bag, 1) for bag in data.anomalous]
    kinds += zip(data.validation, data.validation_labels.tolist(), strict=True)
    found = {
        name: label for bag, label in kinds for name, own in every.items() if torch.equal(bag, own)
    }
    assert len(kinds) == len(train) and len(data.validation) == 6
    assert found == {name: small_set.labels[name] for name in train}


def test_bags_of_a_training_in_bf16_are_in_bf16_unless_they_are_mapped(small_set):
    params = tiny(small_set, precision="bf16")
    source, names = open_features(params), list(small_set.arrays)[:5]

    def bags(**changes):
        return load_bags(replace(params, **changes), source, names, torch.device("cpu"))

    exact = bags(precision="fp32")
    assert bags().dtype == torch.bfloat16 and torch.equal(bags(), exact.bfloat16())
    assert torch.equal(bags(memory_limit_gib=0.0), exact)


def test_noise_follows_each_feature_and_keeps_the_magnitude_true():
    torch.manual_seed(0)
    features = torch.randn(50, 2, 8, 3) * torch.tensor([0.0, 1.0, 4.0])
    bags = torch.cat([features, features.norm(dim=-1, keepdim=True)], dim=-1)
    noisy = with_noise(bags, 0.5)
    added = (noisy - bags)[..., :-1].std(dim=(0, 1, 2))
    torch.testing.assert_close(added, torch.tensor([0.0, 0.5, 2.0]), rtol=0.1, atol=1e-6)
    torch.testing.assert_close(noisy[..., -1], noisy[..., :-1].norm(dim=-1))
    assert with_noise(bags, 0.0) is bags
