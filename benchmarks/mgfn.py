"""An epoch of MGFN on UCF-Crime's size, with its evaluation, against a plain loop.

1,610 training and 290 test videos of log-normal length (median 70 clips) but for one in a hundred
of 4,000, synthetic 2048-d features on the disk; every fifth training video also plays a held-out
one. The plain loop reads and pools every file in each epoch, computes in fp32 with convolutions,
scores one test video per pass and makes frame lists for the metrics; it runs in a process of its
own with the default allocator. Ours reads the files once, before the first epoch
(`loading_once_seconds`, not part of the epoch), computes in the precision that the device is fast
in and scores several videos per pass. Both do the same steps on the same videos, in turns.
`loading` compares what an epoch needs to have its bags: reading and pooling, or indexing memory.
On a busy machine trust the ratio of CPU seconds, with --threads 1.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

if str(Path(__file__).resolve().parent.parent) not in sys.path:  # an uninstalled clone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from anomaly_detection_mgfn.feature_bags import VideoFeatures, load_videos, open_feature_folder
from anomaly_detection_mgfn.ground_truth import truth_from_labels
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mil_training import MilTraining, TrainingData, pair_batches
from anomaly_detection_mgfn.params_mgfn import PAPER
from anomaly_detection_mgfn.scoring import score_videos, weighted_scores
from anomaly_detection_mgfn.stage_data import load_bags
from aux_code.artefacts import Recipe
from aux_code.checkpoints import write_json
from aux_code.devices import autocast
from aux_code.runs import Run, seeded_generator
from benchmarks import machine
from benchmarks.machine import medians, peak_mib, rounds_in_turns, seconds_of
from benchmarks.plain_mgfn import PlainEpoch, list_metrics, plain_forward

COUNTS = {"normal": 800, "anomalous": 810, "test": 290}
MEDIAN_CLIPS, SPREAD, LONGEST = 70, 1.0, 4000
FEATURE_DIM = 2048
CPU = torch.device("cpu")
OPTIONS = {
    "scale": (1.0, "share of UCF-Crime's videos, in (0, 1]"),
    "rounds": (3, "epochs of each side"),
    "long_clips": (LONGEST, "length of the video whose memory is measured"),
    "threads": machine.THREADS,
}
LOADINGS = 5
"""Of an epoch's batches in a row: one takes some milliseconds, too few for a measurement."""


class Files(NamedTuple):
    """The synthetic data set."""

    normal: list[Path]
    anomalous: list[Path]
    test: list[Path]
    labels: list[np.ndarray]
    """(n_frames,) of each test video."""


