"""What the attacker's network says becomes probabilities; the weights that are averaged."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aux_code.metrics import attribute_metrics
from privacy_training.attribute_prediction import Attack, build_attack, predict
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import ReleasedImages

LOGITS = torch.tensor([[0.3, -2.0], [2.0, 0.1], [-1.0, 0.4], [-0.2, -0.3]])


class Says(nn.Module):
    """A network whose logits are written in its images' first pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :2, 0, 0]


def test_predictions_are_probabilities_and_f1_thresholds_them_at_one_half():
    """The release thresholds logits at 0.5, which loses probabilities between 0.5 and 0.62."""
    images = torch.zeros(4, 3, 2, 2)
    images[:, :2, 0, 0] = LOGITS
    labels = (LOGITS > 0).float()
    run = SimpleNamespace(device=torch.device("cpu"))
    attack = Attack(Says(), None, PrivacyParams(precision="fp32"), run)
    probabilities = predict(attack, ReleasedImages([images], labels), batch_size=3)
    torch.testing.assert_close(probabilities, LOGITS.sigmoid())
    assert attribute_metrics(probabilities.numpy(), labels.numpy()).f1 == 1.0
    assert attribute_metrics(LOGITS.numpy(), labels.numpy()).f1 < 0.8


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
