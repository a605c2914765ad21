"""Writes an anonymized copy of a video, at its own resolution and frame rate.

    python visualization/anonymize_video.py IN OUT [--anonymizer NAME|PATH] [--side_by_side]

IN is any video, a folder of frames or an image, and OUT an H.264 file (.mp4, .mkv, .mov). Or IN is
a folder of videos, and OUT a folder. Sound and metadata (place, date, device) are not copied. The
memory needed does not depend on the length. Exit status 3: some of several videos cannot be read;
they are named, the others are there.
"""

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import nn

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    # works in an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aux_code import config
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.devices import choose_device
from aux_code.model_loaders import load_anonymizer
from aux_code.models.person_boxes import open_person_boxes
from aux_code.parameters import CommonParams, PersonBoxParams, check_ranges, parse
from aux_code.runs import run_script, seed_everything
from visualization.frame_anonymizer import FrameAnonymizer
from visualization.video_files import VideoSource, VideoWriter, anonymized_copy, planned_copies


@dataclass(frozen=True, kw_only=True)
class AnonymizeParams(PersonBoxParams, CommonParams):
    """A video, an anonymizer, and how its copy is made."""

    source: tyro.conf.Positional[Path]
    """Video, folder of frames, image, or folder of videos."""
    target: tyro.conf.Positional[Path]
    """File to write; .mp4, .mkv or .mov. Of a folder of videos: the folder for the copies."""
    anonymizer: str = ""
    """raw, blur, blacken, downsample2x, mosaic4, ... or a .pth; empty: train_anonymizer's last."""
    side_by_side: bool = False
    """Shows the original to the left of the anonymized frame."""
    tile: int = 1024
    """Pixels; larger frames pass f_A in overlapping tiles, to bound the memory; 0: whole."""
    frames_per_pass: int = 4
    """Frames per pass of f_A (ours)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of f_A; bf16 is twice as fast where the device has it, exact to about 1 % (ours)."""
    fps: float = 24.0
    """Frames per second of a folder of frames, which cannot say (ShanghaiTech's rate)."""
    crf: int = 18
    """Quality of H.264, 0 (lossless) to 51 (ours: 18, visually lossless)."""

    def __post_init__(self) -> None:
        check_ranges(self, at_least={"frames_per_pass": 1, "fps": 0.01}, at_most={"fps": 1000})


PRESETS = dict.fromkeys(
    ("paper", "release", "ours", "miniature"),
    AnonymizeParams(source=tyro.MISSING, target=tyro.MISSING),
)


def main() -> int:
    params = parse(PRESETS, description=__doc__)
    seed_everything(params.seed)
    device = choose_device(params.device)
    if params.n_threads:
        torch.set_num_threads(params.n_threads)
    trained = config.SAVED_MODELS_ROOT / f"train_anonymizer_{params.preset}" / "last.pth"
    name = params.anonymizer or str(trained)
    pairs = planned_copies(params.source, params.target)
    network = load_anonymizer(name)
    unreadable = []
    for source, target in pairs:
        try:
            n_frames = write_copy(source, target, network, device, params)
            sys.stderr.write(f"{target}: {n_frames} frames, anonymizer {name}\n")
        except UnreadableMedia as error:
            if len(pairs) == 1:
                raise
            unreadable.append(f"{error}\n")
    if unreadable:
        head = f"{len(unreadable)} of {len(pairs)} videos cannot be read:\n"
        sys.stderr.writelines([head, *unreadable])
    return 3 if unreadable else 0


def write_copy(
    source: Path, target: Path, network: nn.Module, device: torch.device, params: AnonymizeParams
) -> int:
    """One anonymized copy; returns its number of frames."""
    video = VideoSource(source, Fraction(params.fps).limit_denominator(1001))
    people = None
    if network.requires_boxes:
        boxes = open_person_boxes(params.boxes, params.detector_weights, source, device)
        people = boxes, source
    f_a = FrameAnonymizer(network, device, params.tile, people, params.precision)
    with VideoWriter(target, video, params.crf) as writer:
        return anonymized_copy(video, f_a, writer, params.frames_per_pass, params.side_by_side)


if __name__ == "__main__":
    run_script(main)
