"""Endurance of feature extraction: memory by the length of a video and by the number of videos.

Miniature networks on small H.264 frames (64 x 48), so that hours of video pass in minutes: what
is measured is everything around the networks. Each case is the whole of `dali_extraction.py`
(reader pyav) in a process of its own.

- A video of two hours (216,000 frames at 30 per second) against one of two minutes: peak resident
  memory.
- Ten thousand videos of 33 frames: a first process is killed (SIGKILL) when a twentieth of them is
  there, a second one does the rest: how many of those it repeats, seconds per video and resident
  memory at the start and at the end, and the seconds of a third run, which has nothing left to do.

The long video repeats one encoded second, and the many videos are links to one file: quick to make,
no quicker to read.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np

from aux_code import config
from aux_code.runs import start_run
from benchmarks import machine
from benchmarks.extraction import write_checkpoint
from feature_extraction import dali_extraction
from feature_extraction.dali_extraction import extract
from feature_extraction.manifest import FeatureFolder
from feature_extraction.params_feature_extraction import FeatureExtractionParams

HEIGHT, WIDTH, FPS = 48, 64, 30
SHORT_FRAMES, SMALL_FRAMES = 2 * 60 * FPS, 33
OPTIONS = {
    "frames": (2 * 60 * 60 * FPS, "frames of the long video"),
    "videos": (10_000, "number of small videos"),
}


def write_video(path: Path, n_frames: int) -> Path:
    """An H.264 file of `n_frames` frames: a square on noise, one encoded second again and again."""
    background = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        settings = {"preset": "veryfast", "bf": "0", "g": str(FPS)}
        stream = container.add_stream("libx264", rate=FPS, options=settings)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        packets = []
        for t in range(FPS):
            frame = background.copy()
            frame[16:32, t : t + 16] = 255
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        second = [bytes(packet) for packet in packets + stream.encode(None)]
        for t in range(n_frames):
            packet = av.Packet(second[t % FPS])
            packet.stream, packet.time_base = stream, stream.time_base
            packet.pts = packet.dts = t
            packet.duration, packet.is_keyframe = 1, t % FPS == 0
            container.mux(packet)
    return path


def options(folder: Path, dataset: Path, checkpoint: Path) -> dict[str, object]:
    """Parameters of an extraction into FOLDER/features_DATASET."""
    output = folder / f"features_{dataset.stem}"
    paths = {"dataset": str(dataset), "anonymizer": str(checkpoint), "output": str(output)}
    sizes = {"size": 48, "batch_size": 16}
    return {**paths, **sizes, "reader": "pyav", "device": "cpu", "run_id": "endurance"}


def killed_run(folder: Path, dataset: Path, checkpoint: Path, n_videos: int) -> dict[Path, int]:
    """Kills the script when `n_videos` feature files are there; when each was written."""
    chosen = options(folder, dataset, checkpoint)
    command = [sys.executable, str(Path(dali_extraction.__file__))]
    command += [text for name, value in chosen.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "TED_SPAD_ARTIFACT_ROOT": str(folder / "artifacts")}
    output = Path(chosen["output"])
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and sum(1 for _ in output.glob("*.npy")) < n_videos:
            time.sleep(0.05)
        process.kill()
    return {path: path.stat().st_mtime_ns for path in output.glob("*.npy")}


def one_run(folder: Path, dataset: Path, checkpoint: Path) -> dict[str, Callable[[], object]]:
    """A process: `run` extracts the data set and returns what it cost."""
    config.SAVED_MODELS_ROOT = config.LOGS_ROOT = folder / "runs"
    params = FeatureExtractionParams(**options(folder, dataset, checkpoint))
    written: list[tuple[float, float]] = []  # (time, resident MiB) after every video
    add_video = FeatureFolder.add_video

    def noting(features: FeatureFolder, name: str, entry: dict) -> None:
        add_video(features, name, entry)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        written.append((time.monotonic(), pages * resource.getpagesize() / 2**20))

    def run() -> dict[str, float]:
        start = time.monotonic()
        outcome = extract(params, start_run(params, "benchmark"))
        if outcome.failed or outcome.missing:
            raise RuntimeError(f"failed: {outcome.failed}; missing: {outcome.missing}")
        figures = {"seconds": time.monotonic() - start, "n_clips": outcome.extraction.n_clips}
        return figures | {"peak_mib": machine.peak_mib()} | by_tenths(written)

    FeatureFolder.add_video = noting
    return {"run": run}


def by_tenths(written: list[tuple[float, float]]) -> dict[str, float]:
    """Mean seconds per video and memory in the second and the last tenth of a run of many."""
    tenth = len(written) // 10
    if tenth < 2:
        return {}
    times = [b[0] - a[0] for a, b in zip(written, written[1:])]
    early, late = statistics.fmean(times[tenth : 2 * tenth]), statistics.fmean(times[-tenth:])
    memory = {"mib_early": written[2 * tenth - 1][1], "mib_late": written[-1][1]}
    return {"mean_seconds_early": early, "mean_seconds_late": late} | memory


def long_video(folder: Path, checkpoint: Path, n_frames: int) -> dict[str, float]:
    """Figures of a short and of a long video."""
    figures = {}
    for name, length in (("short", SHORT_FRAMES), ("long", n_frames)):
        video = write_video(folder / f"{name}.mp4", length)
        with machine.ChildProcess(one_run, folder, video, checkpoint) as child:
            cost = child.call("run")
        seconds, peak = cost["seconds"], cost["peak_mib"]
        print(f"{name}: {length} frames in {seconds:.1f} s, peak {peak:.0f} MiB", flush=True)
        figures |= {f"{name}_frames": length, f"{name}_seconds": seconds, f"{name}_mib": peak}
    return figures | {"long_extra_mib": figures["long_mib"] - figures["short_mib"]}


def many_videos(folder: Path, checkpoint: Path, n_videos: int) -> dict[str, float]:
    """Figures of many small videos."""
    many, first = folder / "many", write_video(folder / "small.mp4", SMALL_FRAMES)
    many.mkdir()
    for i in range(n_videos):
        os.link(first, many / f"v{i:05d}.mp4")
    before = killed_run(folder, many, checkpoint, n_videos // 20)
    with machine.ChildProcess(one_run, folder, many, checkpoint) as child:
        cost = child.call("run")
        cost["nothing_left_seconds"] = child.call("run")["seconds"]
    cost["there_when_killed"] = len(before)
    cost["repeated_after_kill"] = sum(p.stat().st_mtime_ns != t for p, t in before.items())
    shown = ", ".join(f"{key} {value:.4g}" for key, value in cost.items())
    print(f"{n_videos} videos in {cost['seconds']:.1f} s: {shown}")
    return {f"many_{key}": value for key, value in cost.items()} | {"many_videos": n_videos}


def main(argv: list[str] | None = None) -> int:
    """Runs both and ends with one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    print(machine.describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = write_checkpoint(Path(name) / "networks.pth", "small", "small")
        figures = long_video(Path(name), checkpoint, options.frames)
        figures |= many_videos(Path(name), checkpoint, options.videos)
    print(machine.json_line("endurance", {}, figures))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    raise SystemExit(main())
