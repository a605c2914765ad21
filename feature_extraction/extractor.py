"""From clips to features: networks in their form for inference, clips of several videos in one batch."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.checkpoints import write_npy
from aux_code.errors import UserError
from aux_code.inference import prepare_anonymizer, prepare_utility
from aux_code.layout import apply_per_frame
from aux_code.model_loaders import apply_anonymizer
from aux_code.progress import progress
from aux_code.runs import seeded_generator
from feature_extraction.frame_stream import VideoEnd
from feature_extraction.manifest import FeatureFolder
from feature_extraction.pass_timer import PassTimer
from feature_extraction.readers import Clip, Reader
from feature_extraction.video_inputs import VideoInput

log = logging.getLogger(__name__)

PIXELS_PER_CPU_PASS = 4 * 224 * 224
"""Pixels of a pass of f_A on a CPU: four frames of the paper's size; more gain nothing and take memory (measured)."""

PARTS = ("decode", "wait", "copy", "f_A", "f_T", "write")


@dataclass(frozen=True)
class Failure:
    """Why a video could not be read."""

    reason: str


@dataclass(frozen=True)
class Item:
    """What a decoding thread hands over: a clip, the end or the failure of one video; in how many seconds it came."""

    video: VideoInput
    content: Clip | VideoEnd | Failure
    seconds: float = 0.0


class ClipEncoder:
    """f_A on every frame, then f_T on the clip, both in their form for inference (`prepare_for_inference`).

    A batch passes f_T at once; f_A takes it whole on a GPU, and in pieces on a CPU, where larger ones gain nothing. In
    fp32 a feature depends on the rest of its batch by rounding alone: relative differences stay below 1e-5.

    Args:
        anonymizer: f_A as `load_anonymizer` gives it.
        utility: f_T as `load_utility` gives it.
        device: where both run.
        precision: fp32 or bf16.
        frames_per_pass: frames of one pass of f_A; 0: as many as the device does best with.
        seed: of the noise of an f_A that releases some.
    """

    def __init__(
        self,
        anonymizer: nn.Module,
        utility: nn.Module,
        device: torch.device,
        precision: str = "fp32",
        frames_per_pass: int = 0,
        seed: int = 0,
    ):
        self.anonymizer = prepare_anonymizer(anonymizer, device, precision)
        self.utility = prepare_utility(utility, device, precision)
        self.device, self.frames_per_pass, self.seed = device, frames_per_pass, seed
        modules = self.anonymizer.modules()
        self._noisy = [m for m in modules if hasattr(m, "set_noise_generator") and m.output_noise > 0]
        self._transfers = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, names: Sequence[str], clips: Sequence[Clip]) -> np.ndarray:
        """Features of clips, all with the same number of crops.

        Args:
            names: the video of each clip; with the clip's index it seeds the noise, so that a feature does not depend
                on what else is in the batch.
            clips: the clips.

        Returns:
            float32 (len(clips), n_crops, feature_dim).
        """
        return self.launch(names, clips).wait().features

    @torch.inference_mode()
    def launch(self, names: Sequence[str], clips: Sequence[Clip]) -> "LaunchedPass":
        """As a call, but a GPU goes on computing while the caller prepares the next batch."""
        timer = PassTimer(self.device)
        views = self._to_device(torch.stack([clip.views for clip in clips]))
        timer.mark("copy")
        flat = views.flatten(0, 1).transpose(1, 2)
        sources = [(name, clip, v) for name, clip in zip(names, clips, strict=True) for v in range(views.shape[1])]
        anonymized = self._anonymize(sources, flat)
        timer.mark("f_A")
        features = self.utility.extract_features(anonymized).float()
        timer.mark("f_T")
        return LaunchedPass(features.unflatten(0, views.shape[:2]), timer)

    def _to_device(self, views: Tensor) -> Tensor:
        """By a stream of its own, so that a GPU receives one batch while it computes another."""
        if self._transfers is None or views.device.type == "cuda":
            return views.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._transfers):
            moved = views.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(self._transfers)
        moved.record_stream(computing)
        return moved

    def _anonymize(self, sources: Sequence[tuple[str, Clip, int]], clips: Tensor) -> Tensor:
        """(video, clip, view) of each, (B,3,T,H,W) -> (B,3,T,H,W); one by one where each has its boxes or its noise."""
        if not self._noisy and sources[0][1].boxes is None:
            return apply_per_frame(self.anonymizer, clips, chunk=self.frames_per_pass or self._frames_that_fit(clips))
        outputs = []
        for (name, clip, v), view in zip(sources, clips, strict=True):
            for module in self._noisy:
                module.set_noise_generator(seeded_generator(self.seed, "noise", name, clip.index, v))
            boxes = clip.boxes[v] if clip.boxes is not None else None
            anonymize = partial(apply_anonymizer, self.anonymizer, boxes=boxes)
            outputs.append(apply_per_frame(anonymize, view.unsqueeze(0), chunk=0))  # boxes and noise are the clip's
        return torch.cat(outputs)

    def _frames_that_fit(self, clips: Tensor) -> int:
        if self.device.type != "cpu":
            return 0
        return max(1, PIXELS_PER_CPU_PASS // (clips.shape[-2] * clips.shape[-1]))


class Encoded(NamedTuple):
    """Features, float32 (len(clips), n_crops, feature_dim), and the seconds of each part of the pass."""

    features: np.ndarray
    seconds: dict[str, float]


@dataclass(frozen=True)
class LaunchedPass:
    """A pass that a GPU may still be computing. `features`: on the device; `timer`: of its parts."""

    features: Tensor
    timer: PassTimer

    def wait(self) -> Encoded:
        """The finished features."""
        features = self.features.cpu().numpy()
        return Encoded(features, self.timer.seconds())


def read_ahead(
    videos: Sequence[VideoInput], make_reader: Callable[[], Reader], n_threads: int, n_ahead: int
) -> Iterator[Item]:
    """Reads videos in `n_threads` threads, one video each at a time, at most `n_ahead` clips ahead of the consumer.

    A video that does not decode yields a Failure; an error of the program itself is raised here.
    """
    items: queue.Queue = queue.Queue(maxsize=n_ahead)
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for video in videos:
        waiting.put(video)
    stop = threading.Event()
    arguments = (waiting, make_reader, items, stop)
    threads = [threading.Thread(target=_read_videos, args=arguments, daemon=True) for _ in range(max(1, n_threads))]
    for thread in threads:
        thread.start()
    n_running = len(threads)
    try:
        while n_running:
            item = items.get()
            if item is None:
                n_running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)


