"""Which frames a video file really holds: an index by packets where that can be trusted, else by
decoding.

Containers that store a time for every picture (MP4, MOV, Matroska, WebM) can be indexed by reading
their packets, which costs some milliseconds, and then be read at any place by seeking. Others (AVI
above all) store none, or wrong ones; they are decoded once. If their frames then come at growing
times, they are read by seeking too, but every seek has to arrive at the very picture that was there
(by its checksum); if not, they are read from the start. A container's own claim of its length is
never used. An index is kept on disk, so that neither the next process nor the next epoch scans the
file again.
"""

import logging
import math
import os
import threading
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

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
        pts: sorted presentation times of the frames in the stream's time base, or None: then read
            from the start.
        key_pts, key_dts: presentation and decoding times of the key frames, sorted, for seeking;
            None as above.
        key_sums: checksums of the key frames' pictures, where the times come from decoding; None
            where from packets.
    """

    n_frames: int
    height: int
    width: int
    fps: float
    pts: np.ndarray | None = None
    key_pts: np.ndarray | None = None
    key_dts: np.ndarray | None = None
    key_sums: np.ndarray | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For the disk. Times go as differences, of which an hour of video compresses to some
        kilobytes."""
        arrays = {
            "size": np.array([self.n_frames, self.height, self.width]),
            "fps": np.array(self.fps),
        }
        if self.key_sums is not None:
            arrays["key_sums"] = self.key_sums
        times = {name: getattr(self, name) for name in _TIMES}
        return arrays | {
            name: np.diff(values, prepend=0) for name, values in times.items() if values is not None
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "VideoIndex":
        """Inverse of `to_arrays`. Raises KeyError or ValueError for arrays that are no index."""
        n_frames, height, width = map(int, arrays["size"])
        times = {name: np.cumsum(arrays[name]) for name in _TIMES if name in arrays}
        if n_frames < 1 or times and (len(times) < len(_TIMES) or len(times["pts"]) != n_frames):
            raise ValueError("times and number of frames do not agree")
        return cls(
            n_frames, height, width, float(arrays["fps"]), **times, key_sums=arrays.get("key_sums")
        )


_cache: dict[FileKey, VideoIndex] = {}
_cache_lock = threading.Lock()


def video_index(path: Path | str) -> VideoIndex:
    """Index of a video file, made once until the file changes: kept in memory, and on disk for
    other processes."""
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


def reindex_by_decoding(path: Path | str, seeks: bool = True) -> VideoIndex:
    """Replaces an index that did not hold: packets that do not decode, times that the decoder
    changes.

    Without `seeks` the new one says to read from the start.
    """
    index = _index_by_decoding(path)
    if not seeks:
        index = replace(index, pts=None, key_pts=None, key_dts=None, key_sums=None)
    return _store(_file_key(path), index)


def open_video(path: Path | str, n_threads: int = 1) -> av.container.InputContainer:
    """Opens a file and sets its video stream's decoder up; to be closed by the caller (`with`).

    Raises:
        UnreadableMedia: no such file, no media file, or no video in it.
    """
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableMedia(path, f"cannot be opened as a video ({reason})") from error
    if not container.streams.video:
        container.close()
        raise UnreadableMedia(path, "holds no video stream")
    context = video_stream(container).codec_context
    if context is None:
        container.close()
        raise UnreadableMedia(path, "no decoder knows its video's format")
    context.thread_count = n_threads
    if n_threads > 1:
        context.thread_type = "AUTO"
    return container


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The video of a file: the first stream that is not a cover picture, which films and downloads
    may carry."""
    streams = container.streams.video
    return next(
        (stream for stream in streams if not stream.disposition & Disposition.attached_pic),
        streams[0],
    )


def _demux(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator[av.Packet]:
    """The stream's packets, and an empty one that makes the decoder hand out what it holds back."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        # IndexError: PyAV has no place for streams that a damaged transport stream begins on its
        # way.
        except (StopIteration, IndexError):
            return
        yield packet


def decoded_frames(
    container: av.container.InputContainer,
    path: Path | str,
    problems: list[str] | None = None,
    needed: Collection[int] | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames in presentation order from where the container stands.

    Packets that do not decode are skipped with a warning, or, where `problems` is given, with a
    line in it. With `needed`, presentation times, pictures at other times may be left out where no
    other picture depends on them.
    """
    stream = video_stream(container)
    context = stream.codec_context
    n_bad = 0
    try:
        for packet in _demux(container, stream):
            if needed is not None:
                context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
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


def stated_seconds(container: av.container.InputContainer) -> float:
    """Duration of the video that the file states, 0.0 where it does not; the whole file's may be
    that of its sound."""
    stream = video_stream(container)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[
        :3
    ]  # Matroska, WebM
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        alone = len(container.streams) == 1
        return container.duration / av.time_base if container.duration and alone else 0.0


class Turn(NamedTuple):
    """What turns a decoded picture upright: it is mirrored left and right first, then turned by
    quarters of a circle.

    Attributes:
        mirrored: whether it is mirrored.
        quarters: anticlockwise, from 0 to 3.
    """

    mirrored: bool
    quarters: int


def display_turn(frame: av.VideoFrame) -> Turn:
    """As the container's display matrix has it: cameras write one, players obey it. Odd angles go
    to the nearest."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Turn(False, 0)
    # A picture's (x, y) is shown at (x a + y c, x b + y d), y downwards.
    a, b, _, c, d = np.frombuffer(data, np.int32, count=5).astype(float)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return Turn(bool(mirrored), round(-math.atan2(b, a) / (math.pi / 2)) % 4)


def picture_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame once it stands upright."""
    if display_turn(frame).quarters % 2:
        return frame.width, frame.height
    return frame.height, frame.width


def picture_checksum(frame: av.VideoFrame) -> int:
    """Of the first plane of a decoded picture, so that a seek can show where it arrived."""
    plane = frame.planes[0]
    if plane.line_size <= 0:  # stored bottom up
        return 0
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return zlib.crc32(np.ascontiguousarray(rows[:, : plane.width]))


def _index_by_decoding(path: Path | str) -> VideoIndex:
    times, key_times, key_sums, size = [], [], [], (0, 0)
    with open_video(path) as container:
        fps = _mean_rate(video_stream(container))
        for frame in decoded_frames(container, path):
            size = size if times else picture_size(frame)
            times.append(frame.pts)
            if frame.key_frame:
                key_times.append(frame.pts)
                key_sums.append(picture_checksum(frame))
    if not times:
        raise UnreadableMedia(path, "no frame of its video decodes")
    plain = VideoIndex(len(times), *size, fps)
    packets = _packets(path)
    key_dts = [packet.dts for packet in packets or () if packet.is_keyframe]
    if (
        None in times
        or None in key_dts
        or len(key_dts) != len(key_times)
        or key_times[:1] != times[:1]
    ):
        return plain
    pts, key_pts, key_dts = (
        np.array(values, dtype=np.int64) for values in (times, key_times, key_dts)
    )
    if any((np.diff(values) <= 0).any() for values in (pts, key_pts, key_dts)):
        return plain
    return replace(
        plain,
        pts=pts,
        key_pts=key_pts,
        key_dts=key_dts,
        key_sums=np.array(key_sums, dtype=np.int64),
    )


class _Packet(NamedTuple):
    """What an index needs of a packet; the packets of an hour of video would not be small."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


def _packets(path: Path | str) -> list[_Packet] | None:
    """The packets of a file's video; None if it cannot be read to its end."""
    with open_video(path) as container:
        try:
            return [
                _Packet(
                    packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.is_corrupt
                )
                for packet in _demux(container, video_stream(container))
                if packet.size
            ]
        except av.error.FFmpegError:
            return None


def _index_by_packets(path: Path | str) -> VideoIndex | None:
    """The index from packet times, or None where they cannot be trusted."""
    with open_video(path) as container:
        if not _SEEKABLE_FORMATS & set(container.format.name.split(",")):
            return None
        fps = _mean_rate(video_stream(container))
    packets = _packets(path)
    if not packets or any(packet.pts is None or packet.is_corrupt for packet in packets):
        return None
    # Matroska has no decoding times, and the first ones, from before the first picture, cannot be
    # made up.
    keys = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe)
    pts = np.array(
        sorted(packet.pts for packet in packets if not packet.is_discard), dtype=np.int64
    )
    if not keys or len(pts) == 0 or (np.diff(pts) == 0).any() or packets[0].pts != keys[0][0]:
        return None
    key_pts, key_dts = np.array(keys, dtype=np.int64).T
    size = _size_if_last_group_agrees(path, pts, key_pts, key_dts)
    return VideoIndex(len(pts), *size, fps, pts, key_pts, key_dts) if size else None


def _size_if_last_group_agrees(
    path: Path | str, pts: np.ndarray, key_pts: np.ndarray, key_dts: np.ndarray
) -> tuple[int, int] | None:
    """Size of the first frame, or None if the frames from the last key frame on are not those of
    the packets.

    A truncated file or an invisible packet shows there.
    """
    with open_video(path) as container:
        first = next(decoded_frames(container, path), None)
        if first is None:
            return None
        container.seek(int(key_dts[-1]), stream=video_stream(container), backward=True)
        times = {frame.pts for frame in decoded_frames(container, path)}
    expected = set(pts[pts >= key_pts[-1]].tolist())
    if {time for time in times if time is None or time >= key_pts[-1]} != expected:
        return None
    return picture_size(first)


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
