"""Which frames make a clip: index arithmetic only, no decoding, no tensors of pixels.

Functions return int64 arrays of 0-based frame indices inside the video; randomness comes from a
generator that the caller seeds, so that a clip depends on (seed, epoch, video) alone. A clip of
`clip_length` frames at `stride` covers a *span* of ``stride * (clip_length - 1) + 1`` frames.

Videos that are too short (ours; the release leaves this to chance):

1. One clip: the stride is reduced to the largest one whose span fits. If even stride 1 does not
  fit, the clip takes every frame and repeats the last one.
2. A triplet needs two disjoint spans. A fixed distance is shortened first, down to 1; then the
  stride of all three clips is reduced to the largest one with which two spans fit; if even stride 1
  leaves no room, the anchor starts at one end of the video and the negative at the other, which is
  the least possible overlap.
3. Several disjoint clips: the stride is reduced likewise; if even stride 1 leaves no room, their
  starts are spread evenly from one end of the video to the other.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Generator

from aux_code.errors import UserError


class TripletClips(NamedTuple):
    """Frame indices of a triplet, int64 (clip_length,) each; `positive` equals `anchor`."""

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def clip_span(clip_length: int, stride: int) -> int:
    """Consecutive frames of the video that a clip covers, first and last one included."""
    return stride * (clip_length - 1) + 1


def fitting_stride(n_frames: int, clip_length: int, stride: int, n_clips: int = 1) -> int:
    """Largest stride up to `stride` with which `n_clips` disjoint clips fit; 1 if none does."""
    _check(n_frames, clip_length, stride)
    if clip_length == 1:
        return stride
    largest = (n_frames // n_clips - 1) // (clip_length - 1)
    return max(1, min(stride, largest))


def random_clip(n_frames: int, clip_length: int, stride: int, generator: Generator) -> np.ndarray:
    """A clip (clip_length,) that starts anywhere it fits, all starts equally likely."""
    stride = fitting_stride(n_frames, clip_length, stride)
    start = _random_below(_n_starts(n_frames, clip_length, stride), generator)
    return _clip_at(start, n_frames, clip_length, stride)


def uniform_clips(n_frames: int, clip_length: int, stride: int, n_clips: int = 5) -> np.ndarray:
    """Evaluation's clips (n_clips, clip_length), starts spread evenly from first to last possible.

    One clip sits in the middle. Clips may overlap. The release averages the probabilities of five.
    """
    if n_clips < 1:
        raise UserError(f"n_clips must be at least 1, not {n_clips}")
    stride = fitting_stride(n_frames, clip_length, stride)
    last_start = _n_starts(n_frames, clip_length, stride) - 1
    evenly = np.arange(n_clips) * last_start // max(1, n_clips - 1)
    starts = evenly if n_clips > 1 else [last_start // 2]
    return np.stack([_clip_at(int(start), n_frames, clip_length, stride) for start in starts])


def consecutive_clips(
    n_frames: int, frames_per_clip: int = 16, stride: int = 2, frames_per_feature: int = 32
) -> np.ndarray:
    """Extraction's clips (ceil(n_frames / frames_per_feature), frames_per_clip), paper, section 4.

    Indices past the end are clamped: the last frame completes a short last clip (ours).
    """
    _check(n_frames, frames_per_clip, stride)
    if frames_per_feature < 1:
        raise UserError(f"frames_per_feature must be at least 1, not {frames_per_feature}")
    starts = np.arange(0, n_frames, frames_per_feature, dtype=np.int64)
    offsets = stride * np.arange(frames_per_clip, dtype=np.int64)
    return np.minimum(starts[:, None] + offsets[None, :], n_frames - 1)


def triplet_clips(
    n_frames: int, clip_length: int, stride: int, generator: Generator, distance: int | None = None
) -> TripletClips:
    """Anchor, positive (the anchor's frames), negative of another time (paper, section 3.2).

    Without `distance` the negative starts anywhere that leaves it disjoint from the anchor, before
    or after it. With `distance` D (frames, at least 1) it starts at ``anchor start + stride *
    (clip_length - 1) + D``. The module's docstring states the rule for videos that are too short.
    """
    if distance is not None and distance < 1:
        raise UserError(f"negative_distance must be at least 1 frame, not {distance}")
    stride = fitting_stride(n_frames, clip_length, stride, n_clips=2)
    span = clip_span(clip_length, stride)
    if n_frames < 2 * span:
        ends = 0, _n_starts(n_frames, clip_length, stride) - 1
        swap = distance is None and _random_below(2, generator)
        starts = ends[::-1] if swap else ends
    elif distance is None:
        starts = _random_disjoint_starts(n_frames, span, generator)
    else:
        distance = min(distance, n_frames - 2 * span + 1)
        first = _random_below(n_frames - 2 * span - distance + 2, generator)
        starts = first, first + span - 1 + distance
    anchor, negative = (_clip_at(start, n_frames, clip_length, stride) for start in starts)
    return TripletClips(anchor, anchor.copy(), negative)


def disjoint_clips(
    n_frames: int, clip_length: int, stride: int, n_clips: int, generator: Generator
) -> np.ndarray:
    """Random clips (n_clips, clip_length) in random order, no two of which share a span.

    All sets of starts are equally likely. The module's docstring has the rule for short videos.
    """
    stride = fitting_stride(n_frames, clip_length, stride, n_clips)
    span = clip_span(clip_length, stride)
    n_places = n_frames - n_clips * (span - 1)  # once every clip has shrunk to its first frame
    if n_places < n_clips:
        clips = uniform_clips(n_frames, clip_length, stride, n_clips)
    else:
        places = torch.randperm(n_places, generator=generator)[:n_clips].sort().values.numpy()
        starts = places + (span - 1) * np.arange(n_clips)
        clips = np.stack([_clip_at(s, n_frames, clip_length, stride) for s in starts])
    return clips[torch.randperm(n_clips, generator=generator).numpy()]


def _random_disjoint_starts(n_frames: int, span: int, generator: Generator) -> tuple[int, int]:
    """Starts of two disjoint spans, anchor and negative, each uniform over what leaves room."""
    last_start = n_frames - span
    # In a video of less than three spans anchors in the middle have room neither before nor after.
    anchors = np.arange(last_start + 1)
    anchors = anchors[(anchors >= span) | (anchors <= last_start - span)]
    anchor = int(anchors[_random_below(len(anchors), generator)])
    n_before = max(0, anchor - span + 1)
    n_after = max(0, last_start - (anchor + span) + 1)
    choice = _random_below(n_before + n_after, generator)
    negative = choice if choice < n_before else anchor + span + choice - n_before
    return anchor, negative


def _n_starts(n_frames: int, clip_length: int, stride: int) -> int:
    return max(1, n_frames - clip_span(clip_length, stride) + 1)


def _clip_at(start: int, n_frames: int, clip_length: int, stride: int) -> np.ndarray:
    indices = start + stride * np.arange(clip_length, dtype=np.int64)
    return np.minimum(indices, n_frames - 1)


def _random_below(n: int, generator: Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator))


def _check(n_frames: int, clip_length: int, stride: int) -> None:
    for name, value in (("n_frames", n_frames), ("clip_length", clip_length), ("stride", stride)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
