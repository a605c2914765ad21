"""Which frames a video file really holds: an index by packets where that can be trusted, else by decoding.

Containers that store a time for every picture (MP4, MOV, Matroska, WebM) can be indexed by reading their packets,
which costs some milliseconds, and then be read at any place by seeking. Others (AVI above all) store none, or wrong
ones; their frames are counted by decoding and read from the start. A container's own claim of its length is never
used. An index is kept on disk, so that neither the next process nor the next epoch scans the file again.
"""

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from aux_code.datasets.index_cache import FileKey, load_index, store_index
from aux_code.datasets.unreadable import UnreadableMedia

log = logging.getLogger(__name__)

_SEEKABLE_FORMATS = {"mp4", "mov", "matroska", "webm"}
_MAX_CACHED = 50_000
_TIMES = ("pts", "key_pts", "key_dts")


@dataclass(frozen=True)
class VideoIndex:
    """The frames of one video file.

    Attributes:
        n_frames: number of frames that decode.
        height, width: of the pictures as they are returned, in pixels, rotation applied.
        fps: mean frames per second; 0.0 if the file does not say.
        pts: sorted presentation times of the frames in the stream's time base, or None: then read from the start.
        key_pts, key_dts: presentation and decoding times of the key frames, sorted, for seeking; None as above.
    """

    n_frames: int
    height: int
    width: int
    fps: float
    pts: np.ndarray | None = None
    key_pts: np.ndarray | None = None
    key_dts: np.ndarray | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For the disk. Times go as differences, of which an hour of video compresses to some kilobytes."""
        arrays = {"size": np.array([self.n_frames, self.height, self.width]), "fps": np.array(self.fps)}
        times = {name: getattr(self, name) for name in _TIMES}
        return arrays | {name: np.diff(values, prepend=0) for name, values in times.items() if values is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "VideoIndex":
        """Inverse of `to_arrays`. Raises KeyError or ValueError for arrays that are no index."""
        n_frames, height, width = map(int, arrays["size"])
        times = {name: np.cumsum(arrays[name]) for name in _TIMES if name in arrays}
        if n_frames < 1 or times and (len(times) < len(_TIMES) or len(times["pts"]) != n_frames):
            raise ValueError("times and number of frames do not agree")
        return cls(n_frames, height, width, float(arrays["fps"]), **times)


class _PacketTimes(NamedTuple):
    """What the index needs of a packet; the packets of an hour of video would not be small."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool

    @classmethod
    def of(cls, packet: av.Packet) -> "_PacketTimes":
        """Copies them out of a packet."""
        return cls(*(getattr(packet, name) for name in cls._fields))

    @property
    def is_usable(self) -> bool:
        """Whether an index can be built on it."""
        return self.pts is not None and self.dts is not None and not self.is_corrupt


_cache: dict[FileKey, VideoIndex] = {}
_cache_lock = threading.Lock()


def video_index(path: Path | str) -> VideoIndex:
    """Index of a video file, made once until the file changes: kept in memory, and on disk for other processes."""
    key = _file_key(path)
    with _cache_lock:
        if key in _cache:
            return _cache[key]
    arrays = load_index(key)
    if arrays is not None:
        try:
            return _remember(key, VideoIndex.from_arrays(arrays))
        except (KeyError, ValueError) as error:
            log.warning("%s: its stored frame index is broken (%s) and made again", path, error)
    return _store(key, _index_by_packets(path) or _index_by_decoding(path))


def reindex_by_decoding(path: Path | str) -> VideoIndex:
    """Replaces an index that did not hold: packets that do not decode, times that the decoder changes."""
    return _store(_file_key(path), _index_by_decoding(path))


def open_video(path: Path | str, n_threads: int = 1) -> av.container.InputContainer:
    """Opens a file and sets its video stream's decoder up; to be closed by the caller (`with`).

    Raises:
        UnreadableMedia: no such file, no media file, or no video in it.
    """
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UnreadableMedia(path, f"cannot be opened as a video ({error})") from error
    if not container.streams.video:
        container.close()
        raise UnreadableMedia(path, "holds no video stream")
    context = container.streams.video[0].codec_context
    context.thread_count = n_threads
    if n_threads > 1:
        context.thread_type = "AUTO"
    return container


