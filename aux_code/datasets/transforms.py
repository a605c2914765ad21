"""From decoded uint8 frames to network input: crop, resize, flip, colour, erase, by a policy.

Cropping, resizing and flipping are one anti-aliased bilinear resampling per axis, written as a
matrix product with weights of the triangle filter (the filter of Pillow's and torchvision's
anti-aliased bilinear resize). It takes crops at any sub-pixel place, costs the same on CPU and GPU,
and treats a whole batch of equal-sized inputs at once.

Each sample has its own generator and makes all its draws in one call, so its views depend neither
on the batch it is in nor on the worker that loads it. All frames of a clip share one draw.

A worker may `draw` and `crop_to` what the draws need, and another process, on any device, augment
the crops: nothing there waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aux_code.devices import to_device
from aux_code.errors import UserError

Frames = np.ndarray | Tensor
Generators = Sequence[torch.Generator]

_N_DRAWS = 16
_LUMA = (0.299, 0.587, 0.114)
_LARGE_IMAGE = 128 * 128
"""Pixels above which, on a CPU, the clips of a batch are cut and resampled one by one."""
_SIDE_STEP = 64
"""Small images are extended to multiples of it, so that nearly equal ones share a batch."""


@dataclass(frozen=True)
class Policy:
    """An augmentation policy; factors, probabilities and shares in [0, 1].

    Attributes:
        crop_factor: range of the crop's height and width relative to the image's, one draw for both
            (paper: 0.6 to 1 in training, 0.8 in evaluation).
        centred: crop in the middle instead of anywhere.
        flip_probability: mirror left and right.
        brightness, contrast, saturation: strength s of a factor from [1 - s, 1 + s].
        hue: largest rotation of the colours, as a share of the full circle.
        grey_probability: turn into grey.
        erase_probability: overwrite a rectangle with mid-grey (0.5).
        erase_share: range of the rectangle's height and width relative to the output's.
    """

    crop_factor: tuple[float, float] = (1.0, 1.0)
    centred: bool = False
    flip_probability: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey_probability: float = 0.0
    erase_probability: float = 0.0
    erase_share: tuple[float, float] = (0.1, 0.4)

    def __post_init__(self) -> None:
        if not 0 < self.crop_factor[0] <= self.crop_factor[1] <= 1:
            raise UserError(f"crop_factor: 0 < low <= high <= 1, not {self.crop_factor}")

    @property
    def is_fixed(self) -> bool:
        """Whether every draw would give the same result, so that no generator is needed."""
        low, high = self.crop_factor
        drawn = (self.flip_probability, self.erase_probability, self.changes_colours)
        return low == high and (self.centred or low == 1) and not any(drawn)

    @property
    def changes_colours(self) -> bool:
        """Whether any strength of a colour is above 0."""
        colours = (self.brightness, self.contrast, self.saturation, self.hue, self.grey_probability)
        return any(colours)


EVALUATION = Policy(crop_factor=(0.8, 0.8), centred=True)
"""Centre crop 0.8 h x 0.8 w, resized: every stage and data set (paper, section 4)."""


def _jitter(strength: float, hue: float) -> dict[str, float]:
    return {**dict.fromkeys(("brightness", "contrast", "saturation"), strength), "hue": hue}


STRONG = Policy((0.6, 1.0), flip_probability=0.5, erase_probability=0.25, **_jitter(0.3, 0.05))
"""Crop 0.6 to 1, erase, flip, colour jitter (paper, section 4; strengths ours)."""

MODERATE = Policy((0.75, 1.0), flip_probability=0.5, **_jitter(0.3, 0.05))
"""Small frames, in which a person is few pixels tall: nothing erased, larger crops (ours)."""

BUDGET_VIEWS = Policy((0.6, 1.0), flip_probability=0.5, **_jitter(0.4, 0.1))
"""The two NT-Xent views (ours). No grey: colour of skin and clothes tells people apart."""

MODERATE_VIEWS = Policy((0.8, 1.0), flip_probability=0.5, **_jitter(0.2, 0.02))
"""NT-Xent views of small images: BUDGET_VIEWS leaves too little to tell them apart (ours)."""


class _Draws(NamedTuple):
    """What was drawn for B views, each (B, n); places are shares of the image."""

    crop: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    contrast: Tensor
    colour: Tensor
    erase: Tensor


_N_NUMBERS = 1, 1, 1, 1, 1, 9, 4
"""Columns of each field of `_Draws` in a tensor (B, 18) of draws."""
RESIZED = torch.tensor([1.0, 0, 0, 0])
"""First columns, once an image is cut, resized and flipped."""


class Crop(NamedTuple):
    """A part of the frames of a clip."""

    pixels: Frames
    """uint8 (T,h,w,C): RGB; further channels are cut, resized and flipped only."""
    top: int
    left: int
    """Where it was in the whole frames, of `height` x `width` pixels."""
    height: int
    width: int


def augment(
    clips: Frames, policy: Policy, size: int, generator: torch.Generator | Generators
) -> Tensor:
    """Augments one clip or a batch of equal-sized clips, on their device.

    uint8 (T,H,W,3) or (B,T,H,W,3) -> float32 (3,T,size,size) or (B,3,T,size,size) in [0,1].
    `generator`, on the CPU: one, drawn from clip after clip, or one per clip.
    """
    clips = torch.as_tensor(clips)
    if clips.ndim == 4:
        return augment(clips[None], policy, size, generator)[0]
    is_one = isinstance(generator, torch.Generator)
    return augment_batch(clips, policy, size, [generator] * len(clips) if is_one else generator)


def augment_batch(
    clips: Sequence[Frames], policy: Policy, size: int, generators: Generators
) -> Tensor:
    """Augments clips of one length and any sizes: B uint8 (T,H,W,3) -> float32 (B,3,T,size,size).

    `generators` has one entry per clip; empty will do where the policy is fixed.
    """
    return augment_crops(
        list(map(whole, clips)), draw(policy, generators, len(clips)), policy, size
    )


def whole(clip: Frames) -> Crop:
    """All of a clip (T,H,W,C)."""
    if clip.dtype not in (np.uint8, torch.uint8) or clip.ndim != 4 or clip.shape[3] < 3:
        raise ValueError(f"expected uint8 (T,H,W,3), got {clip.dtype} {tuple(clip.shape)}")
    return Crop(clip, 0, 0, *clip.shape[1:3])


def needed(draws: Tensor, sides: np.ndarray) -> np.ndarray:
    """What views of images of `sides` (V,2) are made of: int (V,2,2), rows from, to, columns from,
    to."""
    numbers = draws.numpy()
    first, length = numbers[:, 1:3] * np.float32(sides), numbers[:, :1] * np.float32(sides)
    slack = length < 1  # less than a pixel is made of its neighbours
    low = np.floor(first.astype(float) + 0.5 - slack).clip(min=0)
    high = np.ceil((first + length).astype(float) - 0.5 + slack).clip(max=sides)
    return np.stack([low, high], axis=2).astype(int)


def crop_to(crop: Crop, boxes: np.ndarray) -> Crop:
    """The least part with all of some boxes (V,2,2)."""
    place = np.array([crop.top, crop.left])
    low = np.maximum(boxes[:, :, 0].min(0) - place, 0)
    high = np.minimum(boxes[:, :, 1].max(0) - place, crop.pixels.shape[1:3])
    pixels = crop.pixels[:, low[0] : high[0], low[1] : high[1]]
    return Crop(pixels, *(place + low).tolist(), crop.height, crop.width)


def shrink(crop: Crop, box: np.ndarray, is_flipped: bool, size: int) -> Crop:
    """The box (2,2) of whole frames, resized in 8 bits to size x size pixels, perhaps flipped."""
    cut = crop_to(crop, box[None]).pixels.copy()  # what a cache holds is read-only
    frames = torch.from_numpy(cut).permute(0, 3, 1, 2)  # (T,C,h,w)
    small = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
    return whole((small.flip(3) if is_flipped else small).permute(0, 2, 3, 1).numpy())


def augment_crops(crops: Sequence[Crop], draws: Tensor, policy: Policy, size: int) -> Tensor:
    """What is drawn, of clips of one length and any sizes, on their device.

    Args:
        crops: B, each as of `crop_to` or larger.
        draws: (B,18) of `draw`, on the CPU.

    Returns:
        float32 (B,C,T,size,size) in [0,1].
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, crop in enumerate(crops):
        canvas = _canvas(crop)
        is_alone = canvas[0] * canvas[1] > _LARGE_IMAGE and not _is_on_gpu(crop)
        groups.setdefault((*canvas, i if is_alone else -1), []).append(i)
    parts = {}
    for (height, width, _), members in groups.items():
        group = [crops[i] for i in members]
        transformed = _transform(group, (height, width), draws[members], policy, size)
        parts |= dict(zip(members, transformed, strict=True))
    return torch.stack([parts[i] for i in range(len(crops))])


