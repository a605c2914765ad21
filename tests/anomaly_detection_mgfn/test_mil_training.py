"""Shuffled pairs, held-out videos, choice of the epoch, losses and bags in either precision."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_detection_mgfn import mil_training, stage_data
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mil_training import Choice, split_validation, training_losses
from anomaly_detection_mgfn.params_mgfn import MINIATURE, PAPER, RELEASE
from aux_code.errors import UserError
from aux_code.runs import seeded_generator

CPU = torch.device("cpu")


def epoch_pairs(n_normal, n_anomalous, batch_size, epoch, seed=0):
    generator = seeded_generator(seed, "pairs", epoch)
    pairs = mil_training.pair_batches(n_normal, n_anomalous, batch_size, generator)
    return [(n.tolist(), a.tolist()) for n, a in pairs]


SIZES = [(800, 810, 16), (40, 7, 16), (3, 50, 16), (5, 5, 16), (1, 1, 4)]


@pytest.mark.parametrize("n_normal, n_anomalous, batch_size", SIZES)
def test_every_video_is_used_in_every_epoch(n_normal, n_anomalous, batch_size):
    for epoch in range(2):
        pairs = epoch_pairs(n_normal, n_anomalous, batch_size, epoch)
        uses = Counter(i for normal, _ in pairs for i in normal)
        assert uses.keys() == set(range(n_normal))
        assert {i for _, anomalous in pairs for i in anomalous} == set(range(n_anomalous))
        assert len({len(side) for pair in pairs for side in pair}) == 1, "all of one size"
        assert max(uses.values()) - min(uses.values()) <= 1


def test_other_pairs_meet_in_each_epoch():
    first, second, again = (epoch_pairs(64, 64, 16, epoch) for epoch in (0, 1, 0))
    met, now = ({(i, j) for n, a in own for i in n for j in a} for own in (first, second))
    assert len(met & now) < 0.5 * len(met)
    assert first == again != epoch_pairs(64, 64, 16, 0, seed=1)


def test_held_out_videos_cover_classes_and_categories():
    labels = [0] * 40 + [1] * 40
    categories = ["normal"] * 40 + ["abuse"] * 20 + ["arson"] * 20
    split = split_validation(labels, categories, 0.2, seed=3)
    assert sorted(split[0] + split[1]) == list(range(80))
    assert Counter(categories[i] for i in split[1]) == {"normal": 8, "abuse": 4, "arson": 4}
    assert split == split_validation(labels, categories, 0.2, seed=3)
    assert split != split_validation(labels, categories, 0.2, seed=4)
    for fraction, labels in ((0.0, [0, 0, 0]), (0.2, [0, 0, 1])):
        with pytest.raises(UserError, match="anomalous training videos"):
            split_validation(labels, categories, fraction, seed=0)


def test_validation_prefers_the_area_and_then_the_likelihood():
    def criterion(*scores):
        scores, labels = torch.tensor(scores)[:, None], np.array([0, 1, 0, 1])
        return mil_training.validation_criterion(scores, labels, 3)

    assert criterion(0.4, 0.6, 0.4, 0.6) > criterion(0.1, 0.05, 0.1, 0.9)
    assert criterion(0.1, 0.9, 0.1, 0.9) > criterion(0.4, 0.6, 0.4, 0.6)


def test_the_first_of_the_best_epochs_is_chosen_with_its_weights():
    choice, net = Choice(), torch.nn.Linear(1, 1)
    for epoch, value in enumerate([(0.5, 0.0), (0.7, -1.0), (0.7, -1.0), (0.6, 0.0)], start=1):
        torch.nn.init.constant_(net.weight, epoch)
        choice.offer(value, epoch, net)
    assert choice.epoch == 2 and choice.weights["weight"] == 2


@pytest.mark.parametrize("params", [PAPER, RELEASE, MINIATURE])
def test_loss_reaches_every_part_of_the_network(params):
    torch.manual_seed(0)
    net = MGFN(feature_dim=8, dims=(8, 8, 8), depths=(1, 1, 1))
    sum(training_losses(net, *torch.rand(2, 4, 2, 8, 9), params).values()).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    without = [name for name, own in gradients.items() if own is None or not own.abs().sum() > 0]
    # the convolutions before a channel norm shift all times alike: their bias may have no gradient
    assert not [name for name in without if not name.endswith(("bias", ".b"))]


@pytest.mark.parametrize("params", [PAPER, RELEASE])
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


def test_a_score_that_is_not_finite_is_noticed_wherever_it_is(monkeypatch):
    """Also in a segment of a normal bag that is no candidate: no part of the loss takes it."""
    net = MGFN(feature_dim=8, dims=(8, 8), depths=(0, 1)).eval()  # no view of the whole video
    normal, anomalous = torch.rand(2, 4, 1, 32, 9)
    normal[0, 0, 0] = torch.inf  # reaches segments 0 to 4
    candidates = torch.ones(8, 32, dtype=torch.bool)
    candidates[0, :5] = False
    monkeypatch.setattr(mil_training, "draw_candidates", lambda *_: candidates)
    with pytest.raises(UserError, match="scores are not finite.*--lr"):
        training_losses(net, normal, anomalous, PAPER)


def test_all_training_videos_are_in_bags_or_held_out_in_bf16_unless_they_are_mapped(small_set):
    """Held-out videos are bags as the training ones; every bag has the label of its kind."""
    where = {"dataset": str(small_set.dataset), "features": str(small_set.features)}
    params = replace(MINIATURE, n_segments=8, device="cpu", **where)
    source = stage_data.open_features(params)
    videos = stage_data.label_videos(params, source)
    data = stage_data.load_training_data(params, source, videos, CPU)
    train = [name for name in small_set.labels if name.startswith("train")]
    exact = stage_data.load_bags(params, source, train, CPU)
    kinds = [(bag, 0) for bag in data.normal] + [(bag, 1) for bag in data.anomalous]
    kinds += zip(data.validation, data.validation_labels.tolist(), strict=True)
    assert len(kinds) == len(train) and len(data.validation) == 6
    for name, own in zip(train, exact, strict=True):
        assert [label for bag, label in kinds if torch.equal(bag, own)] == [small_set.labels[name]]
    rounded = replace(params, precision="bf16")
    bags = stage_data.load_bags(rounded, source, train, CPU)
    assert bags.dtype == torch.bfloat16 and torch.equal(bags, exact.bfloat16())
    mapped = replace(rounded, memory_limit_gib=0.0)
    assert torch.equal(stage_data.load_bags(mapped, source, train, CPU), exact)


def test_noise_follows_each_feature_and_keeps_the_magnitude_true():
    torch.manual_seed(0)
    features = torch.randn(50, 2, 8, 3) * torch.tensor([0.0, 1.0, 4.0])
    bags = torch.cat([features, features.norm(dim=-1, keepdim=True)], dim=-1)
    noisy = mil_training.with_noise(bags, 0.5)
    added = (noisy - bags)[..., :-1].std(dim=(0, 1, 2))
    torch.testing.assert_close(added, torch.tensor([0.0, 0.5, 2.0]), rtol=0.1, atol=1e-6)
    torch.testing.assert_close(noisy[..., -1], noisy[..., :-1].norm(dim=-1))
    assert mil_training.with_noise(bags, 0.0) is bags


def test_the_papers_losses_learn_features_of_2048_values():
    """Half of an anomalous video shows something else, and fresh videos are told apart by it. The
    last part has an eighth of its width, for its time; the margin is a sum over that width."""
    torch.manual_seed(3)
    dims = (*PAPER.dims[:2], PAPER.dims[2] // 8)
    params = replace(PAPER, dims=dims, margin=PAPER.margin / 8)
    net, event = MGFN(2048, dims), 2 * torch.rand(2048)
    optimizer = torch.optim.Adam(net.parameters(), params.lr, weight_decay=params.weight_decay)

    def bags() -> list[Tensor]:
        features = torch.rand(2, 8, 1, 8, 2048) / 2  # of eight normal, eight anomalous videos
        features[1, :, :, :4] += event
        return [torch.cat([x, x.norm(dim=-1, keepdim=True)], -1) for x in features]

    for _ in range(20):
        parts = training_losses(net, *bags(), params)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert parts["classification"] < 0.6, "a guess: 0.69"
    with torch.no_grad():
        scores = net.eval()(torch.cat(bags())).scores
    normal, anomalous = scores.topk(params.top_k, 1).values.mean(1).split(8)
    assert anomalous.min() > normal.max()
