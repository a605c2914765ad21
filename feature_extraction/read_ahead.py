"""Videos read in threads, ahead of the networks."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aux_code.errors import UserError
from feature_extraction.clip_views import Clip
from feature_extraction.readers import Reader, VideoEnd
from feature_extraction.video_inputs import VideoInput, source_of


@dataclass(frozen=True)
class Failure:
    """Why a video could not be read."""

    reason: str


@dataclass(frozen=True)
class Item:
    """What a decoding thread hands over: a clip, the end or the failure of one video, the video's
    source as it was before it was read, and in how many seconds the content came."""

    video: VideoInput
    content: Clip | VideoEnd | Failure
    source: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class _Stopped(Exception):
    """The consumer has gone."""


class ReadAhead:
    """Reads videos in threads of its own, a video each, which run as long as its `with`.

    Iterating yields `Item`s, those of one video in order; an error of the program itself is raised
    in the consumer. `make_reader` makes the reader of a thread, in that thread, which computes
    alone: PyTorch's helpers would take the cores from the networks. `n_ahead` clips may wait.
    """

    def __init__(
        self,
        videos: Sequence[VideoInput],
        make_reader: Callable[[], Reader],
        n_threads: int,
        n_ahead: int,
    ):
        self._make_reader = make_reader
        self._items: queue.Queue = queue.Queue(maxsize=n_ahead)
        self._waiting = iter(tuple(videos))
        self._stop = threading.Event()
        self._started = threading.Barrier(n_threads + 1)
        self._threads = [
            threading.Thread(target=self._read_videos, daemon=True) for _ in range(n_threads)
        ]

    def __enter__(self) -> "ReadAhead":
        n_torch_threads = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        self._started.wait()
        # what other threads begin with is the last number that anyone set
        torch.set_num_threads(n_torch_threads)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def __iter__(self) -> Iterator[Item]:
        n_running = len(self._threads)
        while n_running:
            item = self._items.get()
            if item is None:
                n_running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    def _read_videos(self) -> None:
        """The body of a thread."""
        torch.get_num_threads()  # the first question is when a thread takes the common number over
        torch.set_num_threads(1)
        self._started.wait()
        try:
            reader = self._make_reader()
            for video in self._waiting:  # shared: every video goes to one thread
                for item in _items_of(reader, video):
                    self._put(item)
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            with contextlib.suppress(_Stopped):
                self._put(error)

    def _put(self, item: Item | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._items.put(item, timeout=0.2)
        raise _Stopped


def _items_of(reader: Reader, video: VideoInput) -> Iterator[Item]:
    started = time.perf_counter()
    try:
        source = source_of(video.path)
        for content in reader.read(video):
            yield Item(video, content, source, time.perf_counter() - started)
            started = time.perf_counter()
    except UserError as error:
        yield Item(video, Failure(str(error)))
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        yield Item(video, Failure(f"{video.path}: {reason}"))