def augment_images(
    images: Sequence[Frames], policy: Policy, size: int, generators: Generators
) -> Tensor:
    """Augments images of any sizes: list of uint8 (H,W,3) -> float32 (N,3,size,size) in [0,1]."""
    return augment_batch([image[None] for image in images], policy, size, generators)[:, :, 0]


def evaluation_transform(frames: Frames, size: int) -> Tensor:
    """Centre crop 0.8 h x 0.8 w, resized: uint8 (T,H,W,3) -> float32 (T,3,size,size) in [0,1]."""
    return augment(frames, EVALUATION, size, []).transpose(0, 1)


def evaluation_images(images: Sequence[Frames], size: int) -> Tensor:
    """As `evaluation_transform`, any sizes: N uint8 (H,W,3) -> float32 (N,3,size,size)."""
    return augment_images(images, EVALUATION, size, [])


def transform_boxes(
    boxes: np.ndarray, source_hw: tuple[int, int], size: int, drawn: Tensor | None = None
) -> np.ndarray:
    """Where boxes (N,4) x1, y1, x2, y2 in pixels lie after `evaluation_transform`, clipped; or in
    the view that was `drawn`, a row (18,) of `draw`."""
    height, width = source_hw
    crop, is_flipped = EVALUATION.crop_factor[0], False
    top = left = (1 - crop) / 2
    if drawn is not None:
        crop, top, left, is_flipped = drawn[:4].tolist()
    relative = np.asarray(boxes, np.float64).reshape(-1, 4) / [width, height, width, height]
    placed = (relative - [left, top, left, top]) / crop
    if is_flipped:
        placed[:, [0, 2]] = 1 - placed[:, [2, 0]]
    return np.clip(placed * size, 0, size)


