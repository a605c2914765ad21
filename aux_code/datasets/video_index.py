"""Which frames a video file really holds: by its packets where they can be trusted, else decoded.

Containers that store a time for every frame (MP4, MOV, Matroska, WebM), or a place and show frames
in that order (AVI), are indexed by reading their packets, which costs some milliseconds, and then
read at any place by seeking. Others are decoded once and read from the start. A container's own
claim of its length is never used. An index is kept in memory.
"""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import (
    LEAST_FRAME,
    decoded_frames,
    demux,
    display_order,
    file_version,
    open_video,
    upright_size,
    video_stream,
)

_SEEKABLE_FORMATS = {"mp4", "mov", "matroska", "webm", "avi"}
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
    index = _cache.get(file_version(path))
    return index or _remember(path, _index_by_packets(path) or _index_by_decoding(path))


def reindex_by_decoding(path: Path | str) -> VideoIndex:
    """Replaces an index that did not hold: packets do not decode, or times change."""
    return _remember(path, _index_by_decoding(path))


def _remember(path: Path | str, index: VideoIndex) -> VideoIndex:
    if len(_cache) >= _MAX_CACHED:
        _cache.clear()
    _cache[file_version(path)] = index
    return index


def _index_by_decoding(path: Path | str) -> VideoIndex:
    with open_video(path) as container:
        frames = decoded_frames(container, path)
        first = next(frames, None)
        if first is None:
            raise UnreadableMedia(path, "no frame of its video decodes")
        return VideoIndex(1 + sum(1 for _ in frames), *upright_size(first))


class _Packet(NamedTuple):
    """What an index needs of a packet; whole packets of an hour of video would not be small."""

    size: int
    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


def _packets(path: Path | str) -> list[_Packet] | None:
    """The packets of a file's video; None if it cannot be read to its end."""
    fields, problems = attrgetter(*_Packet._fields), []
    with open_video(path) as container:
        packets = [_Packet(*fields(packet)) for packet in demux(container, path, problems)]
    return None if problems else packets


def _index_by_packets(path: Path | str) -> VideoIndex | None:
    """The index from packets, or None where they cannot be trusted."""
    with open_video(path) as container:
        formats = set(container.format.name.split(","))
    if not formats & _SEEKABLE_FORMATS:
        return None
    packets = _packets(path)
    if not packets or any(packet.pts is None or packet.is_corrupt for packet in packets):
        return None
    if "avi" in formats and min(packet.size for packet in packets) < LEAST_FRAME:
        return None
    # Matroska has no decoding times; those before the first frame cannot be made up.
    keys = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe)
    pts = display_order([p.pts for p in packets if not p.is_discard])
    if not keys or pts is None or len(pts) == 0 or (np.diff(pts) == 0).any():
        return None
    if packets[0].pts != keys[0][0]:
        return None
    if any(packet.is_discard and pts[0] < packet.pts < pts[-1] for packet in packets):
        return None  # an edit list of several parts: what leads in to one has times of another
    key_pts, key_dts = np.array(keys, dtype=np.int64).T
    tail = _last_group(path, int(key_dts[-1]))
    shown = [time for time in tail.times if time is None or time >= key_pts[-1]]
    if shown != pts[pts >= key_pts[-1]].tolist() or ("avi" in formats and tail.is_reordered):
        return None
    return VideoIndex(len(pts), *tail.size, pts, key_pts, key_dts)


class _Tail(NamedTuple):
    """What decodes from the last key frame on, where truncated files and invisible packets show."""

    size: tuple[int, int]
    """(height, width) of the file's first frame."""
    times: list[int | None]
    """Presentation times; none if not even the first frame decodes."""
    is_reordered: bool
    """Whether frames are not stored as they are shown: an AVI's times are those of storage."""


def _last_group(path: Path | str, key_dts: int) -> _Tail:
    with open_video(path) as container:
        first = next(decoded_frames(container, path), None)
        if first is None:
            return _Tail((0, 0), [], False)
        container.seek(key_dts, stream=video_stream(container), backward=True)
        times = [frame.pts for frame in decoded_frames(container, path)]
        is_reordered = video_stream(container).codec_context.has_b_frames
    return _Tail(upright_size(first), times, is_reordered)
