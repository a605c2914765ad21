"""Which frames a video file really holds: by its packets where they can be trusted, else decoded.

Containers that store a time for every frame (MP4, MOV, Matroska, WebM) are indexed by reading their
packets, which costs some milliseconds, and then read at any place by seeking. AVI stores no times:
its packets are counted and it is read from the start. Other containers are decoded once. A
container's own claim of its length is never used. An index is kept in memory.
"""

import logging
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from aux_code.datasets.unreadable import UnreadableMedia

log = logging.getLogger(__name__)

VIEW_TAG = "TED_SPAD_VIEW"
"""In the metadata of copies whose frames are what networks see, released: a `view_text`."""

_SEEKABLE_FORMATS = {"mp4", "mov", "matroska", "webm"}
_MAX_CACHED = 50_000


@dataclass(frozen=True)
class VideoIndex:
    """The frames of one video file.

    Attributes:
        n_frames: number of frames that decode.
        height, width: of the frames as they are returned, in pixels, rotation applied.
        pts: sorted presentation times (n_frames,) in the stream's time base.
        key_pts, key_dts: sorted presentation and decoding times of the key frames, for seeking.
            All three are None for a file that is read from its start.
    """

    n_frames: int
    height: int
    width: int
    pts: np.ndarray | None = None
    key_pts: np.ndarray | None = None
    key_dts: np.ndarray | None = None


_cache: dict[tuple[str, int, int], VideoIndex] = {}
"""(absolute path, modification time in ns, bytes) -> index of the file as it was then."""


def video_index(path: Path | str) -> VideoIndex:
    """Index of a video file, made once per process until the file changes."""
    index = _cache.get(_version(path))
    return index or _remember(path, _index_by_packets(path) or _index_by_decoding(path))


def reindex_by_decoding(path: Path | str) -> VideoIndex:
    """Replaces an index that did not hold: packets do not decode, or times change."""
    return _remember(path, _index_by_decoding(path))


def _version(path: Path | str) -> tuple[str, int, int]:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UnreadableMedia(path, f"cannot be read ({error.strerror})") from error
    return os.path.abspath(path), status.st_mtime_ns, status.st_size


def _remember(path: Path | str, index: VideoIndex) -> VideoIndex:
    if len(_cache) >= _MAX_CACHED:
        _cache.clear()
    _cache[_version(path)] = index
    return index


def open_video(path: Path | str, n_threads: int = 1) -> av.container.InputContainer:
    """Opens a file, for `with`, and sets its decoder up; UnreadableMedia if it holds no video."""
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableMedia(path, f"cannot be opened as a video ({reason})") from error
    has_video = bool(container.streams.video)
    context = video_stream(container).codec_context if has_video else None
    if context is None:
        container.close()
        problem = "no decoder knows its video's format" if has_video else "holds no video stream"
        raise UnreadableMedia(path, problem)
    context.thread_count = n_threads
    if n_threads > 1:
        context.thread_type = "AUTO"
    return container


def view_text(crop: float, size: int) -> str:
    """How such frames were cut: the crop's share of height and width, then resized to pixels."""
    return f"crop {crop:g} size {size}"


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The first stream that is not a cover picture, which films and downloads may carry."""
    streams, cover = container.streams.video, Disposition.attached_pic
    return next((stream for stream in streams if not stream.disposition & cover), streams[0])


def _demux(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """The video's packets, and an empty one that makes the decoder hand out what it holds back."""
    try:
        yield from container.demux(video_stream(container))
    except IndexError:  # PyAV has no place for streams that a damaged transport stream begins later
        return


