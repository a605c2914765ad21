"""The report: protocols, thresholds, chance, absent attributes."""

import numpy as np
import pytest
import torch

from aux_code.metrics import attribute_metrics
from privacy_training.leakage_report import leakage_report, plateau, smooth
from privacy_training.params_privacy import PrivacyParams

NAMES = ["a17_color", "a4_gender"]
PARAMS = PrivacyParams(n_bootstrap=10)
LABELS = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [0, 1]], dtype=np.float32)


def entry(epoch: int, validation: torch.Tensor, test: torch.Tensor) -> dict:
    losses = {"epoch": epoch, "step": epoch, "train_loss": 1 / epoch}
    return {**losses, "validation": validation, "test": test}


def blended(epoch: int, validation_quality: float, test_quality: float) -> dict:
    """Probabilities that are a blend of the truth and of its contrary."""

    def blend(quality):
        noise = np.random.default_rng(epoch).random(LABELS.shape)
        return torch.from_numpy(quality * LABELS + (1 - quality) * noise * (1 - LABELS)).float()

    return entry(epoch, blend(validation_quality), blend(test_quality))


def report_of(history: list[dict], test_labels: np.ndarray = LABELS) -> dict:
    for found in history:
        for split, labels in (("validation", LABELS), ("test", test_labels)):
            if split in found:
                found[f"{split}_cmap"] = attribute_metrics(found[split].numpy(), labels).cmap
    return leakage_report(history, LABELS, test_labels, NAMES, PARAMS)


def test_three_protocols_choose_their_own_epochs():
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


def test_f1_thresholds_probabilities_not_logits():
    """A logit of 0.2 is a probability of 0.55: positive, which 0.5 on logits would miss."""
    said = torch.where(torch.from_numpy(LABELS) > 0, 0.2, -0.2).sigmoid()
    assert report_of([entry(1, said, said)])["protocols"]["last"]["f1"] == 1.0


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


GAINS = [
    ([0.3, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], 0.0, True),
    ([0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.7, 0.7], 0.1, False), ([0.3, 0.6], 0.3, False),
    ([0.3, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.4], -0.1, True), ([0.6], None, False),
]  # fmt: skip


@pytest.mark.parametrize(("scores", "gain", "reached"), GAINS)
def test_plateau_is_what_the_last_quarter_adds_on_validation(scores, gain, reached):
    found = plateau(dict(enumerate(scores, 1)), 1, PARAMS)
    assert found["gain"] == (None if gain is None else pytest.approx(gain, abs=1e-3))
    assert found["reached"] == reached and found["last_epoch"] == len(scores)


@pytest.mark.parametrize(("tolerance", "reached"), [(0.005, True), (0.003, False)])
def test_plateau_over_a_window_of_epochs(tolerance, reached):
    cmaps = {1: 0.2, 4: 0.5, 8: 0.6, 12: 0.602, 16: 0.604}
    found = plateau(cmaps, 16, PrivacyParams(plateau_epochs=8, plateau_gain=tolerance))
    assert found["reached"] == reached and found["gain"] == pytest.approx(0.004)


def test_smoothing():
    assert smooth(np.array([0.0, 3.0, 0.0, 0.0])) == pytest.approx([1.5, 1.0, 1.0, 0.0])
