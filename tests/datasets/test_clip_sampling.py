"""Tables of clip indices."""

import numpy as np
import pytest
import torch

from aux_code.datasets import clip_sampling as sampling
from aux_code.datasets.clip_sampling import disjoint_clips, random_clip, triplet_clips
from aux_code.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n_frames, clip_length, stride, n_clips, expected", [
    (186, 16, 2, 1, 2), (31, 16, 2, 1, 2), (30, 16, 2, 1, 1), (16, 16, 2, 1, 1), (5, 16, 2, 1, 1),
    (62, 16, 2, 2, 2), (61, 16, 2, 2, 1), (40, 4, 9, 1, 9), (20, 4, 9, 1, 6), (3, 1, 5, 2, 5),
])  # fmt: skip
def test_fitting_stride(n_frames, clip_length, stride, n_clips, expected):
    assert sampling.fitting_stride(n_frames, clip_length, stride, n_clips) == expected


@pytest.mark.parametrize("n_frames, clip_length, stride, starts, steps", [
    (7, 4, 2, [0], [2, 2, 2]), (6, 4, 2, [0, 1, 2], [1, 1, 1]), (4, 4, 2, [0], [1, 1, 1]),
    (3, 4, 2, [0], [1, 1, 0]), (1, 4, 2, [0], [0, 0, 0]), (1, 1, 3, [0], []),
])  # fmt: skip
def test_random_clip_of_short_videos(n_frames, clip_length, stride, starts, steps):
    clip = random_clip(n_frames, clip_length, stride, generator())
    assert clip.dtype == np.int64 and clip[0] in starts and np.diff(clip).tolist() == steps


