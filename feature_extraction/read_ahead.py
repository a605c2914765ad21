"""Videos read in threads, ahead of the networks."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from aux_code.errors import UserError
from feature_extraction.clip_views import Clip
from feature_extraction.frame_stream import VideoEnd
from feature_extraction.readers import Reader
from feature_extraction.video_inputs import VideoInput


@dataclass(frozen=True)
class Failure:
    """Why a video could not be read."""

    reason: str


@dataclass(frozen=True)
class Item:
    """What a decoding thread hands over: a clip, the end or the failure of one video; in how many
    seconds it came."""

    video: VideoInput
    content: Clip | VideoEnd | Failure
    seconds: float = 0.0


class ReadAhead:
    """Reads videos in threads of its own, which start where its `with` begins and stop where it
    ends.

    Iterating yields `Item`s, those of one video in order. A video that does not decode yields a
    Failure; an error of the program itself is raised in the consumer. Each thread computes with
    itself alone: PyTorch would give it helpers of its own, which take the cores from the networks.

    Args:
        videos: what to read.
        make_reader: makes the reader of a thread, in that thread.
        n_threads: threads, a video each at a time.
        n_ahead: clips that may wait for the consumer.
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
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        for video in videos:
            self._waiting.put(video)
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
        torch.set_num_threads(
            n_torch_threads
        )  # what other threads begin with: it is the last number that anyone set
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
            while not self._stop.is_set():
                try:
                    video = self._waiting.get_nowait()
                except queue.Empty:
                    break
                started = time.perf_counter()
                for content in _contents(reader, video):
                    self._put(Item(video, content, time.perf_counter() - started))
                    started = time.perf_counter()
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            self._put(error)

    def _put(self, item: Item | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


def _contents(reader: Reader, video: VideoInput) -> Iterator[Clip | VideoEnd | Failure]:
    try:
        yield from reader.read(video)
    except UserError as error:
        yield Failure(str(error))
    except (OSError, MemoryError) as error:
        yield Failure(f"{video.path}: {error or type(error).__name__}")
