"""Transforms against torchvision, in other batches, and on images that give places away."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from aux_code.datasets import transforms as tf
from aux_code.datasets.transforms import Policy, augment, augment_batch, augment_images
from aux_code.errors import UserError
from aux_code.runs import seeded_generator

CROPS = Policy((0.8, 1.0), flip_probability=0.5)
POLICIES = [tf.STRONG, tf.MODERATE_VIEWS, tf.BUDGET_VIEWS, tf.EVALUATION]


def close(found, expected, atol):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def generators(n, seed=0):
    return [seeded_generator(seed, i) for i in range(n)]


def ramp(height=60, width=80):
    """Red grows with x from 0 to 1, green with y; blue is 1, so that black would lie outside."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * (x + 0.5) / width, 255 * (y + 0.5) / height
    return np.stack([red, green, np.full_like(red, 255)], axis=-1).round().astype(np.uint8)[None]


@pytest.mark.parametrize("sizes", [(240, 320, 224), (90, 70, 48), (40, 50, 64), (500, 1000, 112)])
def test_evaluation_is_centre_crop_and_antialiased_resize(sizes):
    """The release evaluates some data sets on a square crop; here 0.8 h x 0.8 w serves all."""
    height, width, size = sizes
    frames = noise(2, height, width, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which keeps the grey levels
        result = tf.evaluation_transform(frames, size)
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    crop = reference.center_crop(planes, [round(0.8 * height), round(0.8 * width)])
    expected = reference.resize(crop, [size, size], antialias=True)
    assert result.shape == (2, 3, size, size) and result.dtype == torch.float32
    close(result, expected, 2e-5)
    torch.testing.assert_close(tf.evaluation_images([frames[1]], size)[0], result[1])


def test_evaluation_of_any_size_stays_inside_and_centred():
    for height, width in [(1, 1), (3, 7), (61, 81), (17, 301)]:
        result = tf.evaluation_transform(np.full((1, height, width, 3), 200, np.uint8), 48)
        torch.testing.assert_close(result, torch.full_like(result, 200 / 255))
    result = tf.evaluation_transform(ramp(61, 81), 40)[0]
    close(result[0].flip(1), 1 - result[0], 4e-3)


@pytest.mark.parametrize("policy", [CROPS, tf.STRONG, tf.BUDGET_VIEWS])
def test_every_view_is_a_valid_crop_of_its_own(policy):
    """The release crops second views at the first one's corner, a third of them partly black."""
    geometry = Policy(crop_factor=policy.crop_factor)
    views = augment_batch([ramp()] * 200, geometry, 32, generators(200))[:, :, 0]
    assert views[:, 2].min() > 0.999, "a crop leaves the picture"
    lefts, (low, high) = views[:, 0, 0, 0], policy.crop_factor
    extent = views[:, 0, 0, -1] - lefts
    factor = extent * 32 / 31
    assert factor.min() > low - 0.02 and factor.max() < high + 0.02
    assert factor.min() < low + 0.1 and factor.max() > high - 0.1
    close(views[:, 1, -1, 0] - views[:, 1, 0, 0], extent, 0.02)
    assert lefts.std() > 0.03 and len(lefts.unique()) > 150


def test_single_clip_batch_and_tensor_agree():
    clips = noise(3, 4, 40, 56, 3)
    batch = augment(torch.from_numpy(clips), tf.BUDGET_VIEWS, 32, generators(3))
    assert batch.shape == (3, 3, 4, 32, 32) and 0 <= batch.min() and batch.max() <= 1
    listed = augment_batch(list(clips), tf.BUDGET_VIEWS, 32, generators(3))
    torch.testing.assert_close(listed, batch)
    close(augment(clips[2], tf.BUDGET_VIEWS, 32, generators(3)[2]), batch[2], 1e-5)
    first, second = augment(clips[[0, 0]], CROPS, 32, seeded_generator("one"))
    assert not torch.equal(first, second)
    # all frames of a clip share their draw
    views = augment(np.repeat(clips[:, :1], 5, axis=1), tf.STRONG, 32, generators(3))
    torch.testing.assert_close(views, views[:, :, :1].expand_as(views))


@pytest.mark.parametrize("policy", POLICIES)
def test_images_of_many_sizes_come_out_as_alone(policy):
    """Small images share a batch in a larger canvas, whose zeros must not show."""
    sizes = [(88, 101), (128, 128), (90, 127), (64, 65), (200, 170), (7, 30), (128, 88)]
    images = [noise(1, height, width, 3)[0] // 2 + 128 for height, width in sizes]
    together = augment_images(images, policy, 48, generators(len(sizes)))
    pairs = zip(generators(len(sizes)), generators(len(sizes)), strict=True)
    for image, view, (own, again) in zip(images, together, pairs, strict=True):
        close(augment(image[None], policy, 48, own)[:, 0], view, 1e-6)
        assert view.min() > 0.1  # no black border from outside the image
        assert torch.equal(augment_images([image], policy, 48, [again])[0], view)
    backwards = augment_images(images[::-1], policy, 48, generators(len(sizes))[::-1])
    close(backwards.flip(0), together, 1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_cut_for_some_views_is_all_that_they_need(policy):
    """What was shrunk before, in 8 bits and at whole pixels, is nearly the same."""
    for height, width, size in [(72, 96, 48), (150, 200, 64), (20, 30, 224), (3, 1, 16)]:
        clips = np.repeat(noise(6, 2, height, width, 3), 2, axis=0)
        expected = augment_batch(clips, policy, size, generators(12))
        draws = tf.draw(policy, generators(12), 12)
        boxes = tf.needed(draws, np.array([[height, width]] * 12)).reshape(6, 2, 2, 2)
        pairs = zip(map(tf.whole, clips[::2]), boxes, strict=True)
        cut = [crop for clip, own in pairs for crop in [tf.crop_to(clip, own)] * 2]
        assert torch.equal(tf.augment_crops(cut, draws, policy, size), expected)
    clip, draws = tf.whole(ramp(480, 640)), tf.draw(policy, generators(6), 6)
    each = zip(tf.needed(draws, np.array([[480, 640]] * 6)), draws[:, 3] > 0, strict=True)
    crops = [tf.shrink(clip, box, flip, 64) for box, flip in each]
    assert all(crop.pixels.shape == (1, 64, 64, 3) for crop in crops)
    draws[:, :4] = tf.RESIZED
    found = tf.augment_crops(crops, draws, policy, 64)
    close(found, augment_batch([clip.pixels] * 6, policy, 64, generators(6)), 0.01)


def test_flip_mirrors_half_of_the_views_and_erase_overwrites_one_rectangle_with_grey():
    plain = augment_batch([ramp()], Policy(), 20, [])[0, :, 0]
    views = augment_batch([ramp()] * 300, Policy(flip_probability=0.5), 20, generators(300))
    mirrored = [torch.allclose(view[:, 0], plain.flip(-1), atol=1e-6) for view in views]
    straight = [torch.allclose(view[:, 0], plain, atol=1e-6) for view in views]
    assert all(a != b for a, b in zip(mirrored, straight)) and 110 < sum(mirrored) < 190
    policy = Policy(erase_probability=1.0, erase_share=(0.2, 0.5))
    views = augment_batch([ramp()] * 50, policy, 20, generators(50))[:, :, 0]
    for view in views:
        erased = (view == 0.5).all(dim=0)
        rows, columns = erased.any(dim=1).sum().item(), erased.any(dim=0).sum().item()
        assert erased.sum() == rows * columns and 3 <= rows <= 11 and 3 <= columns <= 11
        torch.testing.assert_close(view[:, ~erased], plain[:, ~erased])
    none = augment_batch([ramp()] * 50, Policy(erase_probability=1e-9), 20, generators(50))
    torch.testing.assert_close(none[:, :, 0], plain.expand_as(none[:, :, 0]))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_jitter_against_torchvision(name):
    """Each strength alone: the drawn factor is found again among torchvision's results."""
    image = (noise(24, 24, 3) // 3 + 60).astype(np.uint8)
    plain = augment_images([image], Policy(), 24, [])
    adjust = getattr(reference, f"adjust_{name}")
    views = augment_images([image] * 60, Policy(**{name: 0.4}), 24, generators(60))
    factors = np.linspace(0.6, 1.4, 401)
    candidates = torch.cat([adjust(plain, float(factor)) for factor in factors])
    errors = [(candidates - view).abs().amax(dim=(1, 2, 3)) for view in views]
    found = [factors[int(error.argmin())] for error in errors]
    assert max(error.min() for error in errors) < 2e-3
    assert min(found) < 0.75 and max(found) > 1.25


def test_hue_keeps_grey_and_luma_and_grey_removes_colour():
    grey, jitter = np.full((8, 8, 3), 120, np.uint8), Policy(hue=0.2)
    views = augment_images([grey] * 5, jitter, 8, generators(5))
    close(views, torch.full_like(views, 120 / 255), 1e-3)
    red = np.full((8, 8, 3), (150, 90, 80), np.uint8)
    views = augment_images([red] * 30, jitter, 8, generators(30))[:, :, 0, 0]
    luma = torch.tensor([0.299, 0.587, 0.114])
    expected = float(luma @ torch.tensor([150.0, 90, 80])) / 255
    close(views @ luma, torch.full((30,), expected), 2e-3)
    assert views[:, 0].std() > 0.02
    drained = augment_images([red], Policy(grey_probability=1.0), 8, generators(1))
    assert (drained.amax(dim=1) - drained.amin(dim=1)).max() < 1e-5
    assert tf.BUDGET_VIEWS.grey_probability == 0


def test_boxes_follow_the_picture():
    def moved(*boxes):
        return tf.transform_boxes(boxes, (90, 120), 64)

    frame = np.zeros((1, 90, 120, 3), np.uint8)
    frame[0, 30:60, 40:90] = 255
    rows, columns = torch.nonzero(tf.evaluation_transform(frame, 64)[0, 0] > 0.5, as_tuple=True)
    expected = [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
    np.testing.assert_allclose(moved([40, 30, 90, 60]), [expected], atol=0.51)
    outside, whole = moved([0, 0, 11, 8], [0, 0, 120, 90])
    assert (outside[2] - outside[0]) * (outside[3] - outside[1]) == 0
    np.testing.assert_allclose(whole, [0, 0, 64, 64])
    assert moved().shape == (0, 4)


def test_wrong_arguments():
    with pytest.raises(UserError, match="crop_factor"):
        Policy(crop_factor=(0.0, 1.0))
    with pytest.raises(ValueError, match="2 clips, but 1 generators"):
        augment_images([ramp()[0]] * 2, CROPS, 16, generators(1))
    with pytest.raises(ValueError, match="uint8"):
        tf.evaluation_transform(np.zeros((2, 8, 8, 3), np.float32), 16)
    assert tf.EVALUATION.is_fixed and not CROPS.is_fixed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu():
    clips = torch.from_numpy(noise(3, 4, 60, 80, 3))
    expected = augment(clips, tf.STRONG, 48, generators(3))
    found = augment(clips.to("cuda"), tf.STRONG, 48, generators(3)).cpu()
    close(found, expected, 2e-3)
