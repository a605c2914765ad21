"""Clips through the initialisations: frames as pictures, in RGB, cropped as every evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anonymization_training.initialisation import (
    Obfuscator,
    recognition_accuracy,
    reconstruction_step,
)
from anonymization_training.training_batches import ClipBatch, ImageBatch, Sampling
from aux_code.datasets.decode import DecodedCache
from aux_code.datasets.transforms import evaluation_transform
from aux_code.datasets.ucf101 import Ucf101Item

CPU = torch.device("cpu")


class SwapRedAndBlue(nn.Module):
    """The identity could not tell frames from colour planes."""

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.shape[1] == 3
        return frames.flip(1)

    replacement = forward


@pytest.mark.parametrize("masked", [False, True])
def test_anonymizer_gets_whole_frames_of_clips(masked):
    """The release hands f_A one colour of three consecutive frames: clips must be transposed, not
    reshaped."""
    clips = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(2, 1, 5, 4, 6) if masked else None
    if masked:
        masks[:, :, :, :, :2] = 0
    result = Obfuscator(SwapRedAndBlue(), CPU)(clips, masks)
    expected = clips.flip(1)
    if masked:
        expected[..., :2] = clips[..., :2]
    assert torch.equal(result, expected)


def test_reconstruction_learns_from_whole_frames_of_clips(updater):
    """The release hands f_A one colour of three consecutive frames: clips must be transposed, not
    reshaped."""
    seen, fa = [], nn.Conv2d(3, 3, 1)
    fa.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    colour = torch.tensor([0.1, 0.5, 0.9])
    clips = colour.view(1, 1, 3, 1, 1, 1).expand(1, 2, 3, 8, 4, 4)
    images = colour.view(1, 1, 3, 1, 1).expand(2, 3, 3, 4, 4)
    batches = (
        ClipBatch(clips, torch.tensor([1, 1]), None, ("a", "b")),
        ImageBatch(images, ("1", "2", "3")),
    )
    reconstruction_step(fa, *batches, frames_per_video=4, updater=updater(fa))
    (pictures,) = seen
    assert torch.equal(pictures, colour.view(1, 3, 1, 1).expand(2 * 4 + 3, 3, 4, 4))


class Listener(nn.Module):
    """A utility network that keeps the clips it is shown and always answers class 1."""

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        self.clips = clips
        return torch.tensor([[0.0, 1.0]]).expand(len(clips), 2), torch.zeros(len(clips), 128)


def test_recognition_is_measured_in_rgb_on_the_crop_of_every_evaluation(tmp_path):
    """The release validates on BGR, and crops some data sets square: training and validation saw
    other pictures."""
    picture = np.zeros((30, 50, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 200, np.linspace(0, 255, 50)
    folder = tmp_path / "video"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(picture).save(folder / f"{i:04d}.png")
    sampling = Sampling(
        clip_length=4,
        stride=1,
        size=16,
        views="ce",
        negative_distance=0,
        augmentation="strong",
        seed=0,
    )
    ft, videos = Listener(), [Ucf101Item(folder, 1, 0)]
    accuracy = recognition_accuracy(
        ft, Obfuscator(nn.Identity(), CPU), videos, DecodedCache(0), sampling, n_modes=2
    )
    expected = evaluation_transform(picture[None], 16)[0]
    assert ft.clips.shape == (2, 3, 4, 16, 16)
    torch.testing.assert_close(ft.clips, expected[None, :, None].expand_as(ft.clips))
    assert expected[0].mean() > 0.7 and expected[2].max() == 0
    assert accuracy == 1.0
