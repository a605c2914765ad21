"""Feature extraction from video files to feature files, full-size networks at 224: our script
against a plain loop.

The plain side is `plain_extraction.py`: one clip per batch, eager fp32, decode then compute, the
default allocator, a process of its own. Ours is the whole of `dali_extraction.py` in fp32 and in
bf16, a process each. All of them do everything from reading the checkpoint to the last feature
file; only the start of the interpreter and the imports, the same for all, are outside. They take
turns, in alternating order; figures are medians. Videos are H.264, 320 x 240, made here; weights
are random. Where the device has no bf16 those figures are fp32 too (a warning says so).

The plain loop's frames are contiguous, as torchvision's `to_tensor` makes them. Frames that are
only permuted have channels-last strides, which eager convolutions follow and are faster by:
--plain_channels_last measures that loop too.

The profile sums seconds over a run: decode (in all decoding threads, while the networks compute, so
it adds nothing until `wait` does), wait (of the networks for clips), copy (into batches), f_A, f_T,
write; start is the rest: reading and preparing the networks. The ceiling is a square matrix
product, measured in the same rounds. On a busy machine trust the ratio of seconds on the processor,
with --threads 1.

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
from pathlib import Path

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch

from aux_code import config
from aux_code.artefacts import build_meta
from aux_code.checkpoints import save_checkpoint
from aux_code.devices import choose_device
from aux_code.model_loaders import load_fa_model, load_ft_model
from aux_code.parameters import CommonParams
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

FRAMES_PER_CLIP, FRAMES_PER_FEATURE = 16, 32
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
            for t in range(n_clips * FRAMES_PER_FEATURE):
                picture = background.copy()
                picture[80:160, 2 * t % 240 : 2 * t % 240 + 80] = 255 - t % 200
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return paths


def write_checkpoint(path: Path) -> Path:
    """UNet++ and I3D with random weights."""
    torch.manual_seed(0)
    fa, ft = load_fa_model(), load_ft_model()
    architectures = {"fa": fa.architecture, "ft": ft.architecture}
    states = {"fa_model_state_dict": fa.state_dict(), "ft_model_state_dict": ft.state_dict()}
    save_checkpoint(
        path, states | {"meta": build_meta("benchmark", architectures, CommonParams(), {}, {})}
    )
    return path


class Run:
    """Does the work, returns its seconds and keeps those that the process spent on the processor.

    The latter do not count the time in which other programs had the machine; for one thread they
    compare the sides even on a busy one.
    """

    def __init__(self, work: Callable[[], object]):
        self.work = work
        self.processor_seconds: list[float] = []

    def __call__(self) -> float:
        start = time.process_time()
        seconds = timed(self.work)
        self.processor_seconds.append(time.process_time() - start)
        return seconds

    def processor(self) -> float:
        """Median processor seconds of the runs so far."""
        return statistics.median(self.processor_seconds)


def plain_side(arguments: tuple, output: Path) -> dict[str, Callable[[], object]]:
    """A plain process: `run` returns its seconds."""
    output.mkdir()
    videos, checkpoint, *others = arguments
    run = Run(lambda: extract_plainly(videos, checkpoint, output, *others))
    return {"run": run, "processor": run.processor, "peak": peak_mib}


def our_side(
    params: FeatureExtractionParams, folder: Path, name: str
) -> dict[str, Callable[[], object]]:
    """The process of one of our sides: `run` extracts into a fresh folder and returns its
    seconds."""
    for root in ("SAVED_MODELS_ROOT", "LOGS_ROOT"):
        setattr(config, root, folder / "runs")
    profiles: list[dict[str, float]] = []
    utilisation: list[dict[str, float]] = []

    def work() -> None:
        chosen = FeatureExtractionParams(
            **{**vars(params), "output": str(folder / f"{name}_{len(profiles)}")}
        )
        monitor = GpuMonitor() if params.device == "cuda" else nullcontext()
        with monitor:
            outcome = extract(chosen, start_run(chosen, "benchmark"))
        if outcome.failed:
            raise RuntimeError(f"not extracted: {outcome.failed}")
        profiles.append(outcome.extraction.seconds)
        utilisation.append(getattr(monitor, "means", {}))

    run = Run(work)
    measures = {"profile": profiles, "utilisation": utilisation}
    measures = {
        key: lambda values=values: medians(_by_part(values)) for key, values in measures.items()
    }
    return {"run": run, "processor": run.processor, "peak": peak_mib, **measures}


def _by_part(profiles: list[dict[str, float]]) -> dict[str, list[float]]:
    return {part: [profile[part] for profile in profiles] for part in profiles[0]}


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
    parser.add_argument(
        "--videos", type=int, default=0, help="number of videos; 0: 4 on a CPU, 32 on a GPU"
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=0,
        help="clips (32 frames) per video; 0: 12 on a CPU, 64 on a GPU",
    )
    parser.add_argument(
        "--size", type=int, default=224, help="height and width that the networks see, in pixels"
    )
    parser.add_argument("--rounds", type=int, default=2, help="rounds that count")
    parser.add_argument(
        "--product", type=int, default=0, help="rows of the ceiling's matrices; 0: by device"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of all sides; 0: PyTorch's default"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the networks run"
    )
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
    machine = describe_machine() + (
        f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    )
    print(
        f"{machine}; {n_clips} clips, {options.size} x {options.size}, {options.rounds} rounds",
        flush=True,
    )
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
    plain = (videos, checkpoint, options.size, options.device)
    sides = {"plain": ChildProcess(plain_side, plain, folder / "plain")}
    if options.plain_channels_last:
        arguments = (*plain, torch.channels_last)
        sides["plain_channels_last"] = ChildProcess(
            plain_side, arguments, folder / "plain_channels_last"
        )
    reader = resolve_reader("auto") if options.device == "cuda" else "pyav"
    ours = {"fp32": reader, "bf16": reader} | ({"bf16_pyav": "pyav"} if reader == "dali" else {})
    for name, reader in ours.items():
        params = FeatureExtractionParams(
            dataset=str(folder / "videos"), anonymizer=str(checkpoint), reader=reader, device=options.device,
            size=options.size, precision=name.removesuffix("_pyav"), run_id="benchmark",
        )  # fmt: skip
        sides[name] = ChildProcess(our_side, params, folder, name)
    return sides


def report(
    sides: dict[str, ChildProcess], folder: Path, options: argparse.Namespace, n_clips: int
) -> None:
    """Measures, prints what came out, and the line of JSON."""
    measures = {name: lambda side=side: side.call("run") for name, side in sides.items()}
    products = {
        f"product_{precision}": MatrixProduct(dtype, options.product, options.device)
        for precision, dtype in PRECISIONS.items()
    }
    seconds = medians(rounds_in_turns(measures | products, options.rounds))
    work = n_clips * gflop_per_clip(options.size)
    processor = {name: side.call("processor") for name, side in sides.items()}
    figures = {f"clips_per_second_{name}": n_clips / seconds[name] for name in sides}
    figures |= {f"seconds_per_clip_{name}": seconds[name] / n_clips for name in sides}
    figures |= {
        f"processor_seconds_per_clip_{name}": value / n_clips for name, value in processor.items()
    }
    figures |= {f"peak_mib_{name}": side.call("peak") for name, side in sides.items()}
    for name in sides:
        print(
            f"{name}: {seconds[name] / n_clips:.3f} s per clip, {work / seconds[name]:.0f} GFLOP/s"
        )
    ratios = {}
    for precision in PRECISIONS:
        ceiling = products[f"product_{precision}"].gflop / seconds[f"product_{precision}"]
        ratios[precision] = seconds["plain"] / seconds[precision]
        share = work / seconds[precision] / ceiling
        print(
            f"{precision}: {ratios[precision]:.2f} x, {share:.0%} of the ceiling of {ceiling:.0f} GFLOP/s"
        )
        figures[f"processor_ratio_{precision}"] = processor["plain"] / processor[precision]
        print(f"  {figures[f'processor_ratio_{precision}']:.2f} x by seconds on the processor")
        figures |= part_figures(sides[precision].call("profile"), seconds[precision], precision)
        figures |= {
            f"{key}_{precision}": value
            for key, value in sides[precision].call("utilisation").items()
        }
        figures[f"ceiling_gflops_{precision}"] = ceiling
        figures[f"ceiling_share_{precision}"] = figures["ceiling_share"] = share
        figures[f"lowest_cosine_{precision}"] = agreement(folder, precision)
    figures |= comparisons(seconds)
    print(json_line("extraction", ratios, figures))


def comparisons(seconds: dict[str, float]) -> dict[str, float]:
    """Ratios beside the main ones, of the sides that took part; printed too."""
    pairs = {
        f"{name}_against_plain_channels_last": ("plain_channels_last", name) for name in PRECISIONS
    }
    pairs["nvdec_against_cpu_decoding"] = ("bf16_pyav", "bf16")
    found = {
        key: seconds[slow] / seconds[fast] for key, (slow, fast) in pairs.items() if slow in seconds
    }
    for key, value in found.items():
        print(f"{key}: {value:.2f} x")
    return found


def gflop_per_clip(size: int) -> float:
    """f_A on 16 frames and f_T on the clip."""
    fa = gflop(Case(load_fa_model, (1, 3, size, size)), training=False)
    return FRAMES_PER_CLIP * fa + gflop(
        Case(load_ft_model, (1, 3, FRAMES_PER_CLIP, size, size)), training=False
    )


def part_figures(profile: dict[str, float], total: float, precision: str) -> dict[str, float]:
    """Prints the profile; `start` is what is left of the total: reading and preparing the
    networks."""
    in_turn = sum(seconds for part, seconds in profile.items() if part != "decode")
    parts = {**profile, "start": max(0.0, total - in_turn)}
    print(
        "  seconds: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items()),
        flush=True,
    )
    return {f"seconds_{part}_{precision}": seconds for part, seconds in parts.items()}


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    raise SystemExit(main())
