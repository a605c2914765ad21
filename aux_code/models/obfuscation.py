"""Fixed anonymizers, the paper's baselines (section 4, table 8): frames (N, 3, H, W) in [0, 1]."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.datasets.person_box_files import HEADER
from aux_code.devices import to_device
from aux_code.errors import UserError
from aux_code.models.anonymizers import NarrowOutput


class Obfuscation(nn.Module):
    """Interface: forward(frames, boxes=None); `requires_boxes`: whether it needs people's boxes."""

    requires_boxes = False


class Raw(Obfuscation):
    """The identity: no anonymization."""

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        return frames


class Grey(Obfuscation):
    """Luma (ITU-R BT.601): frames (N, 3, H, W) -> (N, 1, H, W)."""

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        weights = to_device(torch.tensor([0.299, 0.587, 0.114]), frames.device).to(frames)
        return (frames * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


class Downsample(Obfuscation):
    """Averages down by `factor` (antialiased bilinear) and back up to the old size (bilinear)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        size = frames.shape[-2:]
        low = [max(1, round(side / self.factor)) for side in size]
        small = F.interpolate(frames, size=low, mode="bilinear", antialias=True)
        return F.interpolate(small, size=size, mode="bilinear")


class BoxObfuscation(Obfuscation, ABC):
    """Replaces the inside of person boxes.

    `forward` takes one (K, 4) float tensor for each of the N frames, rows x0, y0, x1, y1 in pixels
    of the frames as given (x1, y1 exclusive, K may be 0). Pixels that a box touches in part belong
    to it; what lies outside the frame is ignored.
    """

    requires_boxes = True

    def forward(self, frames: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        if boxes is None:
            remedy = "into the data set's root, or give --boxes or --detector_weights"
            file = f"put person_boxes.csv ({','.join(HEADER)}) {remedy}"
            raise UserError(f"blur and blacken need the boxes of the people: {file}")
        if len(boxes) != len(frames):
            raise ValueError(f"{len(frames)} frames but boxes for {len(boxes)}")
        return torch.where(box_mask(boxes, frames), self.replacement(frames), frames)

    @abstractmethod
    def replacement(self, frames: Tensor) -> Tensor:
        """What the boxes show instead: (N, 3, H, W)."""


class Blacken(BoxObfuscation):
    """Person boxes set to 0."""

    def replacement(self, frames: Tensor) -> Tensor:
        return torch.zeros_like(frames)


class Blur(BoxObfuscation):
    """Person boxes blurred with a Gaussian.

    Args:
        kernel_size: odd, pixels; 13 in the paper.
        sigma: pixels; 10 in the paper.
    """

    def __init__(self, kernel_size: int = 13, sigma: float = 10.0):
        super().__init__()
        offsets = torch.arange(kernel_size) - kernel_size // 2
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def replacement(self, frames: Tensor) -> Tensor:
        radius = len(self.kernel) // 2
        kernel = self.kernel.to(frames)
        # replicate, because reflection fails on frames smaller than the kernel
        padded = F.pad(frames, (radius,) * 4, mode="replicate").flatten(0, 1).unsqueeze(1)
        rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
        return F.conv2d(rows, kernel.view(1, 1, -1, 1)).view_as(frames)


def box_mask(boxes: Sequence[Tensor], frames: Tensor) -> Tensor:
    """Boxes as for BoxObfuscation -> (N, 1, H, W) bool, True where a box touches the pixel."""
    n_frames, _, height, width = frames.shape
    mask = torch.zeros(n_frames, 1, height, width, dtype=torch.bool)
    for i, frame_boxes in enumerate(boxes):
        rows = torch.as_tensor(frame_boxes, dtype=torch.float64, device="cpu").reshape(-1, 4)
        corners = torch.cat([rows[:, :2].floor(), rows[:, 2:].ceil()], dim=1).clamp(min=0).long()
        for left, top, right, bottom in corners.tolist():
            mask[i, 0, top:bottom, left:right] = True
    return to_device(mask, frames.device)


OBFUSCATIONS = {
    "raw": Raw, "downsample2x": lambda: Downsample(2), "downsample4x": lambda: Downsample(4),
    "blur": Blur, "blacken": Blacken,
}  # fmt: skip
"""Name on the command line -> constructor without arguments."""
NAMES = f"{', '.join(OBFUSCATIONS)} or mosaicK[_grey][_noiseS]"
_MOSAIC = re.compile(r"mosaic([1-9]\d*)(_grey)?(?:_noise(\d*\.\d+))?")


def is_named(anonymizer: str) -> bool:
    """Whether an `--anonymizer` is a name, not a file."""
    return anonymizer in OBFUSCATIONS or bool(_MOSAIC.fullmatch(anonymizer))


def build_obfuscation(name: str) -> nn.Module:
    """The anonymizer of a name, which learns nothing.

    `mosaicK`: K x K pixels become their mean; `_grey`: of their luma; `_noiseS`: with noise of
    standard deviation S (pixels in [0, 1]), as a narrow f_A releases it.
    """
    if name in OBFUSCATIONS:
        return OBFUSCATIONS[name]().eval()
    pixels, grey, noise = _MOSAIC.fullmatch(name).groups()
    network = NarrowOutput(
        Grey() if grey else Raw(), 1 if grey else 3, 1 / int(pixels), float(noise or 0)
    )
    network.requires_boxes = False
    return network.eval()
