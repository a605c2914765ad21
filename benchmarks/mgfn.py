"""An epoch of MGFN on UCF-Crime's size, with its evaluation, against a plain loop.

1,610 training and 290 test videos of log-normal length (median 70 clips) but for one in a hundred
of 4,000, synthetic 2048-d features on the disk. The plain loop reads and pools every file in each
epoch, computes in fp32 with convolutions, scores one test video per pass and makes frame lists for
the metrics; it runs in a process of its own with the default allocator. Ours reads the files once,
before the first epoch (`loading_once_seconds`, not part of the epoch), computes in the device's
number format and scores several videos per pass. Both do the same steps on the same videos, in
turns. `loading` compares what an epoch needs to have its bags: reading and pooling, or indexing
memory. On a busy machine trust the ratio of seconds on the processor, with --threads 1.
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

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from anomaly_detection_mgfn.feature_bags import VideoFeatures, load_videos, open_feature_folder
from anomaly_detection_mgfn.ground_truth import VideoTruth, truth_from_labels
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mil_training import MilTraining, TrainingBags, pair_batches
from anomaly_detection_mgfn.params_mgfn import PAPER
from anomaly_detection_mgfn.scoring import score_videos, weighted_scores
from anomaly_detection_mgfn.stage_data import load_bags
from aux_code.checkpoints import write_json
from aux_code.runs import Run, seeded_generator
from benchmarks.machine import (
    ChildProcess,
    describe_machine,
    json_line,
    medians,
    peak_mib,
    rounds_in_turns,
    seconds_of,
)
from benchmarks.plain_mgfn import PlainEpoch, list_metrics, plain_forward

N_NORMAL, N_ANOMALOUS, N_TEST = 800, 810, 290
MEDIAN_CLIPS, SPREAD, LONGEST = 70, 1.0, 4000
FEATURE_DIM = 2048
LOADINGS = 5
"""Of an epoch's batches in a row: one takes some milliseconds, too few for a single measurement."""


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
    counts = {"normal": N_NORMAL, "anomalous": N_ANOMALOUS, "test": N_TEST}
    paths: dict[str, list[Path]] = {kind: [] for kind in counts}
    videos, labels = {}, []
    for kind, count in counts.items():
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
    geometry = {
        "frames_per_clip": 16,
        "stride": 2,
        "frames_per_feature": 32,
        "feature_dim": FEATURE_DIM,
    }
    write_json(folder / "manifest.json", {**geometry, "videos": videos})
    return Files(**paths, labels=labels)


class OurEpoch:
    """What main.py does in an epoch, on all training videos."""

    def __init__(self, folder: Path, files: Files):
        torch.manual_seed(0)
        self.params = replace(PAPER, device="cpu")
        run = Run("benchmark", "main", folder, torch.device("cpu"))
        self.training = MilTraining(self.params, MGFN(), run, folder)
        self.truths = [
            truth_from_labels(path.stem, "Anomaly", int(own.any()), own, 32)
            for path, own in zip(files.test, files.labels, strict=True)
        ]
        self.n_epochs = 0
        self.processor_seconds: list[float] = []
        self.bags: TrainingBags
        self.test: VideoFeatures
        self.loading_once = seconds_of(lambda: self.load(folder, files))

    def load(self, folder: Path, files: Files) -> None:
        """Reads every file once."""
        source = open_feature_folder(folder)
        kinds = [[path.stem for path in kind] for kind in (files.normal, files.anomalous)]
        self.bags = load_bags(self.params, source, *kinds, torch.device("cpu"))
        self.test = load_videos(
            source, [path.stem for path in files.test], self.params.memory_limit_gib
        )

    def load_from_memory(self) -> float:
        """Seconds to take an epoch's batches out of the memory: the median of LOADINGS, each right
        after a step.

        In an epoch, too, a step has gone before. The threads of a process that was idle, as this
        one is while the plain loop runs, take milliseconds to wake.
        """
        counts = self.bags.n_normal, self.bags.n_anomalous
        batches = list(pair_batches(*counts, self.params.batch_size, seeded_generator("benchmark")))
        self.training.net.train()

        def take() -> None:
            for normal, anomalous in batches:
                self.bags.take(normal, anomalous)

        found = []
        for _ in range(LOADINGS):
            self.training.step(*self.bags.take(*batches[0]))
            found.append(seconds_of(take))
        return statistics.median(found)

    def score(self, clips_per_pass: int = 0) -> list[np.ndarray]:
        """Clip scores of the test videos in the training's number format; with 1 clip per pass one
        by one."""
        limit = clips_per_pass or self.params.clips_per_pass
        with self.training.autocast():
            return score_videos(self.training.net, self.test, torch.device("cpu"), limit)

    def score_differences(self) -> dict[str, float]:
        """Largest difference of a score from that of its video alone, and from that in fp32."""
        together, alone = self.score(), self.score(1)
        exact = score_videos(
            self.training.net, self.test, torch.device("cpu"), self.params.clips_per_pass
        )

        def largest(others: list[np.ndarray]) -> float:
            return float(
                max(np.abs(one - other).max() for one, other in zip(together, others, strict=True))
            )

        return {
            "difference_from_one_by_one": largest(alone),
            "difference_from_fp32": largest(exact),
        }

    def epoch(self) -> float:
        """Seconds of one epoch with its evaluation."""

        def run() -> None:
            self.training.train_epoch(self.bags, self.n_epochs)
            weighted_scores(self.score(), self.truths).metrics()

        self.n_epochs += 1
        start = time.process_time()
        seconds = seconds_of(run)
        self.processor_seconds.append(time.process_time() - start)
        return seconds


