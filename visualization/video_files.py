"""Reading a video at full resolution and writing H.264 or FFV1, a few frames at a time."""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import Colorspace, VideoReformatter

from aux_code.datasets.decode import RgbConverter, iterate_frames
from aux_code.datasets.image_files import IMAGE_SUFFIXES, read_image
from aux_code.datasets.media_files import media_below, unique_names
from aux_code.datasets.transforms import EVALUATION
from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import (
    VIEW_TAG,
    Clock,
    decoded_frames,
    open_video,
    read_packets,
    video_stream,
    view_text,
)
from aux_code.errors import UserError
from aux_code.progress import progress

SUFFIXES = (".mp4", ".mkv", ".mov")
_UNSPECIFIED, _BT709, _LIMITED = 2, 1, 1
"""Matrix and range of colours by their numbers in H.264."""


class TimedFrame(NamedTuple):
    """uint8 (H,W,3) RGB, when it is shown and how long, in units of the source's `time_base`."""

    rgb: np.ndarray
    pts: int
    duration: int = 1


class VideoSource:
    """Frames of a file, a folder of frames or an image, with their times.

    Attributes:
        rate: mean frames per second; is_even: whether it is constant.
        time_base: seconds per unit of time.
        n_announced: number of frames that the source seems to have, None if it cannot say.
        pixel_aspect: width of a pixel by its height, upright; known once the first frame is there.
        colours: (primaries, transfer) by their numbers in H.264; None if the file does not say.
    """

    def __init__(self, path: Path, folder_rate: Fraction):
        """Raises UnreadableMedia if there is no video."""
        self.path, self.rate, self.time_base = path, folder_rate, 1 / folder_rate
        self.n_announced, self.pixel_aspect, self.colours = None, Fraction(1), None
        self.is_even = True
        self._is_video = not path.is_dir() and path.suffix.lower() not in IMAGE_SUFFIXES
        if not self._is_video:
            return
        with open_video(path) as container:
            self.time_base = Clock(container).time_base
            codec = video_stream(container).codec_context
            if codec.colorspace != _UNSPECIFIED:
                self.colours = (codec.color_primaries, codec.color_trc)
        packets = read_packets(path)
        self.rate, self.n_announced = packets.rate, packets.n_shown or None
        self.is_even = packets.is_even

    def __iter__(self) -> Iterator[TimedFrame]:
        if not self._is_video:
            images = iterate_frames(self.path) if self.path.is_dir() else [read_image(self.path)]
            yield from (TimedFrame(image, i) for i, image in enumerate(images))
            return
        convert, timed = RgbConverter(), None
        with open_video(self.path) as container:
            aspect = video_stream(container).sample_aspect_ratio or Fraction(1)
            for timed in Clock(container).timed(decoded_frames(container, self.path)):
                self.pixel_aspect = 1 / aspect if timed.frame.rotation % 180 else aspect
                yield TimedFrame(convert(timed.frame), timed.pts, timed.duration)
        if timed is None:
            raise UnreadableMedia(self.path, "no frame of its video decodes")


