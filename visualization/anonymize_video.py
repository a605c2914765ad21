"""Writes an anonymized copy of a video, at its own resolution and frame rate.

    python visualization/anonymize_video.py IN OUT [--anonymizer NAME|PATH] [--side_by_side]

IN is any video, a folder of frames or an image, and OUT an H.264 file (.mp4, .mkv, .mov). Or IN is
a folder of videos, and OUT a folder. Sound and metadata (place, date, device) are not copied. The
memory needed does not depend on the length. Exit status 3: some of several videos cannot be read;
they are named, the others are there.

H.264 halves the resolution of colours. `--lossless` keeps every value (FFV1, .mkv). `--as_features`
writes, losslessly, the frames as stage 3 crops, resizes and releases them: extracted from that copy
with `--anonymizer raw`, features are those of the original through the anonymizer.
"""

import sys
from dataclasses import dataclass, replace
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
from aux_code.datasets.lists import some_and_file
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.devices import precision_in_force, start_device
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer
from aux_code.models.person_boxes import open_person_boxes
from aux_code.parameters import CommonParams, PersonBoxParams, check_ranges, parse
from aux_code.runs import run_script, seed_everything
from visualization.frame_anonymizer import FrameAnonymizer, prepared
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
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Of f_A; auto, as in all stages: bf16 where the device is fast in it, else fp32 (ours)."""
    fps: float = 24.0
    """Frames per second of a folder of frames, which cannot say (ShanghaiTech's rate)."""
    crf: int = 18
    """Quality of H.264, 0 to 51 (ours: 18, visually lossless)."""
    lossless: bool = False
    """FFV1 in RGB instead of H.264: every value as released; OUT ends in .mkv."""
    as_features: bool = False
    """Lossless, at stage 3's crop (0.8) and --size: a copy that stage 3 takes as it is."""
    size: int = 224
    """Height and width in pixels of --as_features; stage 3's (paper: 224)."""

    def __post_init__(self) -> None:
        least = {"frames_per_pass": 1, "fps": 0.01, "size": 8}
        check_ranges(self, at_least=least, at_most={"fps": 1000})
        if self.as_features and self.side_by_side:
            raise UserError("--as_features shows what stage 3 sees: leave out --side_by_side")


PAPER = AnonymizeParams(source=tyro.MISSING, target=tyro.MISSING)
PRESETS = dict.fromkeys(("paper", "release", "ours"), PAPER)
PRESETS |= {"miniature": replace(PAPER, size=48)}


def main() -> int:
    params = parse(PRESETS, description=__doc__)
    seed_everything(params.seed)
    device = start_device(params.device, params.precision)
    if params.n_threads:
        torch.set_num_threads(params.n_threads)
    trained = config.SAVED_MODELS_ROOT / f"train_anonymizer_{params.preset}" / "last.pth"
    name = params.anonymizer or str(trained)
    is_lossless = params.lossless or params.as_features
    pairs = planned_copies(params.source, params.target, ".mkv" if is_lossless else ".mp4")
    precision = precision_in_force(params.precision, device)
    network = prepared(load_anonymizer(name), device, params.tile, precision)
    unreadable = []
    for source, target in pairs:
        try:
            n_frames = write_copy(source, target, network, device, params)
            sys.stderr.write(f"{target}: {n_frames} frames, anonymizer {name}\n")
        except UnreadableMedia as error:
            if len(pairs) == 1:
                raise
            unreadable.append(error)
    for line in some_and_file(f"of {len(pairs)} videos cannot be read", unreadable, "\n"):
        sys.stderr.write(f"{line}\n")
    return 3 if unreadable else 0


def write_copy(
    source: Path, target: Path, network: nn.Module, device: torch.device, params: AnonymizeParams
) -> int:
    """One anonymized copy; returns its number of frames."""
    video = VideoSource(source, Fraction(params.fps).limit_denominator(1001))
    people = None
    if network.requires_boxes:
        people = open_person_boxes(params.boxes, params.detector_weights, source, device)
    view_size = params.size if params.as_features else 0
    f_a = FrameAnonymizer(network, device, source, people, params.seed, view_size)
    crf = None if params.lossless or params.as_features else params.crf
    with VideoWriter(target, video, crf, view_size) as writer:
        return anonymized_copy(video, f_a, writer, params.frames_per_pass, params.side_by_side)


if __name__ == "__main__":
    run_script(main)