def build_plain(files: Files) -> dict[str, Callable[[], object]]:
    """What the child process of the plain loop can be asked for."""
    plain = PlainEpoch(PAPER, (files.normal, files.anomalous), files.test, files.labels)
    return {
        "epoch": plain.epoch,
        "processor": lambda: statistics.median(plain.processor_seconds),
        "load": lambda: seconds_of(plain.load),
        "score": lambda: seconds_of(plain.score),
    }


def build_long_video(is_plain: bool, n_clips: int) -> dict[str, Callable[[], object]]:
    """A process that says how much memory (GiB) the scoring of one long video adds to it, in
    fp32."""
    net = MGFN().eval()
    features = VideoFeatures(
        ["long"], np.zeros((n_clips, 1, FEATURE_DIM + 1), np.float32), np.array([0, n_clips])
    )
    short = VideoFeatures(["short"], features.data[:8], np.array([0, 8]))

    def score(videos: VideoFeatures) -> None:
        if is_plain:
            with torch.no_grad():
                plain_forward(net, torch.from_numpy(videos.bag(0)[None].copy()))
        else:
            score_videos(net, videos, torch.device("cpu"), PAPER.clips_per_pass)

    def peak() -> float:
        score(short)
        before = peak_mib()
        score(features)
        return (peak_mib() - before) / 1024

    return {"peak": peak}


def compare_metrics(
    scores: list[np.ndarray], truths: list[VideoTruth], labels: list[np.ndarray]
) -> dict[str, float]:
    """Median seconds of both ways to the metrics, which must agree."""
    seconds = rounds_in_turns(
        {
            "metrics_ours": lambda: seconds_of(lambda: weighted_scores(scores, truths).metrics()),
            "metrics_plain": lambda: seconds_of(lambda: list_metrics(scores, labels)),
        },
        n_rounds=3,
    )
    ours, plain = weighted_scores(scores, truths).metrics(), list_metrics(scores, labels)
    if not np.allclose((ours.roc_auc, ours.pr_auc), plain, atol=1e-9, rtol=0):
        raise SystemExit(f"the metrics disagree: {ours} and {plain}")
    return medians(seconds)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of everything, and the memory of a long video."""
    files = write_features(folder, options.scale)
    found = {}
    for side in ("ours", "plain"):
        with ChildProcess(build_long_video, side == "plain", options.long_clips) as child:
            found[f"long_video_gib_{side}"] = child.call("peak")
    with ChildProcess(build_plain, files) as child:
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
        found["processor_ours"] = statistics.median(ours.processor_seconds)
    found |= ours.score_differences()
    return found | compare_metrics(ours.score(), ours.truths, files.labels)


def main(argv: list[str] | None = None) -> int:
    """Writes the features, measures and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of UCF-Crime's videos, in (0, 1]"
    )
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each side")
    parser.add_argument(
        "--long_clips",
        type=int,
        default=LONGEST,
        help="length of the video whose memory is measured",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of one operation; 0: the library's choice"
    )
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    pairs = {
        "epoch_with_evaluation": "epoch",
        "loading": "loading",
        "metrics": "metrics",
        "evaluation": "score",
    }
    ratios = {key: found[f"{name}_plain"] / found[f"{name}_ours"] for key, name in pairs.items()}
    for key, ratio in ratios.items():
        name = pairs[key]
        print(
            f"{key:22} plain {found[f'{name}_plain']:9.4f} s, ours {found[f'{name}_ours']:9.4f} s: {ratio:7.1f}x"
        )
    unit = {name: "" if name.startswith(("long", "difference")) else "_seconds" for name in found}
    figures = {f"{name}{unit[name]}": value for name, value in found.items()}
    figures["processor_ratio_epoch"] = found["processor_plain"] / found["processor_ours"]
    print(f"{figures['processor_ratio_epoch']:.2f} x for an epoch by seconds on the processor")
    figures |= {
        "scale": options.scale,
        "rounds": options.rounds,
        "long_video_clips": options.long_clips,
    }
    print(json_line("mgfn", ratios, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
