"""UCF-Crime, XD-Violence, ShanghaiTech and own videos behind one function.

Events are in frames, 0-based, end exclusive, whatever the original annotation counts from.
"""

import logging
from pathlib import Path

from aux_code import config
from aux_code.datasets import own_videos, shanghaitech, ucf_crime, xd_violence
from aux_code.datasets.lists import refuse_all, require_root
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
    "ANOMALY", "NORMAL", "VIDEO_SUFFIXES", "SurveillanceDataset", "SurveillanceVideo",
    "frame_labels", "list_surveillance", "load_surveillance",
]  # fmt: skip

log = logging.getLogger(__name__)

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
        UserError: unknown name, missing root or list, or broken annotations (file, line, text).
    """
    data = list_surveillance(dataset)
    what = f"annotations of {data.name} cannot be used"
    refuse_all(what, list(data.problems.values()), "correct them or unpack them again")
    return data


def list_surveillance(dataset: str | Path) -> SurveillanceDataset:
    """As `load_surveillance`, but for who needs no annotations: `problems` holds broken ones."""
    name = str(dataset)
    root = getattr(config, LOADERS[name][0]) if name in LOADERS else Path(name)
    data = read_surveillance(name, root)
    for line in [*data.report, *data.notes]:
        log.warning("%s: %s", data.name, line)
    return data


def read_surveillance(name: str, root: Path) -> SurveillanceDataset:
    """As `list_surveillance`, from a given folder, and nothing is logged."""
    if name in LOADERS:
        constant, load = LOADERS[name]
        return load(require_root(root, constant))
    if not root.is_dir():
        known = f"neither one of {', '.join(LOADERS)} nor a folder with train.csv, test.csv"
        raise UserError(f"unknown data set {name!r}: {known}")
    return own_videos.load(root)
