"""ShanghaiTech Campus: 437 videos of 13 scenes (train 238, 63 of them anomalous; test 199, 44).

    ROOT/training/videos/<scene>_<id>.avi              normal videos; or training/frames/...
    ROOT/testing/frames/<scene>_<id>/000.jpg ...       a video as a folder of frames
    ROOT/testing/test_frame_mask/<scene>_<id>.npy      one 0 or 1 per frame
    ROOT/SH_Train.txt, ROOT/SH_Test.txt                one video per line; both mix the two folders

Luo, Liu, Gao: A Revisit of Sparse Coding Based Anomaly Detection, ICCV 2017; split by Zhong et al.,
CVPR 2019; https://svip-lab.github.io/dataset/campus_dataset.html, for research use.
"""

import re
from pathlib import Path, PureWindowsPath

import numpy as np

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, find_list, numbered_lines, refuse_all
from aux_code.datasets.media_files import files_of
from aux_code.errors import UserError

OFFICIAL_COUNTS = {"train": 238, "test": 199}


def load(root: Path) -> st.SurveillanceDataset:
    """Reads lists and masks, from which labels come; no video needs to be there."""
    lists = [find_list(root, name) for name in ("SH_Train.txt", "SH_Test.txt")]
    inner = root / "shanghaitech"  # the archive's own folder
    root = inner if (inner / "testing").is_dir() else root
    mask_folder = root / "testing" / "test_frame_mask"
    masks = {path.stem: path for path in files_of(mask_folder, suffixes=(".npy",))}
    training, videos, broken = _training_videos(root), [], []
    for split, path in zip(("train", "test"), lists):
        for number, line in numbered_lines(path):
            name = st.video_stem(PureWindowsPath(re.split(r"[,;\s]", line)[0]).name)
            if not re.fullmatch(r"\d+_\d+", name):
                expected = "'<scene>_<id>', such as 01_001 or 01_0014"
                broken.append(broken_line(path, number, line, expected))
            elif name in masks or _is_testing_video(name, root):
                mask = masks.get(name, mask_folder / f"{name}.npy")
                videos.append(_testing_video(root, name, split, mask))
            else:
                file = training.get(name, root / "training" / "videos" / f"{name}.avi")
                videos.append(st.SurveillanceVideo(name, file, split, 0, st.NORMAL))
    refuse_all("lines cannot be understood", broken, "correct them or get the list again")
    names = {video.name for video in videos}
    lists += [path for name, path in masks.items() if name in names]
    return st.assemble(
        "shanghaitech", root, videos, st.unlisted("masks", masks.keys() - names), lists
    )


def _is_testing_video(name: str, root: Path) -> bool:
    """By its id of four digits, so that it is known where only features are at hand."""
    return len(name.split("_")[1]) == 4 or (root / "testing" / "frames" / name).exists()


def _training_videos(root: Path) -> dict[str, Path]:
    """Name -> its video, else its frames, where they are extracted already."""
    places = [root / "training" / name for name in ("frames", "videos")]
    inside = (path for place in places if place.is_dir() for path in place.iterdir())
    frames = {path.name: path for path in inside if path.is_dir()}
    files = files_of(places[1], suffixes=st.VIDEO_SUFFIXES)
    return frames | {path.stem: path for path in reversed(files)}


def _testing_video(root: Path, name: str, split: str, mask: Path) -> st.SurveillanceVideo:
    path = root / "testing" / "frames" / name
    try:
        labels = read_mask(mask)
    except UserError as error:
        return st.SurveillanceVideo(name, path, split, 0, st.NORMAL, problem=str(error))
    events = mask_events(labels)
    label, category = (1, st.ANOMALY) if events else (0, st.NORMAL)
    # A training video's annotation is its label alone, whatever its mask tells.
    shown = (events, len(labels)) if split == "test" else ((), None)
    return st.SurveillanceVideo(name, path, split, label, category, *shown)


def mask_events(mask: np.ndarray) -> st.Events:
    """Runs of non-zero values in a mask (n_frames,), 0-based, end exclusive."""
    steps = np.diff(np.concatenate([[0], (mask != 0).astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist()
    return tuple(zip(starts, ends, strict=True))


def read_mask(path: Path) -> np.ndarray:
    """One 0 or 1 per frame, (n_frames,); a UserError names a file that holds anything else."""
    try:
        mask = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: its mask is missing; unpack it there") from error
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).partition(". ")[0]  # NumPy goes on to advise unpickling
        raise UserError(f"{path}: not a readable mask ({reason}); unpack it again") from error
    if not isinstance(mask, np.ndarray):
        raise UserError(f"{path}: an archive of arrays; expected one 0 or 1 per frame")
    if mask.ndim != 1 or len(mask) == 0 or not np.isin(mask, (0, 1)).all():
        found = f"shape {mask.shape}, type {mask.dtype}"
        raise UserError(f"{path}: expected one 0 or 1 per frame, found {found}")
    return mask
