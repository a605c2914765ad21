"""What a data set consists of, as one digest: an artefact records which data it was made of."""

from functools import lru_cache
from pathlib import Path

from aux_code.artefacts import data_digest
from aux_code.datasets import ucf101, vispr
from aux_code.datasets.lists import require_root
from aux_code.datasets.surveillance import read_surveillance

_LISTED = {"UCF101": ucf101.listed, "VISPR": vispr.listed}


@lru_cache
def dataset_digest(name: str, root: Path) -> str:
    """SHA-256 of a data set's lists, annotations, and names and bytes of the files they list.

    Files that no list names do not count, nor where the data set lies. Made once per process.
    `name`: UCF101, VISPR, a key of `surveillance.LOADERS`, or anything for a folder of own videos.

    Raises:
        UserError: no such folder, or a list that cannot be understood.
    """
    if name in _LISTED:
        lists, files = _LISTED[name](require_root(root, f"{name}_ROOT"))
    else:
        data = read_surveillance(name, root)
        lists, files = data.lists, [video.path for video in data.videos]
    return data_digest(root, lists, [path for path in files if path.exists()])
