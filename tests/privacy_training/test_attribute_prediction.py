"""What the attacker's network says becomes probabilities, and the scores follow from them."""

from types import SimpleNamespace

import torch
from torch import nn

from aux_code.metrics import attribute_metrics
from privacy_training.attribute_prediction import Attack, predict
from privacy_training.released_images import ReleasedImages

LOGITS = torch.tensor([[0.3, -2.0], [2.0, 0.1], [-1.0, 0.4], [-0.2, -0.3]])


class Says(nn.Module):
    """A network whose logits are written in its pictures' first pixels."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures[:, :2, 0, 0]


def test_predictions_are_probabilities_and_f1_thresholds_them_at_one_half():
    """The release thresholds logits at 0.5, which loses every attribute between a probability of
    0.5 and 0.62."""
    pictures = torch.zeros(4, 3, 2, 2)
    pictures[:, :2, 0, 0] = LOGITS
    labels = (LOGITS > 0).float()
    run = SimpleNamespace(device=torch.device("cpu"))
    attack = Attack(Says(), None, SimpleNamespace(precision="fp32"), run, [])
    probabilities = predict(attack, ReleasedImages([pictures], labels), batch_size=3)
    torch.testing.assert_close(probabilities, LOGITS.sigmoid())
    assert attribute_metrics(probabilities.numpy(), labels.numpy()).f1 == 1.0
    assert attribute_metrics(LOGITS.numpy(), labels.numpy()).f1 < 0.8
