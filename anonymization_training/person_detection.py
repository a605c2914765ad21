"""People in the training videos by a detector: once per video, before the training.

Training draws clips at random times in every epoch, and the decoding processes have no GPU for a
detector; so it sees every frame once. The boxes lie below ARTIFACT_ROOT/person_boxes, in a folder
for each detector, one file per video in the format of person_boxes.csv: blur, blacken and every
seed share them, and an interrupted detection goes on.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from aux_code import config
from aux_code.datasets.decode import iterate_frames
from aux_code.datasets.person_box_files import read_boxes, write_boxes
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.distributed import barrier, rank, world_size
from aux_code.models.person_boxes import PersonBoxes, open_person_boxes
from aux_code.parameters import PersonBoxParams
from aux_code.progress import progress

log = logging.getLogger(__name__)

_FRAMES_AT_ONCE = 16


def find_people(
    params: PersonBoxParams, videos: Sequence[Path], device: torch.device
) -> PersonBoxes:
    """Who blur and blacken hide in videos of UCF101; a detector looks at all frames once."""
    root = config.UCF101_ROOT
    people = open_person_boxes(params.boxes, params.detector_weights, root, device)
    if people.needs_frames:
        return detect_in_videos(people, videos, root)
    people.require(videos)
    return people


def detect_in_videos(people: PersonBoxes, videos: Sequence[Path], root: Path) -> PersonBoxes:
    """Boxes of all frames of the videos, from disk where an earlier run has left them.

    Under torchrun each rank looks at its share of the videos.

    Args:
        people: with a detector.
        videos: below `root`.
        root: the data set's folder.

    Returns:
        The boxes as rows, which need no frames. A video that does not decode has none: the
        training counts and names it.
    """
    # one folder for each detector and place of the data: names of two data sets may be equal
    place = hashlib.sha256(root.resolve().as_posix().encode()).hexdigest()[:8]
    detector = people.origin["sha256"][:16] or "torchvision"
    folder = config.ARTIFACT_ROOT / "person_boxes" / detector / place
    names = {video: video.relative_to(root).as_posix() for video in videos}
    files = {video: folder / f"{name}.csv" for video, name in names.items()}
    own = list(videos)[rank() :: world_size()]
    todo = [video for video in own if not _is_current(files[video], video)]
    counts = f"{len(todo)} of {len(videos)} videos"
    log.info("people are sought in %s; their boxes go to %s", counts, folder)
    for video in progress(todo, "people"):
        try:
            write_boxes(files[video], {names[video]: _boxes_of(people, video)})
        except UnreadableMedia as error:
            log.warning("no people in a video that does not decode: %s", error)
    barrier()
    rows: dict[str, Mapping[int, np.ndarray]] = {}
    for file in files.values():
        if file.is_file():
            rows |= read_boxes(file)
    return PersonBoxes(rows, origin=people.origin)


def _is_current(file: Path, video: Path) -> bool:
    return file.is_file() and file.stat().st_mtime >= video.stat().st_mtime


def _boxes_of(people: PersonBoxes, video: Path) -> dict[int, np.ndarray]:
    boxes: dict[int, np.ndarray] = {}
    frames, first = iterate_frames(video), 0
    while part := list(islice(frames, _FRAMES_AT_ONCE)):  # in constant memory
        found = people.of_frames(video, range(first, first + len(part)), np.stack(part))
        boxes |= {first + i: of_frame for i, of_frame in enumerate(found) if len(of_frame)}
        first += len(part)
    return boxes
