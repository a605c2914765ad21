"""Videos (files or folders of frames) and images as uint8 RGB arrays, frame-exact.

The index of a frame is its place in presentation order among the frames that decode, whatever the
container claims, the frame rate does, and the order in which frames are asked for.
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from aux_code.datasets.image_files import IMAGE_SUFFIXES, frame_files, read_image
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_index import VideoIndex, reindex_by_decoding, video_index
from aux_code.datasets.video_stream import (
    FOLDER_FPS,
    Clock,
    decoded_frames,
    display_turn,
    open_video,
    upright_size,
    video_stream,
)

log = logging.getLogger(__name__)

_SKIPS_EXACTLY = {"h264", "mpeg4", "mpeg2video"}
"""Decoders in which a frame that is no reference is one that no other frame needs."""


def count_frames(path: Path | str) -> int:
    """Number of frames that decode, from packets checked against the decoder or by decoding."""
    if Path(path).is_dir():
        return len(frame_files(path))
    return video_index(path).n_frames


def frame_seconds(path: Path | str, n_frames: int) -> np.ndarray:
    """(n_frames + 1,) seconds at which the frames of a video are shown, and the end of the last.

    The container's own times (`Clock`); a folder of frames and an image have FOLDER_FPS.
    """
    if Path(path).is_dir() or Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return np.arange(n_frames + 1) / FOLDER_FPS
    stamps = video_index(path).pts
    with open_video(path) as container:
        clock = Clock(container)
        if stamps is None or len(stamps) != n_frames:
            stamps = [clock.stamp(frame) for frame in decoded_frames(container, path, [])]
    return clock.seconds([*stamps[:n_frames], *[None] * (n_frames - len(stamps))])


def iterate_frames(path: Path | str) -> Iterator[np.ndarray]:
    """Streams all frames, uint8 (H,W,3) RGB; UnreadableMedia if none decodes."""
    if Path(path).is_dir():
        yield from _same_size(map(read_image, frame_files(path)), path)
        return
    converter, frame = RgbConverter(), None
    with open_video(path) as container:
        for frame in decoded_frames(container, path):
            yield converter(frame)
    if frame is None:
        raise UnreadableMedia(path, "no frame of its video decodes")


def read_frames(path: Path | str, indices: Iterable[int]) -> np.ndarray:
    """The frames at `indices`, in that order and with repetitions, uint8 (T,H,W,3) RGB.

    Seeks where the container allows it, at the cost of the groups of pictures with the frames.

    Raises:
        UnreadableMedia: the file does not decode. IndexError: an index lies outside [0, n_frames).
    """
    wanted = np.asarray(list(indices), dtype=np.int64)
    if Path(path).is_dir():
        files = frame_files(path)
        _check_indices(wanted, len(files), path)
        frames = {int(i): read_image(files[i]) for i in np.unique(wanted)}
        return np.stack(list(_same_size((frames[int(i)] for i in wanted), path)))
    index = video_index(path)
    _check_indices(wanted, index.n_frames, path)
    unique = np.unique(wanted)
    frames = (_read_from_start if index.pts is None else _read_by_seeking)(path, index, unique)
    if len(frames) < len(unique):
        log.warning("%s: its frames are not where its index says; indexed anew by decoding", path)
        frames = _read_from_start(path, reindex_by_decoding(path), unique)
    if len(frames) < len(unique):
        raise UnreadableMedia(path, f"frame {unique[len(frames)]} does not decode")
    return np.stack([frames[int(i)] for i in wanted])


def _read_by_seeking(
    path: Path | str, index: VideoIndex, wanted: np.ndarray, skips: bool = True
) -> dict[int, np.ndarray]:
    """Frames at the sorted unique `wanted`, a group of pictures at a time; fewer if they moved.

    With `skips` frames on which no other depends are not decoded unless they are wanted.
    """
    converter, frames = RgbConverter((index.height, index.width)), {}
    groups = np.searchsorted(index.key_pts, index.pts[wanted], side="right") - 1
    with open_video(path) as container:
        skips = skips and video_stream(container).codec_context.name in _SKIPS_EXACTLY
        # A run ends where a whole group of pictures lies between: a seek saves decoding it.
        for run in np.split(wanted, np.flatnonzero(np.diff(groups) > 1) + 1):
            times = {int(index.pts[i]): int(i) for i in run}
            _seek(container, index, int(index.pts[run[0]]))
            needed = frozenset(times) if skips else None
            for frame in decoded_frames(container, path, needed=needed):
                if frame.pts in times:
                    frames[times.pop(frame.pts)] = converter(frame)
                if not times:
                    break
            if times:
                break
    if skips and len(frames) < len(wanted):  # a decoder may hold others back if it skips some
        return _read_by_seeking(path, index, wanted, skips=False)
    return frames


def _seek(container: av.container.InputContainer, index: VideoIndex, pts: int) -> None:
    """Goes to the key frame from which the frame at `pts` decodes: the last one shown no later.

    Leading frames of an open group, shown before their key frame, do not decode after a seek to it.
    """
    stream = video_stream(container)
    for key in range(int(np.searchsorted(index.key_pts, pts, side="right")) - 1, 0, -1):
        # MP4 finds frames by decoding time, Matroska by presentation time.
        for time in (int(index.key_dts[key]), int(index.key_pts[key])):
            container.seek(time, stream=stream, backward=True)
            first = next((packet for packet in container.demux(stream) if packet.size), None)
            if first is not None and first.is_keyframe and first.pts == index.key_pts[key]:
                container.seek(time, stream=stream, backward=True)
                return
    container.seek(int(min(index.key_dts[0], index.pts[0])), stream=stream, backward=True)


def _read_from_start(
    path: Path | str, index: VideoIndex, wanted: np.ndarray
) -> dict[int, np.ndarray]:
    converter, frames = RgbConverter((index.height, index.width)), {}
    remaining = set(wanted.tolist())
    with open_video(path) as container:
        for i, frame in enumerate(decoded_frames(container, path)):
            if i in remaining:
                frames[i] = converter(frame)
                remaining.discard(i)
            if not remaining:
                break
    return frames


class RgbConverter:
    """Decoded frame -> uint8 (H,W,3) RGB, upright, of one size. One per video: it keeps its tables.

    Args:
        size: (height, width) of what it returns; None: that of the first frame that it is given.
    """

    def __init__(self, size: tuple[int, int] | None = None):
        self._reformatter = VideoReformatter()
        self._size = size

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        self._size = self._size or upright_size(frame)
        mirrored, quarters = display_turn(frame)
        height, width = self._size[::-1] if quarters % 2 else self._size
        # By default a converter starts as many threads as there are cores, for 0.05 ms.
        size = {"width": width, "height": height}
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1, **size).to_ndarray()
        if mirrored or quarters:
            return np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirrored else rgb, k=quarters))
        return rgb


def _check_indices(wanted: np.ndarray, n_frames: int, path: Path | str) -> None:
    if len(wanted) == 0:
        raise IndexError(f"{path}: no frame was asked for")
    if wanted.min() < 0 or wanted.max() >= n_frames:
        raise IndexError(f"{path} has {n_frames} frames, not {wanted.min()} to {wanted.max()}")


def _same_size(frames: Iterable[np.ndarray], path: Path | str) -> Iterator[np.ndarray]:
    shape = None
    for frame in frames:
        shape = shape or frame.shape
        if frame.shape != shape:
            sizes = f"{shape[:2]} and {frame.shape[:2]}"
            raise UnreadableMedia(path, f"its frames differ in size: {sizes}")
        yield frame


class DecodedCache:
    """Decoded videos and images in memory, up to `limit_bytes`: small sets decode once per run.

    Nothing is evicted: an epoch visits every file once. Arrays are read-only, since callers share
    them. Safe to use from threads.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._too_large: set[str] = set()
        self._lock = threading.Lock()

    def count_frames(self, path: Path | str) -> int:
        """As the function `count_frames`."""
        video = self._video(path)
        return count_frames(path) if video is None else len(video)

    def read_frames(self, path: Path | str, indices: Iterable[int]) -> np.ndarray:
        """As the function `read_frames`."""
        video = self._video(path)
        if video is None:
            return read_frames(path, indices)
        wanted = np.asarray(list(indices), dtype=np.int64)
        _check_indices(wanted, len(video), path)
        return video[wanted]

    def read_image(self, path: Path | str) -> np.ndarray:
        """As the function `read_image`; read-only."""
        image = self._arrays.get(str(path))
        return self._keep(path, read_image(path)) if image is None else image

    def _video(self, path: Path | str) -> np.ndarray | None:
        """The whole video; None if it does not fit. One decoding counts and keeps the frames."""
        video = self._arrays.get(str(path))
        if video is not None or self.n_bytes >= self.limit_bytes or str(path) in self._too_large:
            return video
        frames, n_bytes = [], self.n_bytes
        for frame in iterate_frames(path):
            n_bytes += frame.nbytes
            if n_bytes > self.limit_bytes:
                self._too_large.add(str(path))
                return None
            frames.append(frame)
        return self._keep(path, np.stack(frames))

    def _keep(self, path: Path | str, array: np.ndarray) -> np.ndarray:
        array.flags.writeable = False
        with self._lock:
            if str(path) not in self._arrays and self.n_bytes + array.nbytes <= self.limit_bytes:
                self._arrays[str(path)] = array
                self.n_bytes += array.nbytes
        return array