def decoded_frames(
    container: av.container.InputContainer, path: Path | str, problems: list[str] | None = None
) -> Iterator[av.VideoFrame]:
    """Frames in presentation order from where the container stands.

    Packets that do not decode are skipped with a warning, or, where `problems` is given, with a line in it.
    """
    stream = container.streams.video[0]
    n_bad = 0
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                n_bad += 1
    except av.error.EOFError:
        pass
    except av.error.FFmpegError as error:
        _report(problems, path, f"reading stops early ({error})")
    if n_bad:
        _report(problems, path, f"{n_bad} packets do not decode and are skipped")


def _report(problems: list[str] | None, path: Path | str, problem: str) -> None:
    if problems is None:
        log.warning("%s: %s", path, problem)
    else:
        problems.append(problem)


def picture_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame once it stands upright."""
    if frame.rotation % 180:
        return frame.width, frame.height
    return frame.height, frame.width


def _index_by_decoding(path: Path | str) -> VideoIndex:
    with open_video(path, n_threads=2) as container:
        fps = _mean_rate(container.streams.video[0])
        n_frames, size = 0, (0, 0)
        for frame in decoded_frames(container, path):
            size = size if n_frames else picture_size(frame)
            n_frames += 1
    if n_frames == 0:
        raise UnreadableMedia(path, "no frame of its video decodes")
    return VideoIndex(n_frames, *size, fps)


def _index_by_packets(path: Path | str) -> VideoIndex | None:
    """The index from packet times, or None where they cannot be trusted."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        if not _SEEKABLE_FORMATS & set(container.format.name.split(",")):
            return None
        try:
            packets = [_PacketTimes.of(packet) for packet in container.demux(stream) if packet.size]
        except av.error.FFmpegError:
            return None
        fps = _mean_rate(stream)
    if not packets or not all(packet.is_usable for packet in packets):
        return None
    keys = sorted((p.pts, p.dts) for p in packets if p.is_keyframe)
    pts = np.array(sorted(p.pts for p in packets if not p.is_discard), dtype=np.int64)
    if not keys or len(pts) == 0 or (np.diff(pts) == 0).any() or packets[0].pts != keys[0][0]:
        return None
    key_pts, key_dts = np.array(keys, dtype=np.int64).T
    size = _size_if_last_group_agrees(path, pts, key_pts, key_dts)
    return VideoIndex(len(pts), *size, fps, pts, key_pts, key_dts) if size else None


def _size_if_last_group_agrees(
    path: Path | str, pts: np.ndarray, key_pts: np.ndarray, key_dts: np.ndarray
) -> tuple[int, int] | None:
    """Decodes from the last key frame on: a truncated file or an invisible packet shows there. None on disagreement."""
    with open_video(path) as container:
        container.seek(int(key_dts[-1]), stream=container.streams.video[0], backward=True)
        size, times = None, set()
        for frame in decoded_frames(container, path):
            size = size or picture_size(frame)
            times.add(frame.pts)
    expected = set(pts[pts >= key_pts[-1]].tolist())
    if {time for time in times if time is None or time >= key_pts[-1]} != expected:
        return None
    return size


def _mean_rate(stream: av.video.stream.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else 0.0


def _file_key(path: Path | str) -> FileKey:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UnreadableMedia(path, f"cannot be read ({error.strerror})") from error
    return FileKey(os.path.abspath(path), status.st_mtime_ns, status.st_size)


def _store(key: FileKey, index: VideoIndex) -> VideoIndex:
    store_index(key, index.to_arrays())
    return _remember(key, index)


def _remember(key: FileKey, index: VideoIndex) -> VideoIndex:
    with _cache_lock:
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        _cache[key] = index
    return index
