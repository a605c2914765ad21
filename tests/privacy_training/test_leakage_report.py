"""From what the attacker's network says to the report: averaged weights, probabilities, protocols,
thresholds, chance, absent attributes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from aux_code.metrics import attribute_metrics
from privacy_training.attribute_prediction import Attack, build_attack, predict
from privacy_training.leakage_report import leakage_report, plateau, smooth
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import ReleasedImages

NAMES = ["a17_color", "a4_gender"]
PARAMS = PrivacyParams(n_bootstrap=10, precision="fp32")
LABELS = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]], dtype=np.float32)


def entry(epoch: int, validation: torch.Tensor, test: torch.Tensor) -> dict:
    losses = {"epoch": epoch, "step": epoch, "train_loss": 1 / epoch}
    return {**losses, "validation": validation, "test": test}


def blended(epoch: int, *qualities: float) -> dict:
    """Probabilities of validation and test that are a blend of the truth and of its contrary."""
    noise = np.random.default_rng(epoch).random(LABELS.shape) * (1 - LABELS)
    return entry(
        epoch, *(torch.from_numpy(q * LABELS + (1 - q) * noise).float() for q in qualities)
    )


def report_of(history: list[dict], test_labels: np.ndarray = LABELS) -> dict:
    for found in history:
        for split, labels in (("validation", LABELS), ("test", test_labels)):
            if split in found:
                found[f"{split}_cmap"] = attribute_metrics(found[split].numpy(), labels).cmap
    return leakage_report(history, LABELS, test_labels, NAMES, PARAMS)


def test_three_protocols_choose_their_own_epochs():
    assert smooth(np.array([0.0, 3.0, 0.0, 0.0])) == pytest.approx([1.5, 1.0, 1.0, 0.0])
    qualities = [(0.0, 1.0), (0.0, 0.0), (0.9, 0.3), (0.9, 0.4), (0.9, 0.1), (0.0, 0.0)]
    report = report_of([blended(i + 1, *pair) for i, pair in enumerate(qualities)])
    epochs = {name: scores["epoch"] for name, scores in report["protocols"].items()}
    assert epochs == {"last": 6, "validation": 4, "best_on_test": 1}
    assert report["protocols"]["best_on_test"]["cmap"] == 1.0
    assert report["plateau"]["best_epoch_before_end"]
    for scores in report["protocols"].values():
        low, high = scores["confidence_interval"]
        assert low <= scores["cmap"] <= high
    assert report["confidence_interval"] == report["protocols"]["validation"]["confidence_interval"]


def test_epochs_that_were_not_evaluated_cannot_be_chosen():
    history = [blended(i + 1, 0.5, 0.5) for i in range(4)]
    for skipped in (history[0], history[2]):
        del skipped["validation"], skipped["test"]
    report = report_of(history)
    assert {scores["epoch"] for scores in report["protocols"].values()} <= {2, 4}
    assert [e["test_cmap"] is None for e in report["curve"]] == [True, False, True, False]


class Says(nn.Module):
    """A network whose logits are the features that it gets."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_predictions_are_probabilities_and_f1_thresholds_them_at_one_half():
    """A logit of 0.2 is a probability of 0.55: the release thresholds logits at 0.5, which loses
    it."""
    logits = torch.where(torch.from_numpy(LABELS) > 0, 0.2, -0.2)
    attack = Attack(Says(), None, PARAMS, SimpleNamespace(device=torch.device("cpu")))
    said = predict(attack, ReleasedImages(logits, torch.from_numpy(LABELS)), batch_size=4)
    torch.testing.assert_close(said, logits.sigmoid())
    assert report_of([entry(1, said, said)])["protocols"]["last"]["f1"] == 1.0
    assert attribute_metrics(logits.numpy(), LABELS).f1 == 0


