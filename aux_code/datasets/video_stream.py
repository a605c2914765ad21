"""A video file opened: its moving picture, its frames in order, their times, what is damaged.

Everything that counts, decodes, times or copies a video comes through here, so that all see the
same frames: one stream, one decoder thread (several conceal damage in other ways), one clock.
"""

import logging
import math
import os
from array import array
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.format import Flags
from av.stream import Disposition

from aux_code.datasets.unreadable import UnreadableMedia

log = logging.getLogger(__name__)

VIEW_TAG = "TED_SPAD_VIEW"
"""In the metadata of copies whose frames are what networks see, released: a `view_text`."""

FOLDER_FPS = 24.0
"""Frames per second assumed where nothing says: of a folder of frames, ShanghaiTech's rate."""

_BESIDE = Disposition.attached_pic | Disposition.timed_thumbnails
_HEADED_FORMATS = {"mov", "mp4", "avi", "matroska", "webm", "flv", "asf", "mxf"}
"""Their headers state a length; of other formats FFmpeg reckons one, from times or bytes."""
_N_COMPARED = 500
_N_AHEAD = 8
_LONGEST_PAUSE = {True: 10, False: 3600}
"""Seconds from one frame to the next that are believed, of formats whose times may start anew
(transport streams; as by ffmpeg), and of others, whose recorders may save changes only."""
_MOST_REORDERED = 32
"""Packets between the place where a frame is stored and that where it is shown: H.264 has 16."""
LEAST_FRAME = 10
"""Bytes; from a smaller packet, such as MPEG-4's "not coded", no frame need come."""
_SHORTEST_RUN = 3
"""Packets in a row from which no frame comes; one alone may be a field, or a frame never shown."""
_TICK_RATE = 1000
"""Frames per second from which on a stated rate is a unit of time."""
_SHORTEST_LEAD = 0.5
"""Seconds: a first frame that comes earlier is delayed by its encoder, not by an edit list."""

T = TypeVar("T")


def file_version(path: Path | str) -> tuple[str, int, int]:
    """(absolute path, modification time in ns, bytes); UnreadableMedia if it is not there."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UnreadableMedia(path, f"cannot be read ({error.strerror})") from error
    return os.path.abspath(path), status.st_mtime_ns, status.st_size


def open_video(path: Path | str) -> av.container.InputContainer:
    """Opens a file, for `with`, and sets its decoder up; UnreadableMedia if it holds no video."""
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableMedia(path, f"cannot be opened as a video ({reason})") from error
    moving, problem = _moving(container), ""
    if not moving:
        beside = ", only a cover picture" if container.streams.video else ""
        problem = f"holds no video stream{beside}"
    elif (context := video_stream(container).codec_context) is None:
        problem = "no decoder knows its video's format"
    if problem:
        container.close()
        raise UnreadableMedia(path, problem)
    context.thread_count = 1
    if context.name == "hevc":  # its decoder leaves out, else, what comes after a lost key frame
        context.flags |= CodecFlags.output_corrupt
    return container


def view_text(crop: float, size: int) -> str:
    """How such frames were cut: the crop's share of height and width, then resized to pixels."""
    return f"crop {crop:g} size {size}"


