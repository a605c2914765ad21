"""Videos as streams of clips in constant memory, by PyAV: only the frames that a clip shows are
converted to RGB."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from aux_code.datasets.decode import RgbConverter, frame_rate
from aux_code.datasets.image_files import IMAGE_SUFFIXES, frame_files, read_image
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_index import decoded_frames, open_video, stated_seconds
from feature_extraction.clip_views import ClipGeometry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceClip:
    """A clip as decoded.

    Attributes:
        index: its place in the video, from 0.
        frames: uint8 (T,H,W,3) RGB.
        frame_indices: (T,) which frames of the video they are.
    """

    index: int
    frames: np.ndarray
    frame_indices: np.ndarray


@dataclass(frozen=True)
class VideoEnd:
    """What is known of a video once it has been read. `status`: complete, or damaged: some is
    missing or broken."""

    n_frames: int
    fps: float
    status: str = "complete"


class LazyFrame:
    """A frame that becomes uint8 (H,W,3) when it is asked for; at most once."""

    def __init__(self, load):
        self._load = load
        self._rgb: np.ndarray | None = None

    def rgb(self) -> np.ndarray:
        if self._rgb is None:
            self._rgb, self._load = self._load(), None
        return self._rgb


@dataclass
class _OpenClip:
    index: int
    frames: list[np.ndarray]
    frame_indices: list[int]

    def take(self, frame: LazyFrame, frame_index: int) -> None:
        self.frames.append(frame.rgb())
        self.frame_indices.append(frame_index)

    def close(self) -> SourceClip:
        return SourceClip(self.index, np.stack(self.frames), np.array(self.frame_indices))


def clips_of(frames: Iterator[LazyFrame], geometry: ClipGeometry) -> Iterator[SourceClip]:
    """Cuts a stream of frames into clips, the same as `clip_sampling.consecutive_clips` without
    knowing the length.

    Clip k starts at frame k * frames_per_feature; a clip that the video leaves short is completed
    by its last frame.
    """
    open_clips: list[_OpenClip] = []
    last, n_frames = None, 0
    for last in frames:
        if n_frames % geometry.frames_per_feature == 0:
            open_clips.append(_OpenClip(n_frames // geometry.frames_per_feature, [], []))
        for clip in open_clips:
            if (n_frames - clip.index * geometry.frames_per_feature) % geometry.stride == 0:
                clip.take(last, n_frames)
        while open_clips and len(open_clips[0].frames) == geometry.frames_per_clip:
            yield open_clips.pop(0).close()
        n_frames += 1
    for clip in open_clips:
        while len(clip.frames) < geometry.frames_per_clip:
            clip.take(last, n_frames - 1)
        yield clip.close()


class FrameStream:
    """The frames of a video file, a folder of frames or an image, one after the other; then `end()`
    tells what came.

    Args:
        path: what to read.
        min_decoded_share: `end` refuses a video of which less than this share decoded.
    """

    def __init__(self, path: Path, min_decoded_share: float):
        self.path = path
        self.min_decoded_share = min_decoded_share
        self._n_frames = 0
        self._announced = 0.0
        self._fps = 0.0
        self._problems: list[str] = []

    def __iter__(self) -> Iterator[LazyFrame]:
        """Raises UnreadableMedia if the file does not open, is empty or holds no video."""
        frames = self._images() if self.path.is_dir() or self._is_image() else self._decoded()
        for frame in frames:
            self._n_frames += 1
            yield frame

    def end(self) -> VideoEnd:
        """To be called after the last frame.

        Raises:
            UnreadableMedia: nothing decoded, or too little of what the file announces.
        """
        if self._n_frames == 0:
            raise UnreadableMedia(self.path, "no frame of its video decodes")
        share = min(1.0, self._n_frames / max(self._announced, 1.0))
        if share < self.min_decoded_share:
            raise UnreadableMedia(
                self.path, f"only {share:.0%} of its {self._announced:.0f} frames decode"
            )
        # an announced frame or two that never come are common in sound files (edit lists, rounding
        # of durations)
        if self._announced - self._n_frames > max(2, 0.01 * self._announced):
            self._problems.append("it ends early")
        if self._problems:
            counts = f"{self._n_frames} of {max(self._announced, self._n_frames):.0f} announced frames decode"
            log.warning("%s: damaged: %s (%s)", self.path, "; ".join(self._problems), counts)
        return VideoEnd(
            self._n_frames, round(self._fps, 4), "damaged" if self._problems else "complete"
        )

    def _is_image(self) -> bool:
        return self.path.suffix.lower() in IMAGE_SUFFIXES

    def _images(self) -> Iterator[LazyFrame]:
        files = frame_files(self.path) if self.path.is_dir() else [self.path]
        self._announced, self._fps = len(files), frame_rate(self.path.parent)
        size = None
        for file in files:
            image = read_image(file)
            size = size or image.shape
            if image.shape != size:
                raise UnreadableMedia(
                    self.path, f"its frames differ in size: {size[:2]} and {image.shape[:2]}"
                )
            yield LazyFrame(lambda image=image: image)

    def _decoded(self) -> Iterator[LazyFrame]:
        convert = RgbConverter()
        with open_video(self.path) as container:
            stream = container.streams.video[0]
            self._fps = float(stream.average_rate or stream.guessed_rate or 0)
            n_frames = n_corrupt = end = 0
            for frame in decoded_frames(container, self.path, self._problems):
                n_frames, n_corrupt = n_frames + 1, n_corrupt + frame.is_corrupt
                end = max(end, (frame.pts or 0) + (frame.duration or 0))
                yield LazyFrame(lambda frame=frame: convert(frame))
            self._announced = announced_frames(container, n_frames, float(end * stream.time_base))
        if n_corrupt:
            self._problems.append(f"the decoder marks {n_corrupt} frames as damaged")


def announced_frames(
    container: av.container.InputContainer, n_frames: int, end_seconds: float
) -> float:
    """Frames that a file says it holds: its count; else what was read, scaled by the duration that
    it states.

    Not duration times rate: where frames come at irregular times, the rate that files state is that
    of some.

    Args:
        container: the file.
        n_frames: frames that were read.
        end_seconds: when the last of them ends.
    """
    frames = container.streams.video[0].frames
    if frames:
        return float(frames)
    duration = stated_seconds(container)
    return n_frames * duration / end_seconds if duration > end_seconds > 0 else float(n_frames)
