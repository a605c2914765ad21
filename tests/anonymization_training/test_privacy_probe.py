"""The probe sees what an anonymizer leaves, on images that did not fit it; without labels it is
silent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anonymization_training.privacy_probe import PrivacyProbe, ridge_scores
from aux_code import config
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.vispr import VISPR1

CPU = torch.device("cpu")


class MeanColours(nn.Module):
    """An f_B whose features are the mean colours."""

    def extract_features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Grey(nn.Module):
    """An f_A that leaves nothing."""

    def forward(self, frames: Tensor) -> Tensor:
        return torch.full_like(frames, 0.5)


@pytest.fixture
def vispr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eighty images, red where they show skin colour and green where they show gender."""
    folder, rng = tmp_path / "train2017", np.random.default_rng(0)
    folder.mkdir()
    for i in range(80):
        shown = rng.random(2) < 0.5
        picture = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        picture[..., :2] += (150 * shown).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
        labels = [name for name, present in zip(VISPR1[:2], shown, strict=True) if present]
        (folder / f"{i:03d}.json").write_text(json.dumps({"labels": labels}))
    monkeypatch.setattr(config, "VISPR_ROOT", tmp_path)
    return folder


def test_the_probe_reads_what_is_there_and_not_what_is_gone(vispr):
    probe = PrivacyProbe(DecodedCache(2**20), 16, CPU)
    fa, fb = nn.Identity(), MeanColours().eval()
    assert probe.cmap(fa, fb) == pytest.approx(1.0)
    assert probe.cmap(Grey(), fb) < 0.8
    assert fa.training and not fb.training


def test_without_labels_the_probe_is_silent(vispr, caplog):
    for path in vispr.glob("*.json"):
        path.unlink()
    probe = PrivacyProbe(DecodedCache(0), 16, CPU)
    assert (
        probe.cmap(nn.Identity(), MeanColours()) is None
        and probe.cmap(nn.Identity(), MeanColours()) is None
    )
    assert caplog.text.count("no privacy probe") == 1


def test_judged_rows_do_not_fit():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    labels, judged = (features[:, :1] > 0).double(), torch.arange(400) % 4 == 0
    scores = ridge_scores(features, labels, judged)
    labels[judged] = 1 - labels[judged]
    assert torch.equal(ridge_scores(features, labels, judged), scores) and scores.shape == (100, 1)
    assert ((scores > 0.5) == (features[judged, :1] > 0)).double().mean() > 0.8