def _moving(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The video streams that are neither marked as a cover picture nor as thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & _BESIDE]


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The moving picture. Of several streams that may be it those with less than half as many
    frames as another are covers and thumbnails, too; of the others the largest, then the first."""
    moving = _moving(container)
    return moving[0 if len(moving) == 1 else _main_picture(*file_version(container.name))]


@lru_cache(maxsize=10_000)
def _main_picture(path: str, _mtime: int, _n_bytes: int) -> int:
    """Place among the moving streams, by the packets with which the file begins."""
    with av.open(path, metadata_errors="replace") as container:
        moving, counts = _moving(container), Counter()
        try:
            for packet in islice(container.demux(moving), _N_COMPARED):
                counts[packet.stream_index] += packet.size > 0
        except (av.error.FFmpegError, IndexError) as error:
            log.debug("%s: %s", path, error)
        least = max(counts.values(), default=0) / 2
        sizes = [
            (stream.width * stream.height, -place)
            for place, stream in enumerate(moving)
            if counts[stream.index] >= least and stream.codec_context is not None
        ]
        return -max(sizes)[1] if sizes else 0


def demux(
    container: av.container.InputContainer, path: Path | str, problems: list[str] | None = None
) -> Iterator[av.Packet]:
    """The video's packets that hold something; where reading fails is their end, and named.

    Empty packets (an AVI's frames that show the last one again) would end a decoder.
    """
    try:
        for packet in container.demux(video_stream(container)):
            if packet.size:
                yield packet
    except IndexError:  # PyAV has no place for streams that a damaged transport stream begins later
        return
    except av.error.FFmpegError as error:
        _report(problems, path, f"reading stops early ({error})")


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
    n_bad = 0
    for _, frames in _decoded(container, demux(container, path, problems), needed):
        n_bad += frames is None
        yield from frames or ()
    if n_bad:
        _report(problems, path, f"{n_bad} packets do not decode and are skipped")


def _decoded(
    container: av.container.InputContainer,
    packets: Iterable[av.Packet],
    needed: Collection[int] | None = None,
) -> Iterator[tuple[av.Packet | None, list[av.VideoFrame] | None]]:
    """(packet, frames that come with it or None if it does not decode); at the end those that the
    decoder held back, without a packet."""
    stream, skips = video_stream(container), None
    for packet in chain(packets, [None]):
        if needed and packet is not None and (packet.pts not in needed) is not skips:
            skips = packet.pts not in needed
            stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        try:
            yield packet, stream.decode(packet)
        except av.error.FFmpegError:
            yield packet, None


def _report(problems: list[str] | None, path: Path | str, problem: str) -> None:
    if problems is None:
        log.warning("%s: %s", path, problem)
    else:
        problems.append(problem)


class Decoding:
    """The frames of a file just opened, for one `for`; then what came of it.

    Attributes:
        stamps: the container's times of the frames so far.
        problems: what is wrong with the file, a line each.
    """

    def __init__(self, container: av.container.InputContainer, path: Path | str):
        self.container, self.path, self.clock = container, path, Clock(container)
        self.stamps: list[int | None] = []
        self.problems: list[str] = []
        self._end = self._n_marked = self._n_bad = self._n_lost = 0

    def __iter__(self) -> Iterator[av.VideoFrame]:
        sent, came = array("q"), array("q")  # times of packets and frames
        packets = demux(self.container, self.path, self.problems)
        for packet, frames in _decoded(self.container, packets):
            if packet is not None and packet.pts is not None:
                if packet.size >= LEAST_FRAME and not packet.is_discard:
                    sent.append(packet.pts)
            self._n_bad += frames is None
            for frame in frames or ():
                self._note(frame)
                if frame.pts is not None:
                    came.append(frame.pts)
                yield frame
        is_lost = np.isin(sent, came, invert=True)
        runs = np.diff(np.flatnonzero(np.diff(is_lost, prepend=False, append=False)))[::2]
        self._n_lost = int(runs[runs >= _SHORTEST_RUN].sum())
        self._conclude()

    def _note(self, frame: av.VideoFrame) -> None:
        stamp = self.clock.stamp(frame)
        self.stamps.append(stamp)
        self._end = max(self._end, (stamp or 0) + (frame.duration or 0))
        self._n_marked += frame.is_corrupt

    def _conclude(self) -> None:
        if self._n_bad:
            self.problems.append(f"{self._n_bad} packets do not decode")
        if self._n_marked:
            self.problems.append(f"the decoder marks {self._n_marked} frames as damaged")
        n_announced = self.n_announced()
        missing = n_announced - len(self.stamps)
        # an announced frame or two that never come are common in sound files (rounding)
        if missing > max(2, 0.01 * n_announced):
            self.problems.append(f"{missing:.0f} of its {n_announced:.0f} frames do not come")

    def n_announced(self) -> float:
        """Frames that the file would show if it were whole, at least those that came."""
        n_frames, end = len(self.stamps), float(self._end * self.clock.time_base)
        stored = float(n_frames + max(self._n_bad, self._n_lost))
        return max(announced_frames(self.container, n_frames, end), stored)

    def share(self) -> float:
        """Of the frames that the file would show, those that came and are not marked."""
        return (len(self.stamps) - self._n_marked) / max(1.0, self.n_announced())


def announced_frames(
    container: av.container.InputContainer, n_frames: int, end_seconds: float
) -> float:
    """How many frames a file shows by its own table (MP4), else the `n_frames` read up to
    `end_seconds`, scaled by the length that it states. A stated number alone is only a claim: an
    edit list hides some, and an AVI counts frames that show the last one again."""
    stream, formats = video_stream(container), set(container.format.name.split(","))
    if "mov" in formats and stream.frames:
        listed = sum(not entry.is_discard and entry.size > 0 for entry in stream.index_entries)
        return float(max(n_frames, listed))
    if not formats & _HEADED_FORMATS or ("avi" in formats and _is_whole_riff(container.name)):
        return float(n_frames)
    duration = stated_seconds(container)
    return n_frames * duration / end_seconds if duration > end_seconds > 0 else float(n_frames)


def _is_whole_riff(path: str) -> bool:
    """Whether a file is as long as its head says, which was written when it was closed."""
    with open(path, "rb") as file:
        head = file.read(8)
    return 0 < int.from_bytes(head[4:], "little") <= os.path.getsize(path) - 8


def stated_seconds(container: av.container.InputContainer) -> float:
    """Duration of the video (not of its sound) that the file states; 0.0 where it does not."""
    stream = video_stream(container)
    if container.format.name == "avi":  # its duration is FFmpeg's, from the size of what is left
        return float(stream.frames * stream.time_base)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    written = stream.metadata.get("DURATION", "") + "::"  # Matroska, WebM
    hours, minutes, seconds = written.split(":")[:3]
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        alone = len(container.streams) == 1
        return container.duration / av.time_base if container.duration and alone else 0.0


class Timed(NamedTuple):
    """A decoded frame, when it is shown and for how long, in units of the container's time base."""

    frame: av.VideoFrame
    pts: int
    duration: int


class Clock:
    """Times of a file's frames: its own, by edit list and display order, growing.

    Where they jump (a camera that reconnects, segments joined) or one is wrong, the frames go on at
    the step of those around them.
    """

    def __init__(self, container: av.container.InputContainer):
        stream, flags = video_stream(container), container.format.flags
        self.stated = stream.average_rate or stream.guessed_rate
        if flags & Flags.no_timestamps.value:  # a bare stream: the average is FFmpeg's default
            self.stated = stream.guessed_rate or self.stated
        self._has_places = container.format.name == "avi"
        self.time_base = stream.time_base or 1 / (self.stated or Fraction(FOLDER_FPS))
        may_start_anew = bool(flags & Flags.ts_discont.value)
        self._pause = round(_LONGEST_PAUSE[may_start_anew] / self.time_base)
        has_timeline = "mov" in container.format.name.split(",")
        start = 0 if has_timeline else Fraction(container.start_time or 0, av.time_base)
        self._start = round(start / self.time_base)

    def stamp(self, frame: av.VideoFrame) -> int | None:
        """The container's time of a frame; AVI has none but a place, where the frame is shown."""
        return frame.dts if self._has_places or frame.pts is None else frame.pts

    def ticks(self, stamped: Iterable[tuple[T, int | None]]) -> Iterator[tuple[T, int]]:
        """(item, its stamp) in display order -> (item, pts), which grows; looks 8 items ahead."""
        source, ahead = iter(stamped), deque()
        steps: deque[int] = deque(maxlen=_N_AHEAD)
        believed = last = None  # believed: the (stamp, pts) from which stamps are counted
        while True:
            ahead.extend(islice(source, _N_AHEAD + 1 - len(ahead)))
            if not ahead:
                return
            item, stamp = ahead.popleft()
            later = [stamp for _, stamp in ahead]
            step = self._step(steps, [stamp, *later])
            if last is None:
                pts, is_own = self._lead(stamp, later, step), stamp is not None
            else:
                pts, is_own = self._next(last, believed, stamp, later, step)
                steps.append(pts - last)
            if is_own:
                believed = stamp, pts
            last = pts
            yield item, pts

    def _lead(self, stamp: int | None, later: Sequence[int | None], step: int) -> int:
        """Pts of the first frame: how late it is shown, by an edit list or beside earlier sound."""
        least = max(_SHORTEST_LEAD / self.time_base, 3 * step)
        lead = 0 if stamp is None else stamp - self._start
        runs_back = any(other is not None and other < stamp for other in later) if lead else False
        return lead if least <= lead <= 10 / self.time_base and not runs_back else 0

    def _next(self, last, believed, stamp, later, step) -> tuple[int, bool]:
        """(pts, whether by the stamp) of a frame after the one at `last`."""
        if believed is None:
            return last + step, stamp is not None
        shift = believed[1] - believed[0]
        # where the next frame is that goes on from here; those before it lie between
        in_line = (
            (place, other + shift)
            for place, other in enumerate(later, 2)
            if other is not None
            and 0.75 * step * place <= other + shift - last <= self._pause + 10 * step
        )
        place, goal = next(in_line, (1, None))
        own = None if stamp is None else stamp + shift
        pause = max(self._pause, 10 * step)
        if own is not None and last < own <= last + pause and not (goal and goal < own):
            return own, True
        if goal is not None:
            return last + max(1, (goal - last) // place), False
        return last + step, stamp is not None

    def _step(self, steps: Iterable[int], stamps: Sequence[int | None]) -> int:
        """The middle one of the steps here; by the stated rate where no frame has a time."""
        known = [stamp for stamp in stamps if stamp is not None]
        found = sorted([*steps, *(b - a for a, b in pairwise(known) if b > a)])
        rate = self.stated or Fraction(FOLDER_FPS)
        return found[len(found) // 2] if found else max(1, round(1 / (rate * self.time_base)))

    def timed(self, frames: Iterable[av.VideoFrame]) -> Iterator[Timed]:
        """Decoded frames with their times; the last one lasts as long as it says, or a step."""
        before = step = None
        for frame, pts in self.ticks((frame, self.stamp(frame)) for frame in frames):
            if before is not None:
                step = pts - before[1]
                yield Timed(*before, step)
            before = frame, pts
        if before is not None:
            step, own = step or self._step((), ()), before[0].duration or 0
            believed = step / 2 <= own <= self._pause
            yield Timed(*before, own if believed else step)

    def pts(self, stamps: Sequence[int | None]) -> np.ndarray:
        """(n_frames,) int64: `ticks` of these stamps, at once where they simply grow."""
        if len(stamps) > _N_AHEAD and None not in stamps:
            steps = np.diff(np.asarray(stamps, np.int64))
            if steps.min() > 0 and steps.max() <= self._pause:
                lead = next(self.ticks((None, stamp) for stamp in stamps[: _N_AHEAD + 1]))[1]
                return np.cumsum([lead, *steps])
        ticks = self.ticks((None, stamp) for stamp in stamps)
        return np.array([pts for _, pts in ticks], np.int64)

    def seconds(self, stamps: Sequence[int | None]) -> np.ndarray:
        """(n_frames + 1,) seconds at which frames are shown, and the end of the last.

        At a constant rate they are the exact multiples of 1 / rate, which time bases only round.
        """
        pts, base = self.pts(stamps), float(self.time_base)
        if (even := self.even(pts)) is not None:
            return even
        return np.append(pts, pts[-1] + np.median(np.diff(pts[-_N_AHEAD:]))) * base

    def even(self, pts: np.ndarray) -> np.ndarray | None:
        """`seconds` at a constant rate; None if it varies by more than rounding."""
        if len(pts) == 0:
            return np.zeros(1)
        base = float(self.time_base)
        even = pts[0] * base + np.arange(len(pts) + 1) / float(self.rate(pts))
        return even if np.abs(pts * base - even[:-1]).max() <= 1.5 * base else None

    def rate(self, pts: Sequence[int] | np.ndarray) -> Fraction:
        """Frames over time span; exactly what the file states where the two agree."""
        stated = self.stated if self.stated and self.stated < _TICK_RATE else None
        if len(pts) < 2:
            return stated or Fraction(FOLDER_FPS)
        n_steps, span = len(pts) - 1, int(pts[-1] - pts[0]) * self.time_base
        if stated and abs(n_steps / stated - span) <= 1 / (2 * stated) + 2 * self.time_base:
            return stated
        return (n_steps / span).limit_denominator(1001)


class Undecoded(NamedTuple):
    """What a file's packets say of its frames, which costs no decoding."""

    rate: Fraction
    """Mean frames per second."""
    is_even: bool
    """Whether the rate is constant."""
    n_shown: int
    n_hidden: int
    """Packets of frames that are decoded for others and not shown, by an edit list."""
    n_announced: float
    problems: list[str]


def read_packets(path: Path | str) -> Undecoded:
    """Raises UnreadableMedia: it does not open or holds no video."""
    problems, stored, decoded, n_hidden, end = [], [], [], 0, 0
    with open_video(path) as container:
        clock = Clock(container)
        for packet in demux(container, path, problems):
            if packet.is_discard:
                n_hidden += 1
                continue
            stored.append(packet.pts)
            decoded.append(packet.dts)
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
        n_announced = announced_frames(container, len(stored), float(end * clock.time_base))
    shown = None if None in stored else display_order(stored)
    pts = clock.pts(decoded if shown is None else shown.tolist())
    is_even = clock.even(pts) is not None
    return Undecoded(clock.rate(pts), is_even, len(stored), n_hidden, n_announced, problems)


def display_order(stored: Sequence[int]) -> np.ndarray | None:
    """Times of frames as they are stored -> as they are shown; None where some run back: a decoder
    hands frames out in another order than that of their times."""
    times = np.asarray(stored, np.int64)
    places = np.argsort(times, kind="stable")
    is_near = np.abs(places - np.arange(len(places))) <= _MOST_REORDERED
    return times[places] if is_near.all() else None


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
