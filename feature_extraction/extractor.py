"""From clips to features: the networks' inference form, clips of several videos in one batch."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aux_code.artefacts import sha256
from aux_code.checkpoints import write_npy
from aux_code.inference import prepare_anonymizer, prepare_utility
from aux_code.layout import apply_per_frame
from aux_code.model_loaders import apply_anonymizer, noise_keys
from aux_code.progress import progress
from feature_extraction.clip_views import Clip
from feature_extraction.manifest import FeatureFolder
from feature_extraction.read_ahead import Failure, Item
from feature_extraction.readers import VideoEnd

log = logging.getLogger(__name__)

PIXELS_PER_CPU_PASS = 4 * 224 * 224
"""Of a pass of f_A on a CPU: four frames of the paper's size; more gain nothing (measured)."""

_PARTS = ("decode", "wait", "copy", "f_A", "f_T", "write")


class PassTimer:
    """Seconds of the parts of a pass, by the CPU's clock or by the GPU's, which never waits."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """Everything since the last mark belongs to `part`; parts may come again."""
        self._marks.append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """Part -> its seconds; on a GPU to be called after the pass has finished."""
        total: dict[str, float] = {}
        for (_, start), (part, end) in zip(self._marks, self._marks[1:]):
            seconds = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            total[part] = total.get(part, 0.0) + seconds
        return total

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class ClipEncoder:
    """f_A on every frame, then f_T on the clip, both in their form for inference.

    On a GPU a batch passes both at once: in fp32 the rest of its batch changes a feature by less
    than 1e-5. On a CPU no pass holds frames of two clips: a feature is the same bit for bit in any
    batch (unless `frames_per_pass` says otherwise). `seed` is of the noise of f_A, if it has any.
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
        self._transfers = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, media: Sequence[Path], clips: Sequence[Clip]) -> np.ndarray:
        """Clips and their videos' files (they seed noise) -> float32 (len(clips), n_crops, F)."""
        return self.launch(media, clips).wait().numpy()

    @torch.inference_mode()
    def launch(self, media: Sequence[Path], clips: Sequence[Clip]) -> "LaunchedPass":
        """As a call, but a GPU goes on computing while the caller prepares the next batch."""
        timer = PassTimer(self.device)
        views = self._to_device([clip.views for clip in clips])  # (B, V, T, 3, H, W)
        timer.mark("copy")
        flat = views.flatten(0, 1).transpose(1, 2)  # (B*V, 3, T, H, W)
        anonymized = self._anonymize(media, clips, flat)
        timer.mark("f_A")
        pieces = anonymized.split(1) if self.device.type == "cpu" else (anonymized,)
        features = torch.cat([self.utility.extract_features(piece).float() for piece in pieces])
        timer.mark("f_T")
        features = features.unflatten(0, views.shape[:2])  # (B, V, F)
        if self._transfers is None:
            return LaunchedPass(features, timer)
        # a copy that waited for its turn on the host would stand behind the next pass
        features, arrived = features.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return LaunchedPass(features, timer, arrived)

    def _to_device(self, views: list[Tensor]) -> Tensor:
        """In one piece; from the CPU to a GPU by a stream of its own, so that it receives one batch
        while it computes another."""
        if self._transfers is None or views[0].device.type == "cuda":
            return torch.stack(views).to(self.device)
        batch = torch.empty(len(views), *views[0].shape, dtype=views[0].dtype, pin_memory=True)
        torch.stack(views, out=batch)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._transfers):
            moved = batch.to(self.device, non_blocking=True)
        computing.wait_stream(self._transfers)
        moved.record_stream(computing)
        return moved

    def _anonymize(self, media: Sequence[Path], clips: Sequence[Clip], flat: Tensor) -> Tensor:
        """(B*V, 3, T, H, W) as released, the same shape; one by one where each has its boxes."""
        pairs = zip(media, clips, strict=True)
        views = [(medium, clip, v) for medium, clip in pairs for v in range(len(clip.views))]
        keys = (noise_keys(self.seed, m, clip.frame_indices, v) for m, clip, v in views)
        release = partial(apply_anonymizer, self.anonymizer, noise=chain.from_iterable(keys))
        if clips[0].boxes is None:
            n_frames = self.frames_per_pass or self._pass_length(flat)
            return apply_per_frame(release, flat, chunk=n_frames)
        released = [
            apply_per_frame(partial(release, boxes=clip.boxes[v]), view.unsqueeze(0), chunk=0)
            for (_, clip, v), view in zip(views, flat, strict=True)
        ]
        return torch.cat(released)

    def _pass_length(self, clips: Tensor) -> int:
        """On a CPU a divisor of a clip's length, on a GPU 0 (all)."""
        if self.device.type != "cpu":
            return 0
        n_frames, height, width = clips.shape[2:]
        fitting = max(1, PIXELS_PER_CPU_PASS // (height * width))
        return max(n for n in range(1, n_frames + 1) if n_frames % n == 0 and n <= fitting)


@dataclass(frozen=True)
class LaunchedPass:
    """A pass that a GPU may still be computing: its features (B, V, F) on the CPU, and timer."""

    features: Tensor
    timer: PassTimer
    arrived: torch.cuda.Event | None = None
    """When a GPU's features have come; None: they are there."""

    def wait(self) -> Tensor:
        """The features, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.features


class _VideoInWork:
    """Features of a video that is not complete yet, in one array that doubles.

    An array per clip, kept for hours, would split the memory between the networks' temporary
    tensors into pieces too small to be used again: it would grow without end.
    """

    def __init__(self):
        self.n_rows, self.end = 0, None
        self._rows = np.empty((0, 0, 0), np.float32)

    def put(self, index: int, feature: np.ndarray) -> None:
        """Takes the feature of one clip, float32 (n_crops, feature_dim); every clip comes once."""
        if index >= len(self._rows):
            rows = np.empty((max(64, 2 * index), *feature.shape), np.float32)
            rows[: len(self._rows)] = self._rows.reshape(len(self._rows), *feature.shape)
            self._rows = rows
        self._rows[index] = feature
        self.n_rows += 1

    def features(self) -> np.ndarray:
        """(n_clips, feature_dim), with several crops (n_clips, n_crops, feature_dim)."""
        rows = self._rows[: self.n_rows]
        return rows[:, 0] if rows.shape[1] == 1 else rows


@dataclass
class Extraction:
    """Extracts videos into a feature folder."""

    encoder: ClipEncoder
    folder: FeatureFolder
    n_clips_of: Callable[[int], int]
    """Number of features of a video of so many frames."""
    batch_size: int
    failed: dict[str, str] = field(default_factory=dict)
    """Video -> why."""
    n_clips: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    """So far: decode (in all threads, cropping included), wait (of the networks for clips), copy
    (batching and transfer), f_A, f_T, write."""
    _in_work: dict[str, _VideoInWork] = field(default_factory=dict)
    _batch: list[Item] = field(default_factory=list)
    _launched: tuple[list[Item], LaunchedPass] | None = None

    def run(self, items: Iterable[Item], n_videos: int) -> Iterator[tuple[int, float]]:
        """Extracts what `ReadAhead` yields; yields (clips so far, clips/s) every few seconds."""
        started = reported = waiting = time.monotonic()
        with progress(description="features", total=n_videos, unit="video") as bar:
            for item in items:
                self.seconds["wait"] += time.monotonic() - waiting
                self._take(item)
                if not isinstance(item.content, Clip):
                    bar.update()
                if time.monotonic() - reported > 10:
                    reported = time.monotonic()
                    rate = self.n_clips / (reported - started)
                    bar.set_postfix_str(f"{rate:.1f} clips/s")
                    yield self.n_clips, rate
                waiting = time.monotonic()
            self._encode()
            self._collect()
        seconds = max(time.monotonic() - started, 1e-9)
        parts = ", ".join(f"{part} {value:.1f} s" for part, value in self.seconds.items())
        text = "%d clips in %.1f s: %.1f clips/s (%s)"
        log.info(text, self.n_clips, seconds, self.n_clips / seconds, parts)

    def _take(self, item: Item) -> None:
        name = item.video.name
        self.seconds["decode"] += item.seconds
        work = self._in_work.setdefault(name, _VideoInWork())
        if isinstance(item.content, Failure):
            self._fail(name, item.content.reason)
        elif isinstance(item.content, VideoEnd):
            work.end = item
            self._finish_if_complete(name)
        else:
            self._batch.append(item)
            if len(self._batch) >= self.batch_size:
                self._encode()

    def _encode(self) -> None:
        """Starts the waiting clips' pass, then takes the last pass's features, on a CPU both."""
        batch, self._batch = self._batch, []
        if batch:
            media = [item.video.path for item in batch]
            launched = self.encoder.launch(media, [item.content for item in batch])
            self._collect()
            self._launched = batch, launched
            if launched.arrived is None:
                self._collect()

    def _collect(self) -> None:
        if self._launched is None:
            return
        (batch, launched), self._launched = self._launched, None
        features = launched.wait().numpy()
        for part, seconds in launched.timer.seconds().items():
            self.seconds[part] += seconds
        self.n_clips += len(batch)
        for item, feature in zip(batch, features, strict=True):
            if item.video.name in self._in_work:
                self._in_work[item.video.name].put(item.content.index, feature)
        for name in {item.video.name for item in batch}:
            self._finish_if_complete(name)

    def _finish_if_complete(self, name: str) -> None:
        work = self._in_work.get(name)
        if work is None or work.end is None:
            return
        end: VideoEnd = work.end.content
        if work.n_rows < self.n_clips_of(end.n_frames):
            return
        del self._in_work[name]
        features = work.features()
        if not np.isfinite(features).all():
            self._fail(name, "its features are not finite numbers: the networks' weights are wrong")
            return
        entry, started = {"file": f"{name}.npy", "n_clips": len(features)}, time.monotonic()
        entry |= {"n_frames": end.n_frames, "fps": end.fps, "status": end.status}
        path = self.folder.folder / entry["file"]
        write_npy(path, features)
        entry["sha256"] = sha256(path)
        self.folder.add_video(name, entry | {"source": work.end.source})
        self.seconds["write"] += time.monotonic() - started

    def _fail(self, name: str, reason: str) -> None:
        self._in_work.pop(name, None)
        self._batch = [item for item in self._batch if item.video.name != name]
        self.failed[name] = reason
        log.warning("%s failed: %s", name, reason)
        self.folder.add_failure(name, reason)