def test_running_average_by_hand():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = build_attack(net, PrivacyParams(weight_averaging=0.75), None).averaged
    seen = []
    for value in (1.0, 3.0, -2.0):
        nn.init.constant_(net[0].weight, value)
        net[1].running_mean.fill_(2 * value)
        average.update_parameters(net)
        seen.append((average.module[0].weight.item(), average.module[1].running_mean.item()))
    expected = [1.0, 0.75 + 0.25 * 3, 0.75 * 1.5 - 0.25 * 2]
    assert seen == [(pytest.approx(e), pytest.approx(2 * e)) for e in expected]
    assert build_attack(net, PrivacyParams(), None).averaged is None


def test_the_plateau_divides_where_the_lowest_loss_is_not_undercut():
    attack = Attack(Says(), None, PrivacyParams(warmup_epochs=1), None)
    attack.history = [{"train_loss": loss} for loss in (0.1, 0.9, 0.8, 0.85, 0.82)]
    assert attack.plateau_rate() == pytest.approx(1e-3 / 25)


def test_absent_attribute_is_reported_not_averaged_as_zero_and_chance_stands_beside_f1():
    labels = LABELS * (1, 0)
    report = report_of([blended(1, 1.0, 1.0)], labels)
    assert report["absent_attributes"]["test"] == ["a4_gender"]
    scores, chance = report["protocols"]["last"], report["chance"]
    assert scores["per_attribute"]["a4_gender"] is None
    assert scores["cmap"] == scores["per_attribute"]["a17_color"]
    always = attribute_metrics(np.ones_like(labels), labels)
    assert chance["f1_always_yes"] == pytest.approx(always.f1) == pytest.approx(2 / 3)
    assert chance["cmap"] == chance["f1"] == 0.5


def test_held_out_attributes_stand_beside_what_counts():
    history = [entry(1, *torch.rand(2, *LABELS.shape, generator=torch.manual_seed(1)))]
    own = report_of(history)
    held_out = replace(PARAMS, held_out=("a4_gender",))
    rest = leakage_report(history, LABELS, LABELS, NAMES, held_out)
    pairs = [(own["protocols"][name], rest["protocols"][name]) for name in own["protocols"]]
    for both, one in [*pairs, (own["chance"], rest["chance"])]:
        assert one["per_attribute"] | one["held_out"] == both["per_attribute"]
        assert [*one["per_attribute"]] == ["a17_color"] and both["held_out"] == {}
        assert one["cmap"] == one["per_attribute"]["a17_color"]
    assert rest["protocols"]["last"]["cmap"] != own["protocols"]["last"]["cmap"]
    assert rest["protocols"]["last"]["f1"] != own["protocols"]["last"]["f1"]


RISE = [0.3, 0.5, 0.6, 0.6, 0.6, 0.6]
GAINS = [
    # validation cMAPs; what the last quarter adds, whether that is a plateau
    ([*RISE, 0.6, 0.6], 0.0, True),
    ([0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.7, 0.7], 0.1, False),
    ([0.3, 0.6], 0.3, False),
    ([*RISE, 0.5, 0.4], -0.1, True),
    ([0.6], None, False),
]


@pytest.mark.parametrize("scores, gain, reached", GAINS)
def test_plateau_is_what_the_last_quarter_adds_on_validation(scores, gain, reached):
    found = plateau(dict(enumerate(scores, 1)), 1, PARAMS)
    assert found["gain"] == (None if gain is None else pytest.approx(gain, abs=1e-3))
    assert found["reached"] == reached and found["last_epoch"] == len(scores)


@pytest.mark.parametrize("tolerance, reached", [(0.005, True), (0.003, False)])
def test_plateau_over_a_window_of_epochs(tolerance, reached):
    cmaps = {1: 0.2, 4: 0.5, 8: 0.6, 12: 0.602, 16: 0.604}
    found = plateau(cmaps, 16, PrivacyParams(plateau_epochs=8, plateau_gain=tolerance))
    assert found["reached"] == reached and found["gain"] == pytest.approx(0.004)
