"""Feature extraction from video files to feature files, full-size networks at 224: our script
against a plain loop.

The plain side is `plain_extraction.py`: one clip per batch, eager fp32, decode then compute, the
default allocator, a process of its own. Ours is the whole of `dali_extraction.py` in fp32 and in
bf16, a process each. All of them do everything from reading the checkpoint to the last feature
file; only the start of the interpreter and the imports, the same for all, are outside. They take
turns, in alternating order; figures are medians. Videos are H.264, 320 x 240, made here; weights
are random. Where the device has no bf16 those figures are fp32 too (a warning says so).

The plain loop's frames are contiguous, as torchvision's `to_tensor` makes them; with
--plain_channels_last a loop that only permutes them is measured too, whose eager convolutions are
faster.

The profile sums seconds over a run: decode (in all decoding threads, while the networks compute, so
it adds nothing until `wait` does), wait (of the networks for clips), copy (into batches), f_A, f_T,
write; start is the rest: reading and preparing the networks. The ceiling is a square matrix
product, measured in the same rounds. On a busy machine trust the ratio of CPU seconds, with
--threads 1.

On a CPU the reader is pyav. On a GPU (the default where there is one) it is dali, with NVDEC; bf16
runs with pyav too, decoding on the CPU, and nvidia-smi says how busy the GPU and its decoders were.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    # works in an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch

from aux_code import config
from aux_code.checkpoints import save_checkpoint
from aux_code.devices import choose_device
from aux_code.model_loaders import load_fa_model, load_ft_model
from aux_code.runs import start_run
from benchmarks.gpu_monitor import GpuMonitor
from benchmarks.machine import (
    ChildProcess,
    MatrixProduct,
    describe_machine,
    json_line,
    medians,
    peak_mib,
    rounds_in_turns,
)
from benchmarks.machine import seconds_of as timed
from benchmarks.model_costs import Case, gflop
from benchmarks.plain_extraction import extract_plainly
from feature_extraction.dali_extraction import extract
from feature_extraction.params_feature_extraction import FeatureExtractionParams
from feature_extraction.readers import resolve_reader

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def write_videos(folder: Path, n_videos: int, n_clips: int) -> list[Path]:
    """H.264 videos, 320 x 240, 25 frames per second: a noisy background on which a square moves."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    paths = [folder / f"video{i}.mp4" for i in range(n_videos)]
    for path in paths:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for t in range(32 * n_clips):
                frame = background.copy()
                frame[80:160, 2 * t % 240 : 2 * t % 240 + 80] = 255 - t % 200
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return paths


def write_checkpoint(path: Path, fa_arch: str = "unet++", ft_arch: str = "largei3d") -> Path:
    """f_A and f_T with random weights."""
    torch.manual_seed(0)
    fa, ft = load_fa_model(fa_arch), load_ft_model(ft_arch)
    states = {"fa_model_state_dict": fa.state_dict(), "ft_model_state_dict": ft.state_dict()}
    meta = {"architectures": {"fa": fa.architecture, "ft": ft.architecture}}
    save_checkpoint(path, {**states, "meta": meta})
    return path


class Run:
    """Does the work, returns its seconds and keeps the CPU time of each.

    The latter leaves out the time in which other programs had the machine; for one thread it
    compares the sides even on a busy one.
    """

    def __init__(self, work: Callable[[], object]):
        self.work = work
        self.processor_seconds: list[float] = []

    def __call__(self) -> float:
        start = time.process_time()
        seconds = timed(self.work)
        self.processor_seconds.append(time.process_time() - start)
        return seconds

    def measures(self) -> dict[str, Callable[[], object]]:
        """What a child process serves: one run, median CPU seconds so far, peak memory."""
        median = statistics.median
        return {
            "run": self,
            "processor": lambda: median(self.processor_seconds),
            "peak": peak_mib,
        }


def plain_side(arguments: tuple, output: Path) -> dict[str, Callable[[], object]]:
    """The process of a plain loop."""
    output.mkdir()
    videos, checkpoint, *others = arguments
    return Run(lambda: extract_plainly(videos, checkpoint, output, *others)).measures()


