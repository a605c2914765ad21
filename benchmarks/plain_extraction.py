"""The plain loop of the extraction benchmark: a clip at a time, decode then compute, eager fp32."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import to_tensor

from aux_code.model_loaders import load_anonymizer, load_utility
from aux_code.models.anonymizers import as_8_bit


@torch.no_grad()
def extract_plainly(
    output: Path, videos: list[Path], checkpoint: Path, size: int, device: str = "cpu"
) -> None:
    """Writes OUTPUT/<video>.npy, float32 (n_clips, feature_dim), of frames of `size` pixels."""
    fa, ft = load_anonymizer(str(checkpoint)).to(device), load_utility(checkpoint).to(device)
    for video in videos:
        rows = []
        for clip in plain_clips(video, size):
            clips = as_8_bit(fa(clip.to(device))).transpose(0, 1)[None]  # (1, 3, T, H, W)
            rows.append(ft.extract_features(clips)[0].cpu().numpy())
        np.save(output / f"{video.stem}.npy", np.stack(rows))


def plain_clips(video: Path, size: int) -> Iterator[Tensor]:
    """A video's clips (16, 3, size, size) in [0, 1]: frames 0, 2, ... 30 of each 32, centre 0.8."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for start in range(0, len(frames), 32):
        chosen = [frames[min(start + 2 * i, len(frames) - 1)] for i in range(16)]
        pixels = torch.stack([to_tensor(frame) for frame in chosen])
        height, width = pixels.shape[2:]
        top, left = round(0.1 * height), round(0.1 * width)
        part = pixels[:, :, top : height - top, left : width - left]
        kind = {"mode": "bilinear", "antialias": True, "align_corners": False}
        yield functional.interpolate(part, (size, size), **kind)
