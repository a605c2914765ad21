"""Loading clips and images: frame-exact reading against a plain loop that decodes all of a file and
then indexes.

For each format, one 16-frame clip (stride 2) from a random place of a rendered file, by one worker
and one thread. All sides run in turns in the same process, whose allocator keeps freed memory as in
our loading processes; the figures are medians. Frame indices are in memory already, as in every
epoch but the first. OpenCV is timed too where it is installed (pip install opencv-python-headless): with
one decoding thread like the others, and with as many as it takes by itself; `*_opencv_same_frames`
is the share of clips in which it read the frames that were asked for. The cost of a clip in ten
minutes of H.264 is compared with decoding 16 frames and one group of pictures from the file's
start.

`workers_needed` is the number of loading processes that keep a GPU busy on paper: seconds in which
one process loads a batch of the paper's anonymizer training (8 videos with 3 clips each, two views
of 12 images; decoded, augmented, handed over) over the seconds of a training step on a GPU (by
default an assumption: see --step_seconds).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch
from PIL import Image

from anonymization_training.params_anonymization import TRAIN_ANONYMIZER
from anonymization_training.training_batches import BatchSource, Sampling, clip_source, image_source
from aux_code.datasets.clip_sampling import random_clip
from aux_code.datasets.decode import DecodedCache, count_frames, read_frames, read_image
from aux_code.datasets.image_files import frame_files
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.devices import keep_freed_memory
from aux_code.runs import seeded_generator
from benchmarks.machine import (
    describe_machine,
    json_line,
    median_seconds,
    medians,
    rounds_in_turns,
    seconds_of,
)

PAPER = TRAIN_ANONYMIZER["paper"]
"""One step of anonymizer training: 8 videos with 3 clips each, 12 images (paper and release)."""

STEP_TFLOP = 44.0
"""Its operations: f_A on 384 frames of 24.6 GFLOP, three times in step 1 (forward and backward) and
once in step 2; I3D on 24 clips of 32.8 GFLOP, forward and backward, twice; f_B is small."""
STEP_RATE = 88.0
"""TFLOP/s that a data-centre GPU may sustain on it in bf16: an assumption, not a measurement."""
GROUP_OF_PICTURES = 250
"""Frames from one key frame to the next in the rendered H.264, as the encoder has it by default."""


class Format(NamedTuple):
    """A file to render: encoder, options, frames, height, width. A folder of JPEG frames has no
    encoder."""

    suffix: str
    codec: str
    options: dict[str, str]
    n_frames: int
    height: int
    width: int


FORMATS = {
    "h264_mp4": Format(
        ".mp4",
        "libx264",
        {"g": str(GROUP_OF_PICTURES), "bf": "2", "preset": "veryfast"},
        1500,
        240,
        320,
    ),
    "mpeg4_avi": Format(".avi", "mpeg4", {}, 186, 240, 320),
    "mjpeg_avi": Format(".avi", "mjpeg", {}, 186, 240, 320),
    "vp9_webm": Format(
        ".webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "128"}, 600, 240, 320
    ),
    "jpeg_folder": Format("", "", {}, 200, 480, 856),
}


def moving_frames(spec: Format):
    """Frames uint8 (H,W,3) with texture that moves, so that they cost what real ones cost to
    decode."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (spec.height // 8 + 40, spec.width // 8 + 40, 3), dtype=np.uint8)
    texture = np.asarray(
        Image.fromarray(coarse).resize(
            (spec.width + 256, spec.height + 256), Image.Resampling.BICUBIC
        )
    )
    for i in range(spec.n_frames):
        y, x = (3 * i) % 256, (5 * i) % 256
        yield texture[y : y + spec.height, x : x + spec.width]


def render(name: str, spec: Format, folder: Path) -> Path:
    """Writes the file or folder of a format."""
    path = folder / f"{name}{spec.suffix}"
    if not spec.codec:
        path.mkdir()
        for i, frame in enumerate(moving_frames(spec)):
            Image.fromarray(frame).save(path / f"{i:03d}.jpg", quality=90)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(spec.codec, rate=25, options=spec.options)
        stream.height, stream.width, stream.bit_rate = spec.height, spec.width, 1_000_000
        stream.pix_fmt = "yuvj420p" if spec.codec == "mjpeg" else "yuv420p"
        for frame in moving_frames(spec):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain_read(path: Path, indices: np.ndarray) -> np.ndarray:
    """The baseline: decode everything, then index."""
    if path.is_dir():
        return np.stack([read_image(file) for file in frame_files(path)])[indices]
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])[
            indices
        ]


