"""From decoded uint8 frames to network input: crop, resize, flip, colour, erase, by a policy.

Cropping, resizing and flipping are one anti-aliased bilinear resampling per axis, written as a
matrix product with weights of the triangle filter (the filter of Pillow's and torchvision's
anti-aliased bilinear resize). It takes crops at any sub-pixel place, costs the same on CPU and GPU,
and treats a whole batch of equal-sized inputs at once.

Each sample has its own generator and makes all its draws in one call, so its views depend neither
on the batch it is in nor on the worker that loads it. All frames of a clip share one draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class _Draws:
    """Drawn for a batch: CPU tensors, B as first axis. Places are shares of the image."""

    crop: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    colour: Tensor
    contrast: Tensor
    erase: Tensor


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
    generators = [generator] * len(clips) if is_one else generator
    sides = torch.tensor([clips.shape[2:4]]).expand(len(clips), 2)
    return _transform(_checked(clips), policy, size, _draw(policy, generators, len(clips)), sides)


def augment_batch(
    clips: Sequence[Frames], policy: Policy, size: int, generators: Generators
) -> Tensor:
    """Augments clips of one length and any sizes: B uint8 (T,H,W,3) -> float32 (B,3,T,size,size).

    `generators` has one entry per clip; empty will do where the policy is fixed.
    """
    draws = _draw(policy, generators, len(clips))
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, clip in enumerate(clips):
        groups.setdefault(_canvas(clip.shape), []).append(i)
    parts = {}
    for canvas, members in groups.items():
        batch = _stack([clips[i] for i in members], canvas)
        sides = torch.tensor([clips[i].shape[1:3] for i in members])
        transformed = _transform(_checked(batch), policy, size, _select(draws, members), sides)
        parts |= dict(zip(members, transformed, strict=True))
    return torch.stack([parts[i] for i in range(len(clips))])


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


def transform_boxes(boxes: np.ndarray, source_hw: tuple[int, int], size: int) -> np.ndarray:
    """Where boxes (N,4) x1, y1, x2, y2 in pixels lie after `evaluation_transform`, clipped."""
    height, width = source_hw
    crop = EVALUATION.crop_factor[0]
    relative = np.asarray(boxes, np.float64).reshape(-1, 4) / [width, height, width, height]
    return np.clip((relative - (1 - crop) / 2) / crop * size, 0, size)


def _draw(policy: Policy, generators: Generators, n_samples: int) -> _Draws:
    """All random numbers of a batch, the same number of draws whatever the policy uses."""
    if policy.is_fixed:
        u = torch.full((n_samples, _N_DRAWS), 0.5)
    elif len(generators) != n_samples:
        raise ValueError(f"{n_samples} clips, but {len(generators)} generators")
    else:
        u = torch.stack([torch.rand(_N_DRAWS, generator=generator) for generator in generators])
    low, high = policy.crop_factor
    crop = low + (high - low) * u[:, 0]
    place = torch.full_like(u[:, 1:3], 0.5) if policy.centred else u[:, 1:3]
    return _Draws(
        crop=crop,
        top=(1 - crop) * place[:, 0],
        left=(1 - crop) * place[:, 1],
        flip=u[:, 3] < policy.flip_probability,
        colour=_colour_matrices(policy, u[:, 4:8]),
        contrast=1 + policy.contrast * (2 * u[:, 8] - 1),
        erase=_erase_boxes(policy, u[:, 9:14]),
    )


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


def _transform(clips: Tensor, policy: Policy, size: int, draws: _Draws, sides: Tensor) -> Tensor:
    """uint8 (B,T,H,W,3) of images of `sides` (B,2) -> float32 (B,3,T,size,size) in [0,1]."""
    # Under autocast the products would run in bf16 and lose half the grey levels.
    with torch.autocast(clips.device.type, enabled=False):
        clips = _resample(clips, size, draws, sides)
        if policy.changes_colours:
            clips = _recolour(clips, draws)
        if policy.erase_probability:
            clips = _erase(clips, draws)
    return clips


def _resample(clips: Tensor, size: int, draws: _Draws, sides: Tensor) -> Tensor:
    """Crop, resize, flip: uint8 (B,T,H,W,3), `sides` (B,2) -> float32 (B,3,T,size,size)."""
    n_clips, n_frames, height, width, _ = clips.shape
    if n_clips > 1 and height * width > _LARGE_IMAGE and clips.device.type == "cpu":
        one = [(clips[i : i + 1], size, _select(draws, [i]), sides[[i]]) for i in range(n_clips)]
        return torch.cat([_resample(*arguments) for arguments in one])
    rows = _resize_weights(height, sides[:, 0], size, draws.top, draws.crop)
    columns = _resize_weights(width, sides[:, 1], size, draws.left, draws.crop)
    columns[draws.flip] = columns[draws.flip].flip(1)
    if n_clips == 1:  # in a batch the crops differ, and one product over all is faster
        clips, rows, columns = _cut(clips, rows, columns)
        height, width = clips.shape[2:4]
    rows, columns = rows.to(clips.device).div_(255), columns.to(clips.device)
    planes = clips.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    planes = planes.reshape(n_clips, -1, width) @ columns.transpose(1, 2)  # (B, 3*T*H, size)
    planes = rows[:, None] @ planes.view(n_clips, -1, height, size)  # (B, 3*T, size, size)
    return planes.view(n_clips, 3, n_frames, size, size).clamp_(0, 1)


def _resize_weights(n: int, sides: Tensor, size: int, start: Tensor, share: Tensor) -> Tensor:
    """Weights (B,size,n): an axis of n pixels' stretch [start, start + share] as `size` pixels.

    Triangle filter, as wide as one output pixel where the image shrinks and one source pixel where
    it grows; rows sum to 1. Only pixels inside the stretch count, as if it had been cut out first.
    `start` and `share` are shares of the image, the first `sides` (B,) pixels of the axis.
    """
    first, length = (start * sides)[:, None, None], (share * sides)[:, None, None]
    scale = length / size
    centres = first + (torch.arange(size)[None, :, None] + 0.5) * scale
    pixels = torch.arange(n)[None, None, :] + 0.5
    weights = (pixels - centres).abs_().div_(-scale.clamp(min=1)).add_(1).clamp_(min=0)
    outside = (pixels <= first) | (pixels >= first + length)
    weights.masked_fill_((outside & (length >= 1)) | (pixels >= sides[:, None, None]), 0)
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _cut(clips: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Drops rows and columns of a single clip that no output pixel looks at, and their weights."""
    used = [torch.nonzero(weights[0].any(dim=0))[:, 0] for weights in (rows, columns)]
    (top, bottom), (left, right) = [(int(i[0]), int(i[-1]) + 1) for i in used]
    return clips[:, :, top:bottom, left:right], rows[:, :, top:bottom], columns[:, :, left:right]