def write_features(folder: Path, scale: float) -> Files:
    """Features and manifest of `scale` times UCF-Crime's videos, at least two of a kind."""
    rng = np.random.default_rng(0)
    paths: dict[str, list[Path]] = {kind: [] for kind in COUNTS}
    videos, labels = {}, []
    for kind, count in COUNTS.items():
        for i in range(max(2, round(scale * count))):
            n_clips = int(np.clip(rng.lognormal(np.log(MEDIAN_CLIPS), SPREAD), 1, LONGEST))
            n_clips = LONGEST if i % 100 == 50 else n_clips
            name = f"{kind}{i:04d}"
            np.save(folder / f"{name}.npy", rng.random((n_clips, FEATURE_DIM), dtype=np.float32))
            videos[name] = {"file": f"{name}.npy", "n_clips": n_clips, "n_frames": 32 * n_clips - 7}
            paths[kind].append(folder / f"{name}.npy")
            if kind == "test":
                labels.append(np.zeros(32 * n_clips - 7, np.uint8))
                labels[-1][: (i % 2) * len(labels[-1]) // 3] = 1
    header = {"frames_per_clip": 16, "stride": 2, "frames_per_feature": 32}
    header["feature_dim"] = FEATURE_DIM
    write_json(folder / "manifest.json", {**header, "videos": videos})
    return Files(**paths, labels=labels)


class OurEpoch:
    """What main.py does in an epoch, on all training videos."""

    def __init__(self, folder: Path, files: Files):
        torch.manual_seed(0)
        self.params = replace(PAPER, device="cpu")
        run = Run("benchmark", "main", folder, CPU)
        self.training = MilTraining(self.params, MGFN(), run, folder, Recipe({}))
        self.cpu_seconds: list[float] = []
        self.data: TrainingData
        self.loading_once = seconds_of(lambda: self.load(folder, files))

    def load(self, folder: Path, files: Files) -> None:
        """Reads every file once; the held-out bags are taken from the training's."""
        source = open_feature_folder(folder)
        normal, anomalous, test = ([path.stem for path in kind] for kind in files[:3])
        bags = [load_bags(self.params, source, names, CPU) for names in (normal, anomalous)]
        held_out = [kind[::5] for kind in bags]
        named = zip(test, files.labels, strict=True)
        truths = [truth_from_labels(n, "Anomaly", int(own.any()), own, 32) for n, own in named]
        self.data = TrainingData(
            *bags,
            torch.cat(held_out),
            np.repeat([0, 1], [len(kind) for kind in held_out]),
            load_videos(source, test, self.params.memory_limit_gib),
            truths,
            by_precision=False,
        )

    def load_from_memory(self) -> float:
        """Seconds to take an epoch's batches out of the memory: the median of LOADINGS, each right
        after a step as in an epoch, whose threads need not wake first."""
        kinds = self.data.normal, self.data.anomalous
        generator = seeded_generator("benchmark")
        batches = list(pair_batches(*map(len, kinds), self.params.batch_size, generator))
        self.training.net.train()
        found = []

        def take() -> None:
            for batch in batches:
                for kind, indices in zip(kinds, batch, strict=True):
                    kind.index_select(0, indices)

        for _ in range(LOADINGS):
            self.training.step(*(k[:16] for k in kinds))
            found.append(seconds_of(take))
        return statistics.median(found)

    def score(self, clips_per_pass: int = 0, precision: str = "auto") -> list[np.ndarray]:
        """Clip scores of the test videos; with 1 clip per pass one by one."""
        limit = clips_per_pass or self.params.clips_per_pass
        with autocast(CPU, precision):
            return score_videos(self.training.net, self.data.test, CPU, limit)

    def score_differences(self) -> dict[str, float]:
        """Largest difference of a score from that of its video alone, and from that in fp32."""
        together = np.concatenate(self.score())
        others = {"one_by_one": self.score(1), "fp32": self.score(precision="fp32")}
        return {
            f"difference_from_{name}": float(np.abs(together - np.concatenate(own)).max())
            for name, own in others.items()
        }

    def epoch(self) -> float:
        """Seconds of one epoch with its evaluation."""
        started, epoch = time.process_time(), len(self.cpu_seconds)

        def run() -> None:
            self.training.train_epoch(self.data, epoch)
            self.training.evaluate_epoch(self.data)

        seconds = seconds_of(run)
        self.cpu_seconds.append(time.process_time() - started)
        return seconds


def build_plain(files: Files) -> dict[str, Callable[[], object]]:
    """What the child process of the plain loop can be asked for."""
    plain = PlainEpoch(PAPER, (files.normal, files.anomalous), files.test, files.labels)
    return {
        "epoch": plain.epoch,
        "processor": lambda: statistics.median(plain.cpu_seconds),
        "load": lambda: seconds_of(plain.load),
        "score": lambda: seconds_of(plain.score),
    }


def build_long_video(is_plain: bool, n_clips: int) -> dict[str, Callable[[], object]]:
    """A process that says how much memory (GiB) scoring one long video in fp32 adds to it."""
    net = MGFN().eval()
    data = np.zeros((n_clips, 1, FEATURE_DIM + 1), np.float32)

    def score(n: int) -> float:
        if is_plain:
            with torch.no_grad():
                plain_forward(net, torch.from_numpy(data[:n].swapaxes(0, 1)[None].copy()))
        else:
            video = VideoFeatures(["video"], data[:n], np.array([0, n]))
            score_videos(net, video, CPU, PAPER.clips_per_pass)
        return peak_mib() / 1024

    return {"peak": lambda: -score(8) + score(n_clips)}


def compare_metrics(ours: OurEpoch, labels: list[np.ndarray]) -> dict[str, float]:
    """Median seconds of both ways to the metrics, which must agree."""
    scores, truths = ours.score(), ours.data.truths
    ways = {
        "metrics_ours": lambda: weighted_scores(scores, truths).metrics()[:2],
        "metrics_plain": lambda: list_metrics(scores, labels),
    }
    found = [way() for way in ways.values()]
    if not np.allclose(*found, atol=1e-9, rtol=0):
        raise SystemExit(f"the metrics disagree: {found}")
    measures = {name: lambda way=way: seconds_of(way) for name, way in ways.items()}
    return medians(rounds_in_turns(measures, n_rounds=3))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of everything, and the memory of a long video."""
    files = write_features(folder, options.scale)
    found = {}
    for side in ("ours", "plain"):
        with machine.ChildProcess(build_long_video, side == "plain", options.long_clips) as child:
            found[f"long_video_gib_{side}"] = child.call("peak")
    with machine.ChildProcess(build_plain, files) as child:
        ours = OurEpoch(folder, files)
        found["loading_once"] = ours.loading_once
        gc.collect()
        measures = {
            "epoch_ours": ours.epoch,
            "epoch_plain": lambda: child.call("epoch"),
            "loading_ours": ours.load_from_memory,
            "loading_plain": lambda: child.call("load"),
            "score_ours": lambda: seconds_of(ours.score),
            "score_plain": lambda: child.call("score"),
        }
        found |= medians(rounds_in_turns(measures, options.rounds))
        found["processor_plain"] = child.call("processor")
        found["processor_ours"] = statistics.median(ours.cpu_seconds)
    return found | ours.score_differences() | compare_metrics(ours, files.labels)


def main(argv: list[str] | None = None) -> int:
    """Writes the features, measures and ends with one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    print(machine.describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    names = {"epoch_with_evaluation": "epoch", "evaluation": "score"}
    names |= {"loading": "loading", "metrics": "metrics"}
    ratios = {key: found[f"{own}_plain"] / found[f"{own}_ours"] for key, own in names.items()}
    for key, own in names.items():
        plain, ours = found[f"{own}_plain"], found[f"{own}_ours"]
        print(f"{key:22} plain {plain:9.4f} s, ours {ours:9.4f} s: {ratios[key]:7.1f}x")
    unit = {name: "" if name.startswith(("long", "difference")) else "_seconds" for name in found}
    figures = {f"{name}{unit[name]}": value for name, value in found.items()}
    figures["processor_ratio_epoch"] = found["processor_plain"] / found["processor_ours"]
    print(f"{figures['processor_ratio_epoch']:.2f} x for an epoch by CPU seconds")
    figures |= {"scale": options.scale, "rounds": options.rounds}
    print(machine.json_line("mgfn", ratios, figures | {"long_video_clips": options.long_clips}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