def draw(policy: Policy, generators: Generators, n_samples: int) -> Tensor:
    """All random numbers of B samples (B,18), the same number of draws whatever the policy uses."""
    if policy.is_fixed:
        u = torch.full((n_samples, _N_DRAWS), 0.5)
    elif len(generators) != n_samples:
        raise ValueError(f"{n_samples} clips, but {len(generators)} generators")
    else:
        u = torch.stack([torch.rand(_N_DRAWS, generator=generator) for generator in generators])
    low, high = policy.crop_factor
    crop = low + (high - low) * u[:, 0]
    place = torch.full_like(u[:, 1:3], 0.5) if policy.centred else u[:, 1:3]
    drawn = _Draws(
        crop=crop,
        top=(1 - crop) * place[:, 0],
        left=(1 - crop) * place[:, 1],
        flip=u[:, 3] < policy.flip_probability,
        contrast=1 + policy.contrast * (2 * u[:, 8] - 1),
        colour=_colour_matrices(policy, u[:, 4:8]),
        erase=_erase_boxes(policy, u[:, 9:14]),
    )
    return torch.cat([numbers.reshape(n_samples, -1).float() for numbers in drawn], dim=1)


def _colour_matrices(policy: Policy, u: Tensor) -> Tensor:
    """Brightness, saturation, hue, grey as one linear map of RGB: draws (B,4) -> (B,3,3)."""
    brightness = 1 + policy.brightness * (2 * u[:, 0] - 1)
    saturation = 1 + policy.saturation * (2 * u[:, 1] - 1)
    saturation = torch.where(u[:, 3] < policy.grey_probability, 0.0, saturation)
    angle = 2 * torch.pi * policy.hue * (2 * u[:, 2] - 1)
    to_grey = torch.tensor([_LUMA] * 3)
    matrix = saturation[:, None, None] * torch.eye(3) + (1 - saturation)[:, None, None] * to_grey
    return brightness[:, None, None] * (matrix @ _hue_rotation(angle))