def test_random_clip_reaches_every_start_equally_often():
    g = generator()
    counts = np.bincount([random_clip(40, 16, 2, g)[0] for _ in range(3000)], minlength=10)
    assert len(counts) == 10 and counts.min() > 220 and counts.max() < 380
    again = [random_clip(40, 16, 2, generator(5)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize("n_frames, n_clips, starts", [
    (31, 5, [0, 0, 0, 0, 0]), (71, 5, [0, 10, 20, 30, 40]), (72, 5, [0, 10, 20, 30, 41]),
    (71, 1, [20]), (71, 2, [0, 40]), (10, 2, [0, 0]),
])  # fmt: skip
def test_uniform_clips(n_frames, n_clips, starts):
    clips = sampling.uniform_clips(n_frames, 16, 2, n_clips)
    assert clips.shape == (n_clips, 16) and clips.dtype == np.int64
    np.testing.assert_array_equal(clips[:, 0], starts)
    assert clips.max() == min(n_frames - 1, max(starts) + 30)


@pytest.mark.parametrize("n_frames, expected", [
    (1, [[0, 0, 0, 0]]), (5, [[0, 2, 4, 4]]), (8, [[0, 2, 4, 6]]),
    (9, [[0, 2, 4, 6], [8, 8, 8, 8]]), (15, [[0, 2, 4, 6], [8, 10, 12, 14]]),
    (16, [[0, 2, 4, 6], [8, 10, 12, 14]]),
    (17, [[0, 2, 4, 6], [8, 10, 12, 14], [16, 16, 16, 16]]),
])  # fmt: skip
def test_consecutive_clips(n_frames, expected):
    np.testing.assert_array_equal(sampling.consecutive_clips(n_frames, 4, 2, 8), expected)
    of_the_paper = sampling.consecutive_clips(1000 * n_frames, 16, 2, 32)
    assert of_the_paper.shape == (-(-1000 * n_frames // 32), 16)
    np.testing.assert_array_equal(sampling.consecutive_clips(1000 * n_frames), of_the_paper)


@pytest.mark.parametrize("n_frames", [62, 63, 70, 92, 93, 94, 186, 1000])
def test_triplets_are_disjoint_wherever_the_video_is_long_enough(n_frames):
    """The release's negative overlaps the anchor in 37 % of the draws from 186 frames."""
    g, anchors, order = generator(), set(), set()
    for _ in range(300):
        anchor, positive, negative = triplet_clips(n_frames, 16, 2, g)
        np.testing.assert_array_equal(anchor, positive)
        for clip in (anchor, negative):
            np.testing.assert_array_equal(np.diff(clip), np.full(15, 2))
            assert clip[0] >= 0 and clip[-1] < n_frames
        assert negative[0] > anchor[-1] or negative[-1] < anchor[0]
        anchors.add(int(anchor[0]))
        order.add(bool(negative[0] > anchor[0]))
    assert order == {False, True} and len(anchors) > min(20, n_frames - 62)


def test_negative_reaches_every_disjoint_start():
    possible, g = {(a, n) for a in range(8) for n in range(8) if abs(a - n) >= 3}, generator()
    drawn = (triplet_clips(10, 3, 1, g) for _ in range(4000))
    assert {(int(clips.anchor[0]), int(clips.negative[0])) for clips in drawn} == possible


@pytest.mark.parametrize("n_frames, anchors, negatives", [
    (9, {(0, 1, 2, 3), (1, 2, 3, 4), (4, 5, 6, 7), (5, 6, 7, 8)}, None),
    (8, {(0, 1, 2, 3), (4, 5, 6, 7)}, {(0, 1, 2, 3), (4, 5, 6, 7)}),
    (6, {(0, 1, 2, 3), (2, 3, 4, 5)}, {(0, 1, 2, 3), (2, 3, 4, 5)}),
    (4, {(0, 1, 2, 3)}, {(0, 1, 2, 3)}), (2, {(0, 1, 1, 1)}, {(0, 1, 1, 1)}),
])  # fmt: skip
def test_triplets_of_short_videos(n_frames, anchors, negatives):
    g = generator()
    drawn = [triplet_clips(n_frames, 4, 2, g) for _ in range(100)]
    assert {tuple(clips.anchor.tolist()) for clips in drawn} == anchors
    assert negatives in (None, {tuple(clips.negative.tolist()) for clips in drawn})
    if n_frames > 4:
        assert all(clips.anchor[0] != clips.negative[0] for clips in drawn)


@pytest.mark.parametrize("distance", [1, 8, 32])
def test_fixed_distance(distance):
    g, anchors = generator(), set()
    for _ in range(400):
        anchor, positive, negative = triplet_clips(120, 16, 2, g, distance)
        np.testing.assert_array_equal(anchor, positive)
        assert negative[0] == anchor[0] + 2 * 15 + distance and negative[-1] < 120
        anchors.add(int(anchor[0]))
    assert anchors == set(range(120 - 62 - distance + 2))


@pytest.mark.parametrize("n_frames, anchor, negative", [
    (15, [0, 2, 4, 6], [8, 10, 12, 14]), (14, [0, 2, 4, 6], [7, 9, 11, 13]),
    (10, [0, 1, 2, 3], [6, 7, 8, 9]), (6, [0, 1, 2, 3], [2, 3, 4, 5]),
    (3, [0, 1, 2, 2], [0, 1, 2, 2]),
])  # fmt: skip
def test_fixed_distance_in_short_videos(n_frames, anchor, negative):
    clips = triplet_clips(n_frames, 4, 2, generator(), 8)
    np.testing.assert_array_equal(clips.anchor, anchor)
    np.testing.assert_array_equal(clips.negative, negative)


def test_several_disjoint_clips_reach_every_set_of_starts_in_every_order():
    g = generator()
    drawn = {tuple(disjoint_clips(9, 3, 1, 2, g)[:, 0].tolist()) for _ in range(800)}
    assert drawn == {(a, b) for a in range(7) for b in range(7) if abs(a - b) >= 3}
    for n_frames, stride in ((124, 2), (300, 2), (123, 1), (64, 1)):
        clips = disjoint_clips(n_frames, 16, 2, 4, g)
        assert (np.diff(clips) == stride).all() and 0 <= clips.min() <= clips.max() < n_frames
        clips = clips[np.argsort(clips[:, 0])]
        assert (clips[1:, 0] > clips[:-1, -1]).all()
    # those of a short video are spread evenly
    drawn = [disjoint_clips(40, 16, 2, 4, generator(seed))[:, 0].tolist() for seed in range(20)]
    assert {tuple(sorted(starts)) for starts in drawn} == {(0, 8, 16, 24)}
    assert {starts[0] for starts in drawn} == {0, 8, 16, 24}
    np.testing.assert_array_equal(disjoint_clips(2, 3, 2, 4, generator()), [[0, 1, 1]] * 4)


def test_wrong_arguments():
    g = generator()
    calls = [(random_clip, (*numbers, g)) for numbers in ((0, 16, 2), (10, 0, 2), (10, 16, 0))]
    calls += [(f, (10, 16, 2, 0)) for f in (sampling.uniform_clips, sampling.consecutive_clips)]
    for function, arguments in (*calls, (triplet_clips, (100, 16, 2, g, 0))):
        with pytest.raises(UserError, match="at least 1"):
            function(*arguments)