class VideoWriter:
    """Writes at the source's rate, under a temporary name until it is whole.

    Args:
        path: of the copy.
        source: whose times, aspect and colours it gets.
        crf: quality of H.264, whose colours are per 2 x 2 pixels: odd heights or widths get a
            repeated row or column. None: FFV1, bit for bit.
        view_size: of frames that are stage 3's, which the metadata then say; 0: of others.
    """

    def __init__(self, path: Path, source: VideoSource, crf: int | None, view_size: int = 0):
        if crf is None and path.suffix.lower() != ".mkv":
            raise UserError(f"{path}: the name of a lossless copy must end in .mkv")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: the name must end in one of {' '.join(SUFFIXES)}")
        if crf is not None and not 0 <= crf <= 51:
            raise UserError(f"--crf must lie in 0 to 51, not {crf}")
        self.path, self._source, self._crf, self._view_size = path, source, crf, view_size
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self._stream, self._reformatter = None, VideoReformatter()

    def __enter__(self) -> "VideoWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._temporary), "w")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        return self

    def write(self, rgb: np.ndarray, pts: int, duration: int) -> None:
        """Appends uint8 (H,W,3), shown from time `pts` on for `duration`."""
        height, width = rgb.shape[:2]
        if self._crf is not None and (height % 2 or width % 2):
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        stream = self._stream or self._open_stream(rgb)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self._crf is not None and self._source.colours:
            bt709 = {"format": "yuv420p", "dst_colorspace": Colorspace.ITU709}
            frame = self._reformatter.reformat(frame, **bt709)
        frame.pts, frame.duration, frame.time_base = pts, duration, self._source.time_base
        self._container.mux(stream.encode(frame))

    def _open_stream(self, rgb: np.ndarray) -> av.video.stream.VideoStream:
        if self._crf is None:  # every frame a key frame, so that one finds any of them
            kind, pixels, options = "ffv1", "bgr0", {"level": "3", "g": "1"}
        else:
            kind, pixels, options = "libx264", "yuv420p", {"crf": str(self._crf)}
            # MP4 adds decoding times up: with B-frames at a varying rate its length is another
            options |= {} if self._source.is_even else {"bf": "0"}
        stream = self._container.add_stream(kind, rate=self._source.rate, options=options)
        stream.height, stream.width = rgb.shape[:2]
        stream.pix_fmt, codec = pixels, stream.codec_context
        codec.time_base = self._source.time_base
        if not self._source.is_even:  # frames last as long as they say, the last one too
            codec.flags |= Flags.frame_duration
        if self._view_size:
            view = view_text(EVALUATION.crop_factor[0], self._view_size)
            self._container.metadata[VIEW_TAG] = view
        else:
            codec.sample_aspect_ratio = self._source.pixel_aspect
        if self._crf is not None and self._source.colours:
            # without these a player guesses by the height of the frames
            codec.color_primaries, codec.color_trc = self._source.colours
            codec.colorspace, codec.color_range = _BT709, _LIMITED
        self._stream = stream
        return stream

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        except OSError as error:
            text = f"cannot write {self.path}: {error.strerror}; free space or name another folder"
            raise UserError(text) from error
        finally:
            self._temporary.unlink(missing_ok=True)


def planned_copies(source: Path, target: Path, suffix: str = ".mp4") -> list[tuple[Path, Path]]:
    """(original, copy) pairs: one for a video, an image or a folder of frames; for a folder of
    such, each of them to the same place below `target`, with this suffix.

    Raises:
        UserError: a copy would replace an original, or `target` is a file where many are written.
    """
    media = media_below(source) if source.is_dir() else [source]
    pairs = [(source, target)]
    if media and media != [source]:
        if target.suffix.lower() in SUFFIXES or target.is_file():
            raise UserError(f"{source} holds videos: give a folder for the copies, not {target}")
        stems = [path if path.is_dir() else path.with_suffix("") for path in media]
        below = [[str(p.relative_to(source)) for p in both] for both in zip(stems, media)]
        names = unique_names(below)
        pairs = [(path, target / f"{name}{suffix}") for path, name in zip(media, names)]
    existing = [copy for _, copy in pairs if copy.exists()]
    originals = {original.resolve() for original, _ in pairs} if existing else ()
    for copy in existing:
        if copy.resolve() in originals:
            raise UserError(f"{copy}: the copy would replace the original; choose another name")
    return pairs


Change = Callable[[np.ndarray, int], np.ndarray]
"""uint8 (N,H,W,3) and the number of the first frame -> the same shape."""


def anonymized_copy(
    source: VideoSource, anonymize: Change, writer: VideoWriter, per_pass: int, side_by_side: bool
) -> int:
    """Copies all frames, the original to the left if `side_by_side`; returns their number."""
    n_frames, frames = 0, iter(source)
    with progress(description="anonymizing", total=source.n_announced, unit="frame") as bar:
        while group := list(islice(frames, per_pass)):
            originals = np.stack([frame.rgb for frame in group])
            anonymized = anonymize(originals, n_frames)
            if side_by_side:
                anonymized = np.concatenate([originals, anonymized], axis=2)  # (N, H, 2 W, 3)
            for frame, written in zip(group, anonymized, strict=True):
                writer.write(written, frame.pts, frame.duration)
            n_frames += len(group)
            bar.update(len(group))
    return n_frames
