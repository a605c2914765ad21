"""What the benchmarks share: options, machine and ceiling, turns, processes, a video, JSON."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

THREADS = (0, "threads of all sides; 0: PyTorch's default")
"""The option --threads for `parse_options`."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse_options(
    description: str, argv: list[str] | None, options: Mapping[str, tuple[Any, str]]
) -> argparse.Namespace:
    """--NAME of each name -> (default, help); --threads is set at once.

    Of a tuple some of its names are taken, by default all; of a list any integers; a bool is
    switched off by --no-NAME.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, (default, text) in options.items():
        kind: dict[str, Any] = {"type": type(default)}
        if isinstance(default, tuple):
            kind = {"nargs": "+", "choices": default, "metavar": name.upper().rstrip("S")}
        elif isinstance(default, list):
            kind = {"nargs": "+", "type": int}
        elif isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        value = list(default) if isinstance(default, tuple) else default
        parser.add_argument(f"--{name}", default=value, help=text, **kind)
    parsed = parser.parse_args(argv)
    if getattr(parsed, "threads", 0):
        torch.set_num_threads(parsed.threads)
    return parsed


def describe_machine() -> str:
    """Processor, cores and threads, vector extensions and torch version, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    extensions = ", ".join(known) or "no vector extensions known"
    return f"{processor}, {threads}, {extensions}, torch {torch.__version__}"


def seconds_of(function: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds_in_turns(
    measures: Mapping[str, Callable[[], float]], n_rounds: int
) -> dict[str, list[float]]:
    """Name -> `n_rounds` durations; each round takes every measure once, in alternating order.

    So all of them see the same machine. A measure does its work once and returns its seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for i in range(n_rounds):
        for name in list(measures)[:: -1 if i % 2 else 1]:
            seconds[name].append(measures[name]())
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each list of durations."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def median_seconds(function: Callable[[], object], n_rounds: int) -> float:
    """Median duration of a call."""
    return statistics.median(seconds_of(function) for _ in range(n_rounds))


class MatrixProduct:
    """The machine's ceiling: a square matrix product of `size` rows; a call returns its seconds.

    On a CPU 2048 rows are enough for the libraries to reach their best.
    """

    def __init__(self, dtype: torch.dtype, size: int = 2048, device: str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = torch.rand(2, size, size, generator=generator).to(device, dtype)
        self.output = torch.empty_like(self.left)
        self.gflop = 2 * size**3 / 1e9
        self()

    def __call__(self) -> float:
        return seconds_of(self._multiply)

    def _multiply(self) -> None:
        torch.mm(self.left, self.right, out=self.output)
        if self.output.is_cuda:
            torch.cuda.synchronize()


def peak_mib() -> float:
    """Highest resident memory of this process so far, what its libraries map included.

    Linux's `VmHWM` where there is one: `ru_maxrss` is never below what the parent had at the start.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


class ChildProcess:
    """Measures in a process of their own: another allocator, memory counted apart.

    A context manager; `call` waits for the answer, so that the two never compute at once.

    Args:
        build: called in the child with the pickled arguments; returns name -> function without any.
    """

    def __init__(self, build: Callable[..., Mapping[str, Callable[[], object]]], *arguments):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        served = (theirs, torch.get_num_threads(), build, arguments)
        self._process = context.Process(target=_serve, args=served, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipe.close()  # ends the child's loop
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()

    def call(self, name: str) -> object:
        """What the child's function of that name returns.

        Raises:
            RuntimeError: the child ended; its own traceback is on stderr.
        """
        try:
            self._pipe.send(name)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise RuntimeError(f"the child process ended during '{name}'; see above") from error


def _serve(pipe, n_threads: int, build: Callable, arguments: tuple) -> None:
    """The child's loop: a name comes, the result of the function goes back."""
    torch.set_num_threads(n_threads)
    functions = build(*arguments)
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        pipe.send(functions[name]())


@contextmanager
def children(builds: Mapping[str, tuple[Callable, ...]]):
    """Name -> ChildProcess of each name -> (build, *arguments), all of them ended at the end."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(ChildProcess(*build)) for name, build in builds.items()}


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    bit_rate: int = 0,
    **options: str,
) -> Path:
    """Encodes uint8 (H, W, 3) RGB frames, 25 per second; `options` are the encoder's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if bit_rate:
            stream.bit_rate = bit_rate
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def json_line(benchmark: str, ratios: Mapping[str, float], figures: Mapping[str, float]) -> str:
    """The last line of every benchmark; `ratios`: times faster (or smaller) than plain."""
    return json.dumps({"benchmark": benchmark, "ratios": dict(ratios), "figures": dict(figures)})
