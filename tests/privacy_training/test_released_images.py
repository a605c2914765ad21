"""What the attacker sees: geometry, channel order, noise, averaging, augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from aux_code.datasets.transforms import evaluation_transform
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.model_loaders import (
    apply_anonymizer,
    load_anonymizer,
    load_fa_model,
    load_ft_model,
)
from aux_code.models.anonymizers import as_8_bit
from aux_code.models.person_boxes import PersonBoxes
from privacy_training.attribute_prediction import augment_released
from privacy_training.params_privacy import PRESETS
from privacy_training.released_images import ImageSource, Releaser, release_images

CPU = torch.device("cpu")


@pytest.fixture
def source_of(tmp_path):
    """source_of(images, people): files labelled 0, 1, ..., released in 16 x 16 pixels."""

    def build(images: list[np.ndarray], people=None) -> ImageSource:
        paths = [tmp_path / f"{i}.png" for i in range(len(images))]
        for path, image in zip(paths, images):
            Image.fromarray(image).save(path)
        labels, log = torch.arange(len(paths)).float()[:, None], UnreadableLog(tmp_path, len(paths))
        return ImageSource(paths, labels, 16, people, log, batch=2, n_workers=2)

    return build


@pytest.fixture
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (20 + 4 * i, 30, 3), dtype=np.uint8) for i in range(5)]


def evaluated(images: list[np.ndarray]) -> torch.Tensor:
    """The geometry of every evaluation."""
    return torch.cat([evaluation_transform(image[None], 16) for image in images])


def released_by(net: nn.Module | str, source: ImageSource, **arguments) -> torch.Tensor:
    """The one release of the test split by an anonymizer."""
    net = load_anonymizer(net) if isinstance(net, str) else net
    return release_images(source, Releaser(net, CPU, **arguments), "test", 1).releases[0]


def small_anonymizer(noise: float = 0.0):
    torch.manual_seed(3)
    net = load_fa_model("small", output_noise=noise)
    net.requires_boxes = False
    return net.eval()


def test_raw_release_is_the_evaluation_geometry_in_rgb(source_of, images):
    releaser = Releaser(load_anonymizer("raw"), CPU)
    released = release_images(source_of(images), releaser, "test", 4)
    assert len(released.releases) == 1
    assert torch.equal(released.releases[0], as_8_bit(evaluated(images)))
    assert released.labels[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert released.names == [f"{i}.png" for i in range(5)]


def test_boxes_follow_the_image(source_of):
    """Source 50 x 50, crop [5, 45), size 16: a box of [15, 25) x [5, 45) covers columns 4 to 7."""
    image = np.full((50, 50, 3), 255, dtype=np.uint8)
    people = PersonBoxes({"0.png": {0: np.array([[15, 5, 25, 45]], np.float32)}})
    black = (released_by("blacken", source_of([image], people))[0] == 0).all(0)
    assert black[:, 4:8].all() and not black[:, :4].any() and not black[:, 8:].any()


def test_random_anonymizer_gets_several_releases_of_training_images(source_of, images):
    source, noisy = source_of(images), Releaser(small_anonymizer(0.1), CPU)
    released, again = (release_images(source, noisy, "train", 3) for _ in range(2))
    assert len(released.releases) == 3
    assert not torch.equal(released.release(0), released.release(1))
    assert torch.equal(released.release(0), released.release(3))
    assert torch.equal(released.release(2), again.release(2))
    at_once = release_images(replace(source, batch=5), noisy, "train", 3)
    assert torch.equal(released.release(2), at_once.release(2)), "noise is an image's own"


def test_averaging_attacker_removes_noise(source_of, images):
    source = source_of(images)
    clean = released_by(small_anonymizer(), source)
    for n, error in ((1, 0.2), (16, 0.05)):
        released = released_by(small_anonymizer(0.2), source, average_frames=n)
        assert (released - clean).std().item() == pytest.approx(error, rel=0.1)


def test_feature_level_is_the_feature_of_a_still_clip(source_of, images):
    ft, fa = load_ft_model("small", num_classes=4).eval(), small_anonymizer()
    released = released_by(fa, source_of(images), utility=ft, clip_frames=16)
    with torch.no_grad():
        stills = apply_anonymizer(fa, evaluated(images))[:, :, None]
        expected = ft.extract_features(stills.expand(-1, -1, 16, -1, -1))
    torch.testing.assert_close(released, expected, rtol=1e-4, atol=1e-5)


def test_frames_of_a_noisy_still_clip_differ(source_of, images):
    class Spread(nn.Module):
        def extract_features(self, clips):
            return clips.std(dim=2).mean(dim=(1, 2, 3))[:, None]

    source = source_of(images)
    assert released_by(small_anonymizer(0.1), source, utility=Spread()).min() > 0.05
    assert released_by("raw", source, utility=Spread()).max() < 1e-6


def test_augmentation_without_strength_is_identity_or_mirror_and_shifts_keep_their_range():
    params = replace(PRESETS["miniature"], shift=0.0, zoom=0.0, jitter=0.0)
    images = torch.rand(12, 3, 10, 10) + torch.linspace(-1, 1, 10)
    views = augment_released(images, params, torch.Generator().manual_seed(0))
    same = [(v - p).abs().max() < 1e-4 for v, p in zip(views, images)]
    mirrored = [(v - p.flip(-1)).abs().max() < 1e-4 for v, p in zip(views, images)]
    assert any(same) and any(mirrored) and all(a != b for a, b in zip(same, mirrored))
    ramp = torch.linspace(0, 1, 100).expand(64, 3, 100, 100)
    shifted = replace(params, shift=0.1)
    views = augment_released(ramp, shifted, torch.Generator().manual_seed(1))
    assert 0.05 < (views[:, 0, 50, 50] - 0.5).abs().max() < 0.12
