"""Feature extraction from video files to feature files, full-size networks at 224, against a loop.

The plain side is `plain_extraction.py`: one clip per batch, eager fp32, decode then compute,
contiguous frames as torchvision's `to_tensor` makes them, the default allocator, a process of its
own. Ours is the whole of `dali_extraction.py` in fp32 and in bf16, a process each. All of them do
everything from reading the checkpoint to the last feature file; only the start of the interpreter
and the imports, the same for all, are outside. They take turns, in alternating order; figures are
medians. Videos are H.264, 320 x 240, made here; weights are random. Where the device has no bf16
those figures are fp32 too (a warning says so).

The profile sums seconds over a run: decode (in all decoding threads, while the networks compute, so
it adds nothing until `wait` does), wait (of the networks for clips), copy (into batches), f_A, f_T,
write; start is the rest: reading and preparing the networks. The ceiling is a square matrix
product, measured in the same rounds. On a busy machine trust the ratio of CPU seconds, with
--threads 1.

On a CPU the reader is pyav. On a GPU (the default where there is one) it is dali, with NVDEC; bf16
runs with pyav too, decoding on the CPU.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from aux_code import config
from aux_code.checkpoints import save_checkpoint
from aux_code.devices import choose_device
from aux_code.model_loaders import load_fa_model, load_ft_model
from aux_code.runs import start_run
from benchmarks import machine
from benchmarks.machine import PRECISIONS, MatrixProduct, medians, rounds_in_turns
from benchmarks.model_costs import inference_gflop
from benchmarks.plain_extraction import extract_plainly
from feature_extraction.dali_extraction import extract
from feature_extraction.params_feature_extraction import FeatureExtractionParams
from feature_extraction.readers import resolve_reader

OPTIONS = {
    "videos": (0, "number of videos; 0: 4 on a CPU, 32 on a GPU"),
    "clips": (0, "clips (32 frames) per video; 0: 12 on a CPU, 64 on a GPU"),
    "size": (224, "height and width that the networks see, in pixels"),
    "rounds": (2, "rounds that count"),
    "product": (0, "rows of the ceiling's matrices; 0: by device"),
    "threads": machine.THREADS,
    "device": ("auto", "where the networks run: auto, cpu or cuda"),
}


def moving_square(n_frames: int) -> Iterator[np.ndarray]:
    """Frames uint8 (240, 320, 3): a noisy background on which a square moves."""
    background = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    for t in range(n_frames):
        frame = background.copy()
        frame[80:160, 2 * t % 240 : 2 * t % 240 + 80] = 255 - t % 200
        yield frame


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

    CPU time leaves out when others had the machine; with one thread it is fair on a busy one.
    """

    def __init__(self, work: Callable[[], object]):
        self.work = work
        self.processor_seconds: list[float] = []

    def __call__(self) -> float:
        start = time.process_time()
        seconds = machine.seconds_of(self.work)
        self.processor_seconds.append(time.process_time() - start)
        return seconds

    def measures(self) -> dict[str, Callable[[], object]]:
        """What a child process serves: one run, median CPU seconds so far, peak memory."""
        processor = partial(statistics.median, self.processor_seconds)
        return {"run": self, "processor": processor, "peak": machine.peak_mib}


def plain_side(output: Path, *arguments) -> dict[str, Callable[[], object]]:
    """The process of the plain loop."""
    output.mkdir()
    return Run(lambda: extract_plainly(output, *arguments)).measures()


def our_side(
    params: FeatureExtractionParams, folder: Path, name: str
) -> dict[str, Callable[[], object]]:
    """The process of one of our sides: every run extracts into a fresh folder."""
    config.SAVED_MODELS_ROOT = config.LOGS_ROOT = folder / "runs"
    profiles: list[dict[str, float]] = []

    def work() -> None:
        chosen = replace(params, output=str(folder / f"{name}_{len(profiles)}"))
        outcome = extract(chosen, start_run(chosen, "benchmark"))
        if outcome.failed:
            raise RuntimeError(f"not extracted: {outcome.failed}")
        profiles.append(outcome.extraction.seconds)

    def profile() -> dict[str, float]:
        return medians({part: [run[part] for run in profiles] for part in profiles[0]})

    return Run(work).measures() | {"profile": profile}


def agreement(folder: Path, precision: str) -> float:
    """Lowest cosine of our features with the plain loop's."""
    cosines = []
    for path in sorted((folder / "plain").glob("*.npy")):
        plain, ours = np.load(path), np.load(folder / f"{precision}_0" / path.name)
        norms = np.linalg.norm(plain, axis=1) * np.linalg.norm(ours, axis=1)
        cosines.append(((plain * ours).sum(1) / norms).min())
    return float(min(cosines))


