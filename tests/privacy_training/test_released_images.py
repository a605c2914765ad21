"""What the attacker sees: geometry, channel order, 8 bits, noise, averaging, augmentation."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from aux_code.datasets.transforms import Policy, augment_images, evaluation_transform
from aux_code.datasets.unreadable import UnreadableLog
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer, load_fa_model, load_ft_model
from aux_code.models.anonymizers import as_8_bit
from aux_code.models.person_boxes import PersonBoxes
from aux_code.runs import seeded_generator
from privacy_training.released_images import (
    AUGMENTATIONS,
    ImageSource,
    Releaser,
    pixels,
    release_images,
    training_images,
)

CPU = torch.device("cpu")
STRONG = AUGMENTATIONS["strong"]


@pytest.fixture
def source_of(tmp_path):
    """source_of(images, people): files labelled 0, 1, ..., released in 16 x 16 pixels."""

    def build(images: list[np.ndarray], people=None) -> ImageSource:
        paths = [tmp_path / f"{i}.png" for i in range(len(images))]
        for path, image in zip(paths, images):
            Image.fromarray(image).save(path)
        labels, log = torch.arange(len(paths)).float()[:, None], UnreadableLog(tmp_path, len(paths))
        return ImageSource("test", paths, labels, 16, people, log, batch=2, n_workers=2)

    return build


def evaluated(images: list[np.ndarray]) -> torch.Tensor:
    """The geometry of every evaluation."""
    return torch.cat([evaluation_transform(image[None], 16) for image in images])


def released_by(net: nn.Module | str, source: ImageSource, **arguments) -> torch.Tensor:
    """What an anonymizer releases of the images for evaluation."""
    net = load_anonymizer(net) if isinstance(net, str) else net
    return pixels(release_images(source, Releaser(net, CPU, **arguments)).released)


@pytest.fixture
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (20 + 4 * i, 30, 3), dtype=np.uint8) for i in range(5)]


def small_anonymizer(noise: float = 0.0, **arguments):
    torch.manual_seed(3)
    return load_fa_model("small", output_noise=noise, **arguments).eval()


def test_raw_release_is_the_evaluation_geometry_in_rgb_and_8_bits(source_of, images):
    found = release_images(source_of(images), Releaser(load_anonymizer("raw"), CPU))
    assert torch.equal(found.released, (evaluated(images) * 255).round().byte())
    assert found.labels[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.names == [f"{i}.png" for i in range(5)]


def test_all_images_that_do_not_decode_are_named_at_once(source_of, images):
    source = source_of(images)
    for i in (0, 2, 4):
        source.paths[i].write_bytes(b"no image")
    with pytest.raises(UserError, match="3 of 5 files are unreadable.*0.png, .*2.png, .*4.png"):
        released_by("raw", source)
    assert len(source.log.path.read_text().splitlines()) == 3


def test_boxes_follow_the_image(source_of):
    """Source 50 x 50, crop [5, 45), size 16: a box of [15, 25) x [5, 45) covers columns 4 to 7."""
    image = np.full((50, 50, 3), 255, dtype=np.uint8)
    people = PersonBoxes({"0.png": {0: np.array([[15, 5, 25, 45]], np.float32)}})
    released = released_by("blacken", source_of([image], people))
    black = (released[0] == 0).all(0)
    assert black[:, 4:8].all() and not black[:, :4].any() and not black[:, 8:].any()


def test_training_images_are_augmented_first_and_then_released(source_of, images):
    """To augment what was released of one crop would leave him that one crop's information."""
    fa, source = small_anonymizer(), source_of(images)
    training = training_images(source, Releaser(fa, CPU, seed=7), STRONG)
    generators = [seeded_generator(7, "crop", 2, f"{i}.png") for i in (3, 1)]
    crops = augment_images([images[3], images[1]], STRONG, 16, generators)
    with torch.no_grad():
        expected = as_8_bit(fa(crops))
    torch.testing.assert_close(training.release([3, 1], 2), expected, rtol=0, atol=1.5 / 255)
    assert training.labels[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("policy", [STRONG, Policy()], ids=["crops", "noise"])
def test_every_epoch_has_others_whatever_was_released_before(source_of, images, policy):
    net = load_anonymizer("raw") if policy == STRONG else small_anonymizer(0.1)
    source, releaser = source_of(images), Releaser(net, CPU)
    training = training_images(source, releaser, policy)
    epochs = [training.release(range(5), epoch) for epoch in range(3)]
    assert all((a - b).abs().mean() > 0.01 for a, b in pairwise(epochs))
    again = training_images(source, releaser, policy).release([4, 2], 1)
    assert torch.equal(again, epochs[1][[4, 2]])


def test_people_stay_black_in_every_crop(source_of):
    image = np.full((50, 60, 3), 255, dtype=np.uint8)
    image[10:40, 5:20] = (255, 0, 0)
    people = PersonBoxes({"0.png": {0: np.array([[4, 9, 21, 41]], np.float32)}})
    releaser = Releaser(load_anonymizer("blacken"), CPU)
    policy = Policy((0.6, 1.0), flip_probability=0.5)
    training = training_images(source_of([image], people), releaser, policy)
    crops = torch.cat([training.crops([0], epoch)[0] for epoch in range(30)])
    released = torch.cat([training.release([0], epoch) for epoch in range(30)])
    red = (crops[:, 0] - crops[:, 1] > 0.5).flatten(1).any(1)
    assert red.sum() > 20 and (released[:, 0] - released[:, 1]).max() < 0.1
    columns = [(frame[0] == 0).nonzero()[:, 1].float().mean() for frame in released[red]]
    assert min(columns) < 6 and max(columns) > 10, "some are mirrored"


def test_large_images_are_held_no_larger_than_the_smallest_crop_needs(source_of, images):
    large = [np.tile(image, (3, 3, 1)) for image in images]
    releaser = Releaser(load_anonymizer("raw"), CPU)
    training = training_images(source_of(large), releaser, STRONG)
    assert {source.shape for source in training.sources} == {(27, 27, 3)}


def test_averaging_attacker_removes_noise(source_of, images):
    source = source_of(images)
    clean = released_by(small_anonymizer(), source)
    for n, error in ((1, 0.1), (16, 0.025)):
        released = released_by(small_anonymizer(0.1), source, average_frames=n)
        assert (released - clean).std().item() == pytest.approx(error, rel=0.1)


def test_several_releases_take_one_pass_and_are_those_of_their_numbers():
    fa = small_anonymizer(0.1, output_scale=0.5)
    frames, files = torch.rand(2, 3, 16, 16), [Path("a.png"), Path("b.png")]
    single, averaging = Releaser(fa, CPU, 5), Releaser(fa, CPU, 5, average_frames=3)
    passes = []
    averaging.anonymizer.network.network.register_forward_hook(lambda *_: passes.append(1))
    mean = sum(single(frames, None, files, number) for number in (6, 7, 8)) / 3
    torch.testing.assert_close(averaging(frames, None, files, 2), mean, rtol=0, atol=0.6 / 255)
    assert len(passes) == 1


def test_feature_level_is_the_feature_of_a_still_clip(source_of, images):
    ft, fa = load_ft_model("small", num_classes=4).eval(), small_anonymizer()
    released = released_by(fa, source_of(images), utility=ft, clip_frames=16)
    with torch.no_grad():
        stills = as_8_bit(fa(evaluated(images)))[:, :, None].expand(-1, -1, 16, -1, -1)
        expected = ft.extract_features(stills)
    torch.testing.assert_close(released, expected, rtol=1e-3, atol=1e-3)


def test_frames_of_a_noisy_still_clip_differ(source_of, images):
    class Spread(nn.Module):
        def extract_features(self, clips):
            return clips.std(dim=2).mean(dim=(1, 2, 3))[:, None]

    source = source_of(images)
    assert released_by(small_anonymizer(0.1), source, utility=Spread()).min() > 0.05
    assert released_by("raw", source, utility=Spread()).max() < 1e-6