def _read_videos(
    waiting: queue.SimpleQueue, make_reader: Callable[[], Reader], items: queue.Queue, stop: threading.Event
) -> None:
    """The body of a decoding thread."""
    try:
        reader = make_reader()
        while not stop.is_set():
            try:
                video = waiting.get_nowait()
            except queue.Empty:
                break
            started = time.perf_counter()
            for content in _contents(reader, video):
                _put(items, Item(video, content, time.perf_counter() - started), stop)
                started = time.perf_counter()
        _put(items, None, stop)
    except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
        _put(items, error, stop)


def _contents(reader: Reader, video: VideoInput) -> Iterator[Clip | VideoEnd | Failure]:
    try:
        yield from reader.read(video)
    except UserError as error:
        yield Failure(str(error))
    except (OSError, MemoryError) as error:
        yield Failure(f"{video.path}: {error or type(error).__name__}")


def _put(items: queue.Queue, item: object, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            items.put(item, timeout=0.2)
            return
        except queue.Full:
            continue


@dataclass
class _VideoInWork:
    """Features of a video that is not complete yet."""

    rows: dict[int, np.ndarray] = field(default_factory=dict)
    end: VideoEnd | None = None


@dataclass
class Extraction:
    """Extracts videos into a feature folder.

    Attributes:
        encoder: the networks.
        folder: where features go.
        n_clips_of: number of features of a video of so many frames.
        batch_size: clips per batch.
        report: called with (clips so far, clips per second) every few seconds.
        failed: video -> why.
        n_clips: clips done.
        seconds: part -> its seconds so far: decode (in all decoding threads, cropping included), wait (of the networks
            for clips), copy (batching and transfer), f_A, f_T, write.
    """

    encoder: ClipEncoder
    folder: FeatureFolder
    n_clips_of: Callable[[int], int]
    batch_size: int
    report: Callable[[int, float], None]
    failed: dict[str, str] = field(default_factory=dict)
    n_clips: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    _in_work: dict[str, _VideoInWork] = field(default_factory=dict)
    _batch: list[tuple[VideoInput, Clip]] = field(default_factory=list)
    _launched: tuple[list[tuple[VideoInput, Clip]], LaunchedPass] | None = None

    def run(self, items: Iterator[Item], n_videos: int) -> None:
        """Takes everything that `read_ahead` yields; a video's file is written as soon as its last feature is there."""
        started = reported = waiting = time.monotonic()
        with progress(description="features", total=n_videos, unit="video") as bar:
            for item in items:
                self.seconds["wait"] += time.monotonic() - waiting
                self._take(item)
                if isinstance(item.content, VideoEnd | Failure):
                    bar.update()
                if time.monotonic() - reported > 10:
                    reported = time.monotonic()
                    rate = self.n_clips / (reported - started)
                    bar.set_postfix_str(f"{rate:.1f} clips/s")
                    self.report(self.n_clips, rate)
                waiting = time.monotonic()
            self._encode()
            self._collect()
        seconds = max(time.monotonic() - started, 1e-9)
        parts = ", ".join(f"{part} {value:.1f} s" for part, value in self.seconds.items())
        log.info("%d clips in %.1f s: %.1f clips/s (%s)", self.n_clips, seconds, self.n_clips / seconds, parts)

    def _take(self, item: Item) -> None:
        name, content = item.video.name, item.content
        self.seconds["decode"] += item.seconds
        work = self._in_work.setdefault(name, _VideoInWork())
        if isinstance(content, Failure):
            self._fail(name, content.reason)
        elif isinstance(content, VideoEnd):
            work.end = content
            self._finish_if_complete(name)
        else:
            self._batch.append((item.video, content))
            if len(self._batch) >= self.batch_size:
                self._encode()

    def _encode(self) -> None:
        """Starts the waiting clips' pass, then takes the features of the pass before."""
        batch, self._batch = self._batch, []
        if batch:
            launched = self.encoder.launch([video.name for video, _ in batch], [clip for _, clip in batch])
            self._collect()
            self._launched = batch, launched

    def _collect(self) -> None:
        if self._launched is None:
            return
        (batch, launched), self._launched = self._launched, None
        encoded = launched.wait()
        for part, seconds in encoded.seconds.items():
            self.seconds[part] += seconds
        self.n_clips += len(batch)
        for (video, clip), feature in zip(batch, encoded.features, strict=True):
            if video.name in self._in_work:
                self._in_work[video.name].rows[clip.index] = feature
        for name in {video.name for video, _ in batch}:
            self._finish_if_complete(name)

    def _finish_if_complete(self, name: str) -> None:
        work = self._in_work.get(name)
        if work is None or work.end is None or len(work.rows) < self.n_clips_of(work.end.n_frames):
            return
        del self._in_work[name]
        rows = [work.rows[k] for k in range(len(work.rows))]
        features = np.empty((len(rows), *rows[0].shape), dtype=np.float32)
        np.stack(rows, out=features)
        features = features[:, 0] if features.shape[1] == 1 else features
        if not np.isfinite(features).all():
            self._fail(name, "its features are not finite numbers; the networks' weights are at fault")
            return
        file, end, started = f"{name}.npy", work.end, time.monotonic()
        write_npy(self.folder.folder / file, features)
        entry = {"file": file, "n_frames": end.n_frames, "n_clips": len(rows), "fps": end.fps, "status": end.status}
        self.folder.add_video(name, entry)
        self.seconds["write"] += time.monotonic() - started

    def _fail(self, name: str, reason: str) -> None:
        self._in_work.pop(name, None)
        self._batch = [(video, clip) for video, clip in self._batch if video.name != name]
        self.failed[name] = reason
        log.warning("%s failed: %s", name, reason)
        self.folder.add_failure(name, reason)


def remove_partial_files(folder: Path) -> None:
    """Removes temporary files of writes that a kill interrupted more than an hour ago; younger ones may be in use."""
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)