def sides_of(folder: Path, options: argparse.Namespace) -> dict[str, tuple]:
    """plain, fp32, bf16 and on a GPU bf16_pyav -> what `ChildProcess` starts; writes the inputs."""
    (folder / "videos").mkdir()
    paths = [folder / "videos" / f"video{i}.mp4" for i in range(options.videos)]
    for path in paths:
        machine.write_video(path, moving_square(32 * options.clips), preset="veryfast")
    checkpoint = write_checkpoint(folder / "networks.pth")
    sizes = {"device": options.device, "size": options.size, "run_id": "benchmark"}
    inputs = {"dataset": str(folder / "videos"), "anonymizer": str(checkpoint)}
    params = FeatureExtractionParams(**inputs, **sizes)
    reader = resolve_reader("auto") if options.device == "cuda" else "pyav"
    readers = {"fp32": reader, "bf16": reader} | ({"bf16_pyav": "pyav"} if reader == "dali" else {})
    plain = (plain_side, folder / "plain", paths, checkpoint, options.size, options.device)
    sides: dict[str, tuple] = {"plain": plain}
    for name, reader in readers.items():
        chosen = replace(params, reader=reader, precision=name.removesuffix("_pyav"))
        sides[name] = (our_side, chosen, folder, name)
    return sides


def measure(sides: dict[str, machine.ChildProcess], folder: Path, options: argparse.Namespace):
    """(ratios, figures) after all rounds; prints what came out."""
    measures = {name: partial(side.call, "run") for name, side in sides.items()}
    products = {
        f"product_{precision}": MatrixProduct(dtype, options.product, options.device)
        for precision, dtype in PRECISIONS.items()
    }
    seconds = medians(rounds_in_turns(measures | products, options.rounds))
    n_clips = options.videos * options.clips
    work = n_clips * sum(inference_gflop(options.size).values())
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for name, side in sides.items():
        per_clip, cpu_seconds = seconds[name] / n_clips, side.call("processor") / n_clips
        own = {"clips_per_second": 1 / per_clip, "seconds_per_clip": per_clip}
        own |= {"processor_seconds_per_clip": cpu_seconds, "peak_mib": side.call("peak")}
        print(f"{name}: {per_clip:.3f} s per clip, {work / seconds[name]:.0f} GFLOP/s")
        if name in PRECISIONS:
            ratios[name] = seconds["plain"] / seconds[name]
            ratio = figures["processor_seconds_per_clip_plain"] / cpu_seconds
            ceiling = products[f"product_{name}"].gflop / seconds[f"product_{name}"]
            share = figures["ceiling_share"] = work / seconds[name] / ceiling
            print(f"  {ratios[name]:.2f} x, {ratio:.2f} x by CPU seconds")
            print(f"  {share:.0%} of the ceiling of {ceiling:.0f} GFLOP/s")
            own |= {"processor_ratio": ratio, "ceiling_gflops": ceiling, "ceiling_share": share}
            own |= part_seconds(side.call("profile"), seconds[name])
            own["lowest_cosine"] = agreement(folder, name)
        figures |= {f"{key}_{name}": value for key, value in own.items()}
    if "bf16_pyav" in seconds:
        ratio = figures["nvdec_against_cpu_decoding"] = seconds["bf16_pyav"] / seconds["bf16"]
        print(f"NVDEC against decoding on the CPU: {ratio:.2f} x")
    return ratios, figures


def part_seconds(profile: dict[str, float], total: float) -> dict[str, float]:
    """Prints the profile; `start` is what is left of the total: preparing the networks."""
    in_turn = sum(seconds for part, seconds in profile.items() if part != "decode")
    parts = {**profile, "start": max(0.0, total - in_turn)}
    print("  seconds: " + ", ".join(f"{part} {value:.2f}" for part, value in parts.items()))
    return {f"seconds_{part}": value for part, value in parts.items()}


def main(argv: list[str] | None = None) -> int:
    """Times the sides in turns, prints the profile and ends with one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    options.device = choose_device(options.device).type
    on_gpu = options.device == "cuda"
    options.videos = options.videos or (32 if on_gpu else 4)
    options.clips = options.clips or (64 if on_gpu else 12)
    options.product = options.product or (8192 if on_gpu else 2048)
    gpu = f", {torch.cuda.get_device_name()}" if on_gpu else ""
    sizes = (
        f"{options.videos} x {options.clips} clips, {options.size} pixels, {options.rounds} rounds"
    )
    print(f"{machine.describe_machine()}{gpu}; {sizes}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        with machine.children(sides_of(Path(name), options)) as sides:
            ratios, figures = measure(sides, Path(name), options)
    print(machine.json_line("extraction", ratios, figures))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    raise SystemExit(main())
