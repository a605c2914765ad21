"""Clips through initialisations and validation: whole frames, in RGB, cropped as every evaluation;
the probe sees what an anonymizer leaves."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anonymization_training import validation
from anonymization_training.init_anonymizer import reconstruction_step
from anonymization_training.minimax import Networks
from anonymization_training.training_batches import ClipBatch, ImageBatch, TrainingData
from aux_code import config
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.transforms import evaluation_transform
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.datasets.vispr import VISPR1
from aux_code.model_loaders import apply_anonymizer, noise_keys
from aux_code.models.anonymizers import NarrowOutput, as_8_bit
from tests.anonymization_training.conftest import CPU, networks, params, updater


class SwapRedAndBlue(nn.Module):
    """An anonymizer; the identity could not tell frames from colour planes."""

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.shape[1] == 3
        return frames.flip(1)

    replacement = forward


@pytest.mark.parametrize("masked", [False, True])
def test_anonymizer_gets_whole_frames_of_clips(masked):
    """The release hands f_A one colour of three consecutive frames."""
    clips = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(2, 1, 5, 4, 6) if masked else None
    expected = clips.flip(1)
    if masked:
        masks[..., :2] = 0
        expected[..., :2] = clips[..., :2]
    assert torch.equal(validation.obfuscate(SwapRedAndBlue(), clips, masks), as_8_bit(expected))


def test_reconstruction_learns_from_whole_frames_of_clips():
    seen, fa = [], nn.Conv2d(3, 3, 1)
    fa.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    colour = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)
    clips = colour[..., None].expand(1, 2, 3, 8, 4, 4)
    clips = ClipBatch(clips, torch.tensor([1, 1]), None, ("a", "b"))
    images = ImageBatch(colour.expand(2, 3, 3, 4, 4), ("1", "2", "3"))
    reconstruction_step(fa, clips, images, updater(fa))
    assert torch.equal(seen[0], colour.expand(2 * 8 + 3, 3, 4, 4))


class Listener(nn.Module):
    """A utility network that keeps the clips it is shown and always answers class 1."""

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        self.clips = clips
        return torch.tensor([[0.0, 1.0]]).expand(len(clips), 2), torch.zeros(len(clips), 128)


def test_recognition_is_measured_in_rgb_on_the_crop_of_every_evaluation(tmp_path):
    """The release validates on BGR, and crops some data sets square."""
    picture = np.zeros((30, 50, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 200, np.linspace(0, 255, 50)
    for i in range(6):
        Image.fromarray(picture).save(tmp_path / f"{i:04d}.png")
    videos, cache = [Ucf101Item(tmp_path, 1, 0)], DecodedCache(0)
    goal, ft = SimpleNamespace(clip_length=4, stride=1, size=16, seed=0), Listener()
    found = validation.recognition_accuracy(ft, nn.Identity(), videos, cache, goal, CPU)
    assert found == (1.0, 1)
    expected = evaluation_transform(picture[None], 16)[0]
    assert ft.clips.shape == (5, 3, 4, 16, 16)
    assert torch.equal(ft.clips, as_8_bit(expected)[None, :, None].expand_as(ft.clips))
    assert expected[0].mean() > 0.7 and expected[2].max() == 0
    noisy, seen = NarrowOutput(nn.Identity(), 3, 1.0, output_noise=0.1), []
    for seed in range(2):  # what else was drawn plays no part
        torch.manual_seed(seed)
        validation.recognition_accuracy(ft, noisy, videos, cache, goal, CPU)
        seen.append(ft.clips)
    keys = noise_keys(0, tmp_path, (2, 3, 4, 5))  # the last clip
    released = apply_anonymizer(noisy, expected.expand(4, 3, 16, 16), noise=keys)
    assert torch.equal(*seen) and torch.equal(seen[0][4], released.transpose(0, 1))


def test_a_validation_releases_the_same_whatever_was_drawn_before(tmp_path):
    """A training that is resumed at its very end draws less before the last one."""
    rng, players, seen = np.random.default_rng(0), networks(output_noise=0.1), []
    for i in range(16):
        picture = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i:02d}.png")
    images = SimpleNamespace(paths=sorted(tmp_path.iterdir())[:3])
    data = TrainingData(None, [Ucf101Item(tmp_path, 1, 0)], images, DecodedCache(2**20))
    run = SimpleNamespace(device=CPU)
    own = validation.Validation(players, data, params(size=24), run)
    for network in (players.ft, players.fb):
        network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0]))
    for seed in range(2):
        torch.manual_seed(seed)
        own.metrics()
    clips, views, *again = seen
    assert clips.shape == (5, 3, 8, 24, 24) and views.shape == (6, 3, 24, 24)
    assert torch.equal(clips, again[0]) and torch.equal(views, again[1])


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


def probed(fa: nn.Module, n_epochs: int = 1) -> list[float]:
    """What TensorBoard hears of the probe; f_B's features are the mean colours."""
    fb, run = nn.Identity(), SimpleNamespace(device=CPU, writer=Mock())
    fb.extract_features = lambda images: images.mean((2, 3))
    data = TrainingData(None, None, None, DecodedCache(2**20))
    own = validation.Validation(Networks(fa, nn.Identity(), fb), data, params(size=16), run)
    for epoch in range(n_epochs):
        own.probe(epoch)
    values = [heard.args[1] for heard in run.writer.add_scalar.call_args_list]
    assert not values or not fb.training
    return values


def test_the_probe_reads_what_is_there_and_not_what_is_gone(vispr):
    assert probed(nn.Identity()) == [pytest.approx(1.0)]
    grey = nn.Threshold(2.0, 0.5)  # in place of everything
    assert probed(grey)[0] < 0.8


def test_without_labels_the_probe_is_silent(vispr, caplog):
    for path in vispr.glob("*.json"):
        path.unlink()
    assert probed(nn.Identity(), n_epochs=2) == []
    assert caplog.text.count("no privacy probe") == 1


def test_rows_held_out_do_not_fit():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    labels, held_out = (features[:, :1] > 0).double(), torch.arange(400) % 4 == 0
    scores = validation.ridge_scores(features, labels, held_out)
    labels[held_out] = 1 - labels[held_out]
    again = validation.ridge_scores(features, labels, held_out)
    assert torch.equal(again, scores) and scores.shape == (100, 1)
    assert ((scores > 0.5) == (features[held_out, :1] > 0)).double().mean() > 0.8
