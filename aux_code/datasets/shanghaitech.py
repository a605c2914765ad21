"""ShanghaiTech Campus: 437 videos of 13 scenes (train 238, 63 of them anomalous; test 199, 44).

    ROOT/training/videos/<scene>_<id>.avi              normal videos
    ROOT/testing/frames/<scene>_<id>/000.jpg ...       a video as a folder of frames
    ROOT/testing/test_frame_mask/<scene>_<id>.npy      one 0 or 1 per frame
    ROOT/SH_Train.txt, ROOT/SH_Test.txt                one video per line; both mix the two folders

Luo, Liu, Gao: A Revisit of Sparse Coding Based Anomaly Detection, ICCV 2017; split by Zhong et al.,
CVPR 2019; https://svip-lab.github.io/dataset/campus_dataset.html, for research use.
"""

import re
from pathlib import Path

import numpy as np

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, numbered_lines, some_of
from aux_code.errors import UserError

OFFICIAL_COUNTS = {"train": 238, "test": 199}


def load(root: Path) -> st.SurveillanceDataset:
    """Reads lists and masks, from which labels come; no video needs to be there."""
    mask_folder = root / "testing" / "test_frame_mask"
    masks = {path.stem: path for path in sorted(mask_folder.glob("*.npy"))}
    lists, videos, without = [], [], []
    for split in ("train", "test"):
        lists.append(path := root / f"SH_{split.title()}.txt")
        for number, line in numbered_lines(path):
            name = st.video_stem(re.split(r"[,\s]", line)[0])
            if not re.fullmatch(r"\d+_\d+", name):
                raise broken_line(path, number, line, "'<scene>_<id>', such as 01_001 or 01_0014")
            if name in masks or not _is_testing_video(name, root):
                videos.append(_video(name, split, root, masks))
            else:
                without.append(mask_folder / f"{name}.npy")
    if without:
        problem = "masks are missing, from which labels and events of testing videos come"
        raise UserError(f"{some_of(problem, without)[0]}; unpack them there")
    names = {video.name for video in videos}
    lists += [path for name, path in masks.items() if name in names]
    return st.assemble(
        "shanghaitech", root, videos, st.unlisted("masks", masks.keys() - names), lists
    )


def _is_testing_video(name: str, root: Path) -> bool:
    """By its id of four digits, so that it is known where only features are at hand."""
    return len(name.split("_")[1]) == 4 or (root / "testing" / "frames" / name).exists()


def _video(name: str, split: str, root: Path, masks: dict[str, Path]) -> st.SurveillanceVideo:
    if name not in masks:
        path = root / "training" / "videos" / f"{name}.avi"
        return st.SurveillanceVideo(name, path, split, 0, st.NORMAL)
    path = root / "testing" / "frames" / name
    events = mask_events(read_mask(masks[name]))
    label, category = (1, st.ANOMALY) if events else (0, st.NORMAL)
    # A training video's annotation is its label alone, whatever its mask tells.
    return st.SurveillanceVideo(
        name, path, split, label, category, events if split == "test" else ()
    )


def mask_events(mask: np.ndarray) -> st.Events:
    """Runs of non-zero values in a mask (n_frames,), 0-based, end exclusive."""
    steps = np.diff(np.concatenate([[0], (mask != 0).astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist()
    return tuple(zip(starts, ends, strict=True))


def read_mask(path: Path) -> np.ndarray:
    """One 0 or 1 per frame, (n_frames,); a UserError names a file that holds anything else."""
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable mask ({error}); unpack it again") from error
    if not isinstance(mask, np.ndarray):
        raise UserError(f"{path}: an archive of arrays; expected one 0 or 1 per frame")
    if mask.ndim != 1 or len(mask) == 0 or not np.isin(mask, (0, 1)).all():
        found = f"shape {mask.shape}, type {mask.dtype}"
        raise UserError(f"{path}: expected one 0 or 1 per frame, found {found}")
    return mask
