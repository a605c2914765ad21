"""Parameters of stage 3, feature extraction."""

from dataclasses import dataclass
from typing import Literal

from aux_code.parameters import CommonParams, PersonBoxParams, by_content, check_ranges, free


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionParams(PersonBoxParams, CommonParams):
    """Surveillance videos -> anonymizer f_A -> utility network f_T -> one feature per
    `frames_per_feature` frames."""

    dataset: str = by_content("ucf_crime")
    """ucf_crime, xd_violence, shanghaitech; or a folder of videos, a video, image or .txt list."""
    anonymizer: str = by_content("")
    """raw, downsample2x or 4x, blur, blacken, mosaicK[_grey][_noiseS], or a checkpoint; empty:
    last.pth of train_anonymizer's run."""
    utility: str = by_content("")
    """Checkpoint of f_T; empty: the anonymizer's, or init_utility's for raw, blur, ..."""
    output: str = free("")
    """Folder of the feature files; empty: features/<dataset>/<run_id>."""
    allow_mixed: bool = free(False)
    """Go on in a folder that was begun with another precision, colour conversion or kind of device;
    the manifest says of which videos (ours)."""
    reader: Literal["auto", "dali", "pyav"] = "auto"
    """Who decodes and resizes; auto takes DALI where it is installed (paper: DALI on GPU)."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Of the networks; auto, as in stages 1 and 2: bf16 where the device is fast in it, else fp32
    (release: fp16)."""
    shard: str = free("0/1")
    """I/N: this process takes part I (from 0) of N of the videos; torchrun's RANK goes first."""
    frames_per_clip: int = 16
    """Frames of a clip (paper, section 4)."""
    stride: int = 2
    """Distance of a clip's frames in the video, in frames (release)."""
    frames_per_feature: int = 32
    """Frames of the video that one feature stands for (release: 16 frames at stride 2)."""
    crop: float = 0.8
    """Share of height and width that the crop keeps (paper, section 4)."""
    n_crops: Literal[1, 10] = 1
    """1: centre crop (paper); 10: corners and centre, mirrored, too: features (n, 10, D) (ours)."""
    size: int = 224
    """Height and width of the frames that the networks see, in pixels (paper)."""
    batch_size: int = free(8)
    """Clips per batch, of whatever videos; a GPU computes it in one pass (ours; the release passes
    one). With ten crops each of them counts, so that memory stays the same."""
    frames_per_pass: int = free(0)
    """Frames per pass of f_A; 0: on a GPU a whole batch, on a CPU the part of a clip that fits 4 x
    224 x 224 pixels, so that features do not depend on the batch in a single bit (ours)."""
    n_decoders: int = free(2)
    """Threads that decode, a video each, while the networks compute (ours)."""
    min_decoded_share: float = free(0.9)
    """A video fails if less than this share of the frames that its file announces decodes (ours).
    It decides which videos have features, not what these are."""

    def __post_init__(self) -> None:
        least = {"frames_per_pass": 0, "min_decoded_share": 0, "size": 8}
        least |= {"batch_size": 1, "n_decoders": 1}
        check_ranges(self, at_least=least, at_most={"min_decoded_share": 1})


PAPER = FeatureExtractionParams()
MINIATURE = FeatureExtractionParams(preset="miniature", size=48, batch_size=16, n_decoders=1)

PRESETS = {"paper": PAPER, "release": PAPER, "ours": PAPER, "miniature": MINIATURE}
"""The release's clips and crop are the paper's, and ours are, too."""