def _hue_rotation(angle: Tensor) -> Tensor:
    """Rotation of YIQ's chroma plane by `angle` (B,) radians, as (B,3,3) on RGB."""
    to_yiq = torch.tensor([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    rotation = torch.zeros(len(angle), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2] = -angle.sin()
    rotation[:, 2, 1] = angle.sin()
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def _erase_boxes(policy: Policy, u: Tensor) -> Tensor:
    """Uniform draws (B,5) -> top, bottom, left, right as shares (B,4); 0: nothing erased."""
    low, high = policy.erase_share
    sides = low + (high - low) * u[:, 1:3]
    corners = (1 - sides) * u[:, 3:5]
    boxes = torch.stack([corners, corners + sides], dim=2).flatten(1)  # (B, 4)
    return torch.where(u[:, :1] < policy.erase_probability, boxes, 0.0)


def _transform(
    crops: list[Crop], canvas: tuple[int, int], draws: Tensor, policy: Policy, size: int
) -> Tensor:
    """Crops of frames that fit into a canvas -> float32 (B,C,T,size,size) in [0,1]."""
    sides = np.float32([crop[3:] for crop in crops])
    if len(crops) == 1:  # in a batch the crops differ, and one product over all is faster
        crops = [crop_to(crops[0], needed(draws, sides))]
    clips, (top, left) = _stack(crops, canvas)
    numbers = to_device(torch.cat([draws, torch.from_numpy(sides)], dim=1), clips.device)
    *drawn, sides = numbers.split((*_N_NUMBERS, 2), 1)
    drawn = _Draws(*drawn)
    rows = _resize_weights(canvas[0], sides[:, :1], size, drawn.top, drawn.crop)
    columns = _resize_weights(canvas[1], sides[:, 1:], size, drawn.left, drawn.crop)
    columns = torch.where(drawn.flip[:, :, None] > 0, columns.flip(1), columns)
    rows, columns = (
        rows[:, :, top : top + clips.shape[2]],
        columns[:, :, left : left + clips.shape[3]],
    )
    # Under autocast the products would run in bf16 and lose half the grey levels.
    with torch.autocast(clips.device.type, enabled=False):
        clips = _resample(clips, rows.div_(255), columns)
        rgb, others = clips[:, :3], clips[:, 3:]
        if policy.changes_colours:
            rgb = _recolour(rgb, drawn)
        if policy.erase_probability:
            rgb = _erase(rgb, drawn)
    return torch.cat([rgb, others], dim=1) if others.shape[1] else rgb


def _resample(clips: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (B,T,h,w,C), weights (B,size,h) and (B,size,w) -> float32 (B,C,T,size,size)."""
    (n_clips, n_frames, height, width, n_channels), size = clips.shape, rows.shape[1]
    planes = clips.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    planes = planes.reshape(n_clips, -1, width) @ columns.transpose(1, 2)  # (B, C*T*h, size)
    planes = rows[:, None] @ planes.view(n_clips, -1, height, size)  # (B, C*T, size, size)
    return planes.view(n_clips, n_channels, n_frames, size, size).clamp_(0, 1)


def _resize_weights(n: int, sides: Tensor, size: int, start: Tensor, share: Tensor) -> Tensor:
    """Weights (B,size,n): an axis of n pixels' stretch [start, start + share] as `size` pixels.

    Triangle filter, as wide as one output pixel where the image shrinks and one source pixel where
    it grows; rows sum to 1. Only pixels inside the stretch count, as if it had been cut out first.
    `start` and `share` are shares of the image, the first `sides` (B,1) pixels of the axis.
    """
    first, length = (start * sides)[:, :, None], (share * sides)[:, :, None]
    scale = length / size
    centres = first + (torch.arange(size, device=sides.device)[None, :, None] + 0.5) * scale
    pixels = torch.arange(n, device=sides.device)[None, None, :] + 0.5
    weights = (pixels - centres).abs_().div_(-scale.clamp(min=1)).add_(1).clamp_(min=0)
    outside = (pixels <= first) | (pixels >= first + length)
    weights.masked_fill_((outside & (length >= 1)) | (pixels >= sides[:, :, None]), 0)
    return weights.div_(weights.sum(dim=2, keepdim=True))


@cache
def _luma(device: torch.device) -> Tensor:
    return to_device(torch.tensor(_LUMA), device)


def _recolour(clips: Tensor, draws: _Draws) -> Tensor:
    """Colour map, then contrast about the clip's mean grey; float32 (B,3,T,h,w) in [0,1]."""
    flat = clips.flatten(2)  # (B, 3, T*h*w)
    colour, contrast = draws.colour.view(-1, 3, 3), draws.contrast[:, :, None]
    mean_grey = _luma(clips.device) @ (colour @ flat.mean(dim=2, keepdim=True))
    offset = (1 - contrast) * mean_grey[:, None]
    return torch.baddbmm(offset, contrast * colour, flat).clamp_(0, 1).view_as(clips)


def _erase(clips: Tensor, draws: _Draws) -> Tensor:
    size = clips.shape[-1]
    places = (torch.arange(size, device=clips.device) + 0.5) / size
    top, bottom, left, right = draws.erase[:, :, None].unbind(1)
    in_rows, in_columns = (places >= top) & (places < bottom), (places >= left) & (places < right)
    erased = in_rows[:, :, None] & in_columns[:, None, :]
    return clips.masked_fill_(erased[:, None, None], 0.5)


def _canvas(crop: Crop) -> tuple[int, int]:
    """Size in which frames are transformed; no result depends on the batch."""
    _, _, _, height, width = crop
    if len(crop.pixels) > 1 or height * width > _LARGE_IMAGE:
        return height, width
    return -(-height // _SIDE_STEP) * _SIDE_STEP, -(-width // _SIDE_STEP) * _SIDE_STEP


def _is_on_gpu(crop: Crop) -> bool:
    return isinstance(crop.pixels, Tensor) and crop.pixels.device.type != "cpu"


def _stack(crops: list[Crop], canvas: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Crops (B,T,h,w,C) and their place: one as it is, or several, each at its place in zeros."""
    pixels = crops[0].pixels
    if len(crops) == 1:
        return torch.as_tensor(pixels)[None], crops[0][1:3]
    shape = len(crops), len(pixels), *canvas, pixels.shape[3]
    batch = pixels.new_zeros(shape) if isinstance(pixels, Tensor) else np.zeros(shape, np.uint8)
    for place, (part, top, left, _, _) in zip(batch, crops, strict=True):
        place[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return torch.as_tensor(batch), (0, 0)