def decoded_frames(
    container: av.container.InputContainer,
    path: Path | str,
    problems: list[str] | None = None,
    needed: Collection[int] | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames in presentation order from where the container stands.

    Packets that do not decode are skipped with a warning, or, where `problems` is given, a line in
    it. With `needed`, presentation times, frames on which no other depends may be left out.
    """
    stream, n_bad = video_stream(container), 0
    try:
        for packet in _demux(container):
            if needed is not None:
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
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
    """Duration of the video (not of its sound) that the file states; 0.0 where it does not."""
    stream = video_stream(container)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    written = stream.metadata.get("DURATION", "") + "::"  # Matroska, WebM
    hours, minutes, seconds = written.split(":")[:3]
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        alone = len(container.streams) == 1
        return container.duration / av.time_base if container.duration and alone else 0.0


class Turn(NamedTuple):
    """What turns a decoded frame upright: first mirrored left and right, then turned."""

    mirrored: bool
    quarters: int
    """Of a circle, anticlockwise, 0 to 3."""


def display_turn(frame: av.VideoFrame) -> Turn:
    """As the container's display matrix has it; odd angles go to the nearest."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Turn(False, 0)
    # A frame's (x, y) is shown at (x a + y c, x b + y d), y downwards.
    a, b, _, c, d = np.frombuffer(data, np.int32, count=5).astype(float)
    mirrored = bool(a * d - b * c < 0)
    sign = -1 if mirrored else 1
    return Turn(mirrored, round(-math.atan2(sign * b, sign * a) / (math.pi / 2)) % 4)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame once it stands upright."""
    size = frame.height, frame.width
    return size[::-1] if display_turn(frame).quarters % 2 else size


def _index_by_decoding(path: Path | str) -> VideoIndex:
    with open_video(path) as container:
        frames = decoded_frames(container, path)
        first = next(frames, None)
        if first is None:
            raise UnreadableMedia(path, "no frame of its video decodes")
        return VideoIndex(1 + sum(1 for _ in frames), *upright_size(first))


class _Packet(NamedTuple):
    """What an index needs of a packet; whole packets of an hour of video would not be small."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


def _packets(path: Path | str) -> list[_Packet] | None:
    """The packets of a file's video; None if it cannot be read to its end."""
    fields = attrgetter(*_Packet._fields)
    with open_video(path) as container:
        try:
            return [_Packet(*fields(packet)) for packet in _demux(container) if packet.size]
        except av.error.FFmpegError:
            return None


def _index_by_packets(path: Path | str) -> VideoIndex | None:
    """The index from packets, or None where they cannot be trusted."""
    with open_video(path) as container:
        formats = set(container.format.name.split(","))
    if not formats & {"avi", *_SEEKABLE_FORMATS}:
        return None
    packets = _packets(path)
    if not packets or any(packet.pts is None or packet.is_corrupt for packet in packets):
        return None
    if "avi" in formats:
        return _index_by_count(path, packets)
    # Matroska has no decoding times; those before the first frame cannot be made up.
    keys = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe)
    pts = np.array(sorted(p.pts for p in packets if not p.is_discard), dtype=np.int64)
    if not keys or len(pts) == 0 or (np.diff(pts) == 0).any() or packets[0].pts != keys[0][0]:
        return None
    key_pts, key_dts = np.array(keys, dtype=np.int64).T
    tail = _last_group(path, int(key_dts[-1]))
    expected = set(pts[pts >= key_pts[-1]].tolist())
    if {time for time in tail.times if time is None or time >= key_pts[-1]} != expected:
        return None
    return VideoIndex(len(pts), *tail.size, pts, key_pts, key_dts)


def _index_by_count(path: Path | str, packets: list[_Packet]) -> VideoIndex | None:
    """The number of packets, if the last key frame and what follows decode to as many frames."""
    last = max((i for i, packet in enumerate(packets) if packet.is_keyframe), default=0)
    if packets[last].dts is None or not packets[0].is_keyframe:
        return None
    tail = _last_group(path, packets[last].dts)
    return VideoIndex(len(packets), *tail.size) if len(tail.times) == len(packets) - last else None


class _Tail(NamedTuple):
    """What decodes from the last key frame on, where truncated files and invisible packets show."""

    size: tuple[int, int]
    """(height, width) of the file's first frame."""
    times: list[int | None]
    """Presentation times; none if not even the first frame decodes."""


def _last_group(path: Path | str, key_dts: int) -> _Tail:
    with open_video(path) as container:
        first = next(decoded_frames(container, path), None)
        if first is None:
            return _Tail((0, 0), [])
        container.seek(key_dts, stream=video_stream(container), backward=True)
        times = [frame.pts for frame in decoded_frames(container, path)]
    return _Tail(upright_size(first), times)
