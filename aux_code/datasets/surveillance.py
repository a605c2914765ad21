"""UCF-Crime, XD-Violence, ShanghaiTech and own videos behind one function.

Frame labels are 0-based, end exclusive, one per decodable frame, whatever the original annotation
counts from.
"""

from pathlib import Path

from aux_code import config
from aux_code.datasets import own_videos, shanghaitech, ucf_crime, xd_violence
from aux_code.datasets.lists import require_root
from aux_code.datasets.surveillance_types import (
    ANOMALY,
    NORMAL,
    VIDEO_SUFFIXES,
    SurveillanceDataset,
    SurveillanceVideo,
    frame_labels,
)
from aux_code.errors import UserError

__all__ = [
    "ANOMALY",
    "NORMAL",
    "VIDEO_SUFFIXES",
    "SurveillanceDataset",
    "SurveillanceVideo",
    "frame_labels",
    "load_surveillance",
]

LOADERS = {
    "ucf_crime": ("UCF_CRIME_ROOT", ucf_crime.load),
    "xd_violence": ("XD_VIOLENCE_ROOT", xd_violence.load),
    "shanghaitech": ("SHANGHAITECH_ROOT", shanghaitech.load),
}
"""Name -> (constant of config.py, its loader)."""


def load_surveillance(dataset: str | Path) -> SurveillanceDataset:
    """Lists, labels and events of a data set; decodes nothing.

    Args:
        dataset: ucf_crime, xd_violence, shanghaitech, or a folder with train.csv and test.csv.

    Raises:
        UserError: unknown name, missing root or list, or an annotation that cannot be understood
            (file, line, text).
    """
    if str(dataset) in LOADERS:
        constant, load = LOADERS[str(dataset)]
        return load(require_root(getattr(config, constant), constant))
    folder = Path(dataset)
    if not folder.is_dir():
        names = ", ".join(LOADERS)
        raise UserError(
            f"unknown data set {str(dataset)!r}: neither one of {names} nor a folder with train.csv, test.csv"
        )
    return own_videos.load(folder)