def _recolour(clips: Tensor, draws: _Draws) -> Tensor:
    """Colour map, then contrast about the clip's mean grey; float32 (B,3,T,h,w) in [0,1]."""
    flat = clips.flatten(2)  # (B, 3, T*h*w)
    luma = torch.tensor(_LUMA, device=clips.device)
    colour = draws.colour.to(clips.device)
    contrast = draws.contrast.to(clips.device)[:, None, None]
    mean_grey = luma @ (colour @ flat.mean(dim=2, keepdim=True))
    offset = (1 - contrast) * mean_grey[:, None]
    return torch.baddbmm(offset, contrast * colour, flat).clamp_(0, 1).view_as(clips)


def _erase(clips: Tensor, draws: _Draws) -> Tensor:
    size = clips.shape[-1]
    places = (torch.arange(size, device=clips.device) + 0.5) / size
    top, bottom, left, right = draws.erase.to(clips.device)[:, :, None].unbind(1)
    in_rows, in_columns = (places >= top) & (places < bottom), (places >= left) & (places < right)
    erased = in_rows[:, :, None] & in_columns[:, None, :]
    return clips.masked_fill_(erased[:, None, None], 0.5)


def _select(draws: _Draws, members: list[int]) -> _Draws:
    return _Draws(**{name: value[members] for name, value in vars(draws).items()})


def _canvas(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in which a clip (T,H,W,3) is transformed; no result depends on the batch."""
    n_frames, height, width, channels = shape
    if n_frames > 1 or height * width > _LARGE_IMAGE:
        return tuple(shape)
    height, width = (-(-side // _SIDE_STEP) * _SIDE_STEP for side in (height, width))
    return 1, height, width, channels


def _stack(clips: list[Frames], canvas: tuple[int, ...]) -> Tensor:
    """Clips in the first rows and columns of a batch (B,*canvas) of zeros."""
    if isinstance(clips[0], Tensor):
        batch = clips[0].new_zeros((len(clips), *canvas))
    else:
        batch = np.zeros((len(clips), *canvas), dtype=clips[0].dtype)
    for place, clip in zip(batch, clips, strict=True):
        place[:, : clip.shape[1], : clip.shape[2]] = clip
    return torch.as_tensor(batch)


def _checked(clips: Tensor) -> Tensor:
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(f"expected uint8 (B,T,H,W,3), got {clips.dtype} {tuple(clips.shape)}")
    return clips
