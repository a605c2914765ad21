"""Anonymized frames for the picture of one scored video (Figs. 5, 8)."""

import logging
from pathlib import Path

import numpy as np
import torch

from aux_code.datasets.decode import read_frames
from aux_code.datasets.person_box_files import read_boxes
from aux_code.datasets.transforms import evaluation_transform, transform_boxes
from aux_code.model_loaders import apply_anonymizer, load_anonymizer, noise_keys
from aux_code.models.obfuscation import Raw
from aux_code.reporting.figures import Strip

log = logging.getLogger(__name__)

N_FRAMES_SHOWN = 6


@torch.inference_mode()
def anonymized_frames(
    video: Path, anonymizer: str, size: int, n_frames: int, boxes_csv: Path | None = None
) -> Strip | None:
    """A few frames of a video (file or folder), evenly spread over its `n_frames`, as the detector
    saw them: `size` pixels high and wide, through an anonymizer (name or path).

    None where they would show people: of raw video, and without the boxes that blur and blacken
    need.
    """
    net = load_anonymizer(anonymizer)
    if isinstance(net, Raw):
        log.info("no frames below the curve: 'raw' anonymizes nothing")
        return None
    rows: dict[int, np.ndarray] | None = None
    if getattr(net, "requires_boxes", False):
        path, known = video.resolve().as_posix(), read_boxes(boxes_csv) if boxes_csv else {}
        rows = next((own for file, own in known.items() if path.endswith(f"/{file}")), None)
        if rows is None:
            text = "no frames below the curve: '%s' needs person boxes of this video (--boxes)"
            log.info(text, anonymizer)
            return None
    indices = ((np.arange(N_FRAMES_SHOWN) + 0.5) * n_frames / N_FRAMES_SHOWN).astype(np.int64)
    frames = read_frames(video, indices)
    boxes = rows and [
        torch.from_numpy(
            transform_boxes(rows.get(int(i), np.zeros((0, 4), np.float32)), frames.shape[1:3], size)
        ).float()
        for i in indices
    ]
    noise = noise_keys(0, video, indices)
    shown = apply_anonymizer(net, evaluation_transform(frames, size), boxes, noise)
    pixels = (shown * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (N, size, size, 3)
    return Strip("", pixels, indices.tolist())
