"""What the attacker sees: geometry, channel order, noise, averaging, augmentation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aux_code.datasets.transforms import evaluation_transform
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.model_loaders import load_anonymizer, load_fa_model, load_ft_model
from privacy_training.attribute_prediction import augment_released
from privacy_training.params_privacy import PRESETS
from privacy_training.released_images import PictureSource, Releaser, release_images

CPU = torch.device("cpu")


def source_of(
    folder: Path, pictures: list[np.ndarray], boxes_of=None, size: int = 16
) -> PictureSource:
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(folder / f"{i}.png")
        Image.fromarray(picture).save(paths[-1])
    labels = torch.arange(len(paths)).float()[:, None]
    return PictureSource(
        paths, labels, size, boxes_of, UnreadableLog(folder, len(paths)), batch=2, n_workers=2
    )


@pytest.fixture
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (20 + 4 * i, 30, 3), dtype=np.uint8) for i in range(5)]


def noisy_anonymizer(noise: float):
    net = load_fa_model("small", output_noise=noise)
    net.requires_boxes = False
    return net


def test_raw_release_is_the_evaluation_geometry_in_rgb(tmp_path, pictures):
    released = release_images(
        source_of(tmp_path, pictures), Releaser(load_anonymizer("raw"), CPU), "test", 4, 0
    )
    assert len(released.releases) == 1
    for i, picture in enumerate(pictures):
        torch.testing.assert_close(
            released.releases[0][i], evaluation_transform(picture[None], 16)[0]
        )
    assert released.labels[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert released.names == [f"{i}.png" for i in range(5)]


def test_channels_and_crop(tmp_path):
    """A red picture with a green border outside the central 0.8: red comes out alone, in channel
    0."""
    picture = np.zeros((50, 50, 3), dtype=np.uint8)
    picture[..., 1] = 255
    picture[5:45, 5:45] = (255, 0, 0)
    releaser = Releaser(load_anonymizer("raw"), CPU)
    released = release_images(
        source_of(tmp_path, [picture, picture]), releaser, "test", 1, 0
    ).releases[0]
    assert released[:, 0].min() > 0.999 and released[:, 1:].max() < 0.001


def test_boxes_follow_the_picture(tmp_path):
    """Source 50 x 50, crop [5, 45), size 16: a box of [15, 25) x [5, 45) covers columns 4 to 7 of
    16, all rows."""
    picture = np.full((50, 50, 3), 255, dtype=np.uint8)
    source = source_of(tmp_path, [picture], lambda path, image: np.array([[15, 5, 25, 45]]))
    released = release_images(
        source, Releaser(load_anonymizer("blacken"), CPU), "test", 1, 0
    ).releases[0]
    black = (released[0] == 0).all(0)
    assert black[:, 4:8].all() and not black[:, :4].any() and not black[:, 8:].any()


def test_random_anonymizer_gets_several_releases_of_training_pictures(tmp_path, pictures):
    source = source_of(tmp_path, pictures)
    noisy = Releaser(noisy_anonymizer(0.1), CPU)
    released = release_images(source, noisy, "train", 3, 0)
    assert len(released.releases) == 3
    assert not torch.equal(released.release(0), released.release(1))
    assert torch.equal(released.release(0), released.release(3))
    again = release_images(source, noisy, "train", 3, 0)
    assert torch.equal(released.release(2), again.release(2))


def test_averaging_attacker_removes_noise(tmp_path, pictures):
    source, net = source_of(tmp_path, pictures), noisy_anonymizer(0.2)
    clean_net = load_fa_model("small")
    clean_net.load_state_dict(net.network.state_dict())
    clean_net.requires_boxes = False
    clean = release_images(source, Releaser(clean_net, CPU), "test", 1, 0).releases[0]
    errors = {}
    for n in (1, 16):
        released = release_images(
            source, Releaser(net, CPU, average_frames=n), "test", 1, 0
        ).releases[0]
        errors[n] = (released - clean).std().item()
    assert errors[1] == pytest.approx(0.2, rel=0.1)
    assert errors[16] == pytest.approx(0.05, rel=0.1)


def test_feature_level_is_the_feature_of_a_still_clip(tmp_path, pictures):
    ft, fa = load_ft_model("small", num_classes=4).eval(), load_fa_model("small").eval()
    fa.requires_boxes = False
    source = source_of(tmp_path, pictures)
    released = release_images(
        source, Releaser(fa, CPU, utility=ft, clip_frames=16), "test", 1, 0
    ).releases[0]
    frames = torch.stack([evaluation_transform(p[None], 16)[0] for p in pictures])
    with torch.no_grad():
        expected = ft.extract_features(fa(frames)[:, :, None].expand(-1, -1, 16, -1, -1))
    torch.testing.assert_close(released, expected, rtol=1e-4, atol=1e-5)


def test_frames_of_a_noisy_still_clip_differ(tmp_path, pictures):
    class Spread(torch.nn.Module):
        def extract_features(self, clips):
            return clips.std(dim=2).mean(dim=(1, 2, 3))[:, None]

    source = source_of(tmp_path, pictures)
    noisy = release_images(
        source, Releaser(noisy_anonymizer(0.1), CPU, utility=Spread()), "test", 1, 0
    ).releases[0]
    still = release_images(
        source, Releaser(load_anonymizer("raw"), CPU, utility=Spread()), "test", 1, 0
    ).releases[0]
    assert noisy.min() > 0.05 and still.max() < 1e-6


def test_augmentation_without_strength_is_identity_or_mirror():
    params = replace(PRESETS["miniature"], shift=0.0, zoom=0.0, jitter=0.0)
    pictures = torch.rand(12, 3, 10, 10) + torch.linspace(-1, 1, 10)
    views = augment_released(pictures, params, torch.Generator().manual_seed(0))
    same = [(v - p).abs().max() < 1e-4 for v, p in zip(views, pictures)]
    mirrored = [(v - p.flip(-1)).abs().max() < 1e-4 for v, p in zip(views, pictures)]
    assert any(same) and any(mirrored)
    assert all(a != b for a, b in zip(same, mirrored))


def test_augmentation_shifts_within_its_range():
    params = replace(PRESETS["miniature"], shift=0.1, zoom=0.0, jitter=0.0)
    ramp = torch.linspace(0, 1, 100).expand(64, 3, 100, 100)
    views = augment_released(ramp, params, torch.Generator().manual_seed(1))
    shifts = (views[:, 0, 50, 50] - 0.5).abs()
    assert 0.05 < shifts.max() < 0.12