def opencv_read(n_threads: int) -> Callable[[Path, np.ndarray], np.ndarray] | None:
    """Reading by OpenCV, which seeks by its own idea of a frame number; None where it is not
    installed.

    Args:
        n_threads: that decode; 0: as many as it likes.
    """
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    options = [cv2.CAP_PROP_N_THREADS, n_threads] if n_threads else []

    def read(path: Path, indices: np.ndarray) -> np.ndarray:
        if path.is_dir():
            files = frame_files(path)
            return np.stack(
                [cv2.cvtColor(cv2.imread(str(files[i])), cv2.COLOR_BGR2RGB) for i in indices]
            )
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, options)
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(indices[0]))
        wanted, frames = set(indices.tolist()), []
        for i in range(indices[0], indices[-1] + 1):
            capture.grab()
            if i in wanted:
                frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        return np.stack(frames)

    return read


class Timed(NamedTuple):
    """One format's readers."""

    seconds: dict[str, float]
    """Reader -> median seconds per clip."""
    same_frames: dict[str, float]
    """Reader -> share of clips that hold the frames that ours holds, however they were converted to
    RGB."""


def time_readers(path: Path, readers: dict[str, Callable], n_rounds: int) -> Timed:
    """Times the readers; in every round all of them read the same clip, in turns."""
    n_frames = count_frames(path)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    same: dict[str, list[bool]] = {name: [] for name in readers}
    for i in range(n_rounds):
        indices = random_clip(n_frames, 16, 2, seeded_generator("clip", i))
        clips = {}
        for name, read in list(readers.items())[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            clips[name] = read(path, indices)
            seconds[name].append(time.perf_counter() - start)
        if not np.array_equal(clips["ours"], clips["plain"]):
            raise SystemExit(f"{path.name}: the two readers disagree on frames {indices.tolist()}")
        for name, clip in clips.items():
            # A neighbouring frame of the moving texture differs by tens of grey levels, another
            # conversion by few.
            same[name].append(float(np.abs(clip.astype(np.int16) - clips["ours"]).mean()) < 5)
    return Timed(medians(seconds), {name: float(np.mean(shares)) for name, shares in same.items()})


def repeat_stream(path: Path, times: int) -> Path:
    """The same video several times in a row, without encoding again."""
    longer = path.with_name(f"{path.stem}_{times}_times{path.suffix}")
    with av.open(str(longer), "w") as output:
        target = None
        for k in range(times):
            with av.open(str(path)) as source:
                stream = source.streams.video[0]
                target = target or output.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts = (
                            packet.pts + k * stream.duration,
                            packet.dts + k * stream.duration,
                        )
                        packet.stream = target
                        output.mux(packet)
    return longer


def random_access_cost(path: Path, n_rounds: int) -> float:
    """Seconds for 16 frames at a random place over seconds for the file's first 16 frames + one
    group of pictures."""
    n_frames = count_frames(path)

    def from_the_start() -> None:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for i, frame in enumerate(islice(container.decode(video=0), 16 + GROUP_OF_PICTURES)):
                if i < 16:
                    frame.to_ndarray(format="rgb24")

    clips = iter(
        random_clip(n_frames, 16, 1, seeded_generator("place", i)) for i in range(n_rounds)
    )
    measures = {
        "random": lambda: seconds_of(lambda: read_frames(path, next(clips))),
        "start": lambda: seconds_of(from_the_start),
    }
    seconds = medians(rounds_in_turns(measures, n_rounds))
    return seconds["random"] / seconds["start"]


def loading_step(folder: Path, video: Path, n_rounds: int) -> dict[str, float]:
    """What one loading process needs for the data of one training step, with the stage's own
    batches."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    coarse.resize((1024, 768), Image.Resampling.BICUBIC).save(folder / "image.jpg", quality=90)
    image_read = median_seconds(lambda: read_image(folder / "image.jpg"), n_rounds)
    params = replace(PAPER, n_workers=1, cache_megabytes=0)
    sampling = Sampling(
        params.clip_length, params.stride, params.size, params.utility_loss, params.negative_distance,
        params.augmentation, params.seed,
    )  # fmt: skip
    cache = DecodedCache(0)
    clips = clip_source(
        [Ucf101Item(video, 1, 1)] * params.batch_videos, sampling, cache, params, folder
    )
    images = image_source([folder / "image.jpg"] * params.batch_images, cache, params, folder)
    clip_seconds, image_seconds = (
        seconds_per_batch(clips, n_rounds),
        seconds_per_batch(images, n_rounds),
    )
    return {
        "images_per_second_per_worker": 1 / image_read,
        "clip_batch_seconds_per_worker": clip_seconds,
        "image_batch_seconds_per_worker": image_seconds,
        "seconds_per_paper_step_per_worker": clip_seconds + image_seconds,
    }


def seconds_per_batch(source: BatchSource, n_rounds: int) -> float:
    """Median seconds from one batch to the next, while nothing else is done with them than to take
    them."""
    batches = iter(source.batches(0, n_rounds + 2))
    next(batches)  # the process starts
    return median_seconds(lambda: next(batches), n_rounds)


def describe_format(name: str, timed: Timed) -> dict[str, float]:
    """Figures of one format, printed too."""
    rates = {reader: 1 / seconds for reader, seconds in timed.seconds.items()}
    figures = {f"{name}_{reader}_clips_per_second": rate for reader, rate in rates.items()}
    for reader in [reader for reader in rates if reader not in ("ours", "plain")]:
        figures[f"{name}_times_{reader}"] = rates["ours"] / rates[reader]
        figures[f"{name}_{reader}_same_frames"] = timed.same_frames[reader]
    print(
        f"{name:12}" + "".join(f"  {reader} {rate:7.1f} clips/s" for reader, rate in rates.items())
    )
    return figures


def main(argv: list[str] | None = None) -> int:
    """Renders the files, times the readers and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="clips read per format")
    parser.add_argument(
        "--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="FORMAT"
    )
    parser.add_argument(
        "--step_seconds", type=float, default=STEP_TFLOP / STEP_RATE,
        help=f"duration of the GPU training step to feed; by default {STEP_TFLOP:.0f} TFLOP at {STEP_RATE:.0f} TFLOP/s",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=int, default=10, help="length of the H.264 video of the random access"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{describe_machine()}, PyAV {av.__version__}, one worker")
    readers = {"ours": read_frames, "plain": plain_read}
    if opencv_read(1) is None:
        print("OpenCV is not installed: left out")
    else:
        readers |= {"opencv": opencv_read(1), "opencv_all_threads": opencv_read(0)}
    ratios, figures = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: render(name, FORMATS[name], Path(folder)) for name in options.formats}
        for name, path in files.items():
            timed = time_readers(path, readers, options.rounds)
            ratios[name] = timed.seconds["plain"] / timed.seconds["ours"]
            figures |= describe_format(name, timed)
            if name == "h264_mp4":
                cost = random_access_cost(repeat_stream(path, options.minutes), options.rounds)
                figures["h264_random_access_over_16_frames_and_a_group"] = cost
                print(
                    f"{'':12}  in {options.minutes} minutes: {cost:.2f} of 16 frames and a group from the start"
                )
        # UCF101, on which the anonymizer is trained, is MPEG-4 in AVI.
        video = files.get("mpeg4_avi") or render("mpeg4_avi", FORMATS["mpeg4_avi"], Path(folder))
        figures |= loading_step(Path(folder), video, options.rounds)
    workers = figures["seconds_per_paper_step_per_worker"] / options.step_seconds
    figures |= {"step_seconds": options.step_seconds, "workers_needed": workers}
    print(
        f"{PAPER.batch_videos} videos x 3 clips and {PAPER.batch_images} images x 2 in {options.step_seconds} s need "
        f"{workers:.1f} workers; the preset has {PAPER.n_workers} for clips and {PAPER.n_workers} for images"
    )
    print(json_line("data_loading", ratios, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