def our_side(
    params: FeatureExtractionParams, folder: Path, name: str
) -> dict[str, Callable[[], object]]:
    """The process of one of our sides: every run extracts into a fresh folder."""
    config.SAVED_MODELS_ROOT = config.LOGS_ROOT = folder / "runs"
    profiles: list[dict[str, float]] = []
    utilisation: list[dict[str, float]] = []

    def work() -> None:
        chosen = replace(params, output=str(folder / f"{name}_{len(profiles)}"))
        monitor = GpuMonitor() if params.device == "cuda" else nullcontext()
        with monitor:
            outcome = extract(chosen, start_run(chosen, "benchmark"))
        if outcome.failed:
            raise RuntimeError(f"not extracted: {outcome.failed}")
        profiles.append(outcome.extraction.seconds)
        utilisation.append(getattr(monitor, "means", {}))

    more = {"profile": profiles, "utilisation": utilisation}
    return Run(work).measures() | {key: partial(by_part, runs) for key, runs in more.items()}


def by_part(runs: list[dict[str, float]]) -> dict[str, float]:
    """Median of each part over the runs."""
    return medians({part: [run[part] for run in runs] for part in runs[0]})


def agreement(folder: Path, precision: str) -> float:
    """Lowest cosine of our features with the plain loop's."""
    cosines = []
    for path in sorted((folder / "plain").glob("*.npy")):
        plain, ours = np.load(path), np.load(folder / f"{precision}_0" / path.name)
        norms = np.linalg.norm(plain, axis=1) * np.linalg.norm(ours, axis=1)
        cosines.append(((plain * ours).sum(1) / norms).min())
    return float(min(cosines))


def options_of(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {
        "videos": (0, "number of videos; 0: 4 on a CPU, 32 on a GPU"),
        "clips": (0, "clips (32 frames) per video; 0: 12 on a CPU, 64 on a GPU"),
        "size": (224, "height and width that the networks see, in pixels"),
        "rounds": (2, "rounds that count"),
        "product": (0, "rows of the ceiling's matrices; 0: by device"),
        "threads": (0, "threads of all sides; 0: PyTorch's default"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    devices = ("auto", "cpu", "cuda")
    parser.add_argument("--device", choices=devices, default="auto", help="where the networks run")
    parser.add_argument(
        "--plain_channels_last", action="store_true", help="another plain loop, see above"
    )
    options = parser.parse_args(argv)
    options.device = choose_device(options.device).type
    on_gpu = options.device == "cuda"
    options.videos = options.videos or (32 if on_gpu else 4)
    options.clips = options.clips or (64 if on_gpu else 12)
    options.product = options.product or (8192 if on_gpu else 2048)
    return options


def main(argv: list[str] | None = None) -> int:
    """Times the sides in turns, prints the profile and ends with one line of JSON."""
    options = options_of(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    n_clips = options.videos * options.clips
    gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    sizes = f"{n_clips} clips, {options.size} x {options.size}, {options.rounds} rounds"
    print(f"{describe_machine()}{gpu}; {sizes}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = write_videos(folder / "videos", options.videos, options.clips)
        checkpoint = write_checkpoint(folder / "networks.pth")
        sides = start_sides(folder, videos, checkpoint, options)
        try:
            report(sides, folder, options, n_clips)
        finally:
            for side in sides.values():
                side.__exit__()
    return 0


def start_sides(
    folder: Path, videos: list[Path], checkpoint: Path, options: argparse.Namespace
) -> dict[str, ChildProcess]:
    """plain, fp32, bf16 and the optional ones -> a process that waits for its turn."""
    plain = {"plain": (videos, checkpoint, options.size, options.device)}
    if options.plain_channels_last:
        plain["plain_channels_last"] = (*plain["plain"], torch.channels_last)
    sides = {name: ChildProcess(plain_side, part, folder / name) for name, part in plain.items()}
    reader = resolve_reader("auto") if options.device == "cuda" else "pyav"
    ours = {"fp32": reader, "bf16": reader} | ({"bf16_pyav": "pyav"} if reader == "dali" else {})
    params = FeatureExtractionParams(
        dataset=str(folder / "videos"), anonymizer=str(checkpoint), device=options.device,
        size=options.size, run_id="benchmark",
    )  # fmt: skip
    for name, reader in ours.items():
        chosen = replace(params, reader=reader, precision=name.removesuffix("_pyav"))
        sides[name] = ChildProcess(our_side, chosen, folder, name)
    return sides


def report(
    sides: dict[str, ChildProcess], folder: Path, options: argparse.Namespace, n_clips: int
) -> None:
    """Measures, prints what came out, and the line of JSON."""
    measures = {name: partial(side.call, "run") for name, side in sides.items()}
    products = {
        f"product_{precision}": MatrixProduct(dtype, options.product, options.device)
        for precision, dtype in PRECISIONS.items()
    }
    seconds = medians(rounds_in_turns(measures | products, options.rounds))
    work = n_clips * gflop_per_clip(options.size)
    figures: dict[str, float] = {}
    for name, side in sides.items():
        figures[f"clips_per_second_{name}"] = n_clips / seconds[name]
        figures[f"seconds_per_clip_{name}"] = seconds[name] / n_clips
        figures[f"processor_seconds_per_clip_{name}"] = side.call("processor") / n_clips
        figures[f"peak_mib_{name}"] = side.call("peak")
        rate = work / seconds[name]
        print(f"{name}: {seconds[name] / n_clips:.3f} s per clip, {rate:.0f} GFLOP/s")
    ratios = {}
    for name in PRECISIONS:
        ceiling = products[f"product_{name}"].gflop / seconds[f"product_{name}"]
        ratios[name] = seconds["plain"] / seconds[name]
        share = work / seconds[name] / ceiling
        plain, ours = (figures[f"processor_seconds_per_clip_{side}"] for side in ("plain", name))
        print(f"{name}: {ratios[name]:.2f} x, {share:.0%} of the ceiling of {ceiling:.0f} GFLOP/s")
        print(f"  {plain / ours:.2f} x by CPU seconds")
        own = {"processor_ratio": plain / ours, "ceiling_gflops": ceiling, "ceiling_share": share}
        own |= part_seconds(sides[name].call("profile"), seconds[name])
        own |= sides[name].call("utilisation") | {"lowest_cosine": agreement(folder, name)}
        figures |= {f"{key}_{name}": value for key, value in own.items()}
        figures["ceiling_share"] = share
    print(json_line("extraction", ratios, figures | comparisons(seconds)))


def comparisons(seconds: dict[str, float]) -> dict[str, float]:
    """Ratios beside the main ones, of the sides that took part; printed too."""
    pairs = {
        f"{name}_against_plain_channels_last": ("plain_channels_last", name) for name in PRECISIONS
    }
    pairs["nvdec_against_cpu_decoding"] = ("bf16_pyav", "bf16")
    found = {key: seconds[a] / seconds[b] for key, (a, b) in pairs.items() if a in seconds}
    for key, value in found.items():
        print(f"{key}: {value:.2f} x")
    return found


def gflop_per_clip(size: int) -> float:
    """f_A on 16 frames and f_T on the clip."""
    fa, ft = Case(load_fa_model, (1, 3, size, size)), Case(load_ft_model, (1, 3, 16, size, size))
    return 16 * gflop(fa, training=False) + gflop(ft, training=False)


def part_seconds(profile: dict[str, float], total: float) -> dict[str, float]:
    """Prints the profile; `start` is what is left of the total: reading and preparing the
    networks."""
    in_turn = sum(seconds for part, seconds in profile.items() if part != "decode")
    parts = {**profile, "start": max(0.0, total - in_turn)}
    print("  seconds: " + ", ".join(f"{part} {value:.2f}" for part, value in parts.items()))
    return {f"seconds_{part}": value for part, value in parts.items()}


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    raise SystemExit(main())
