"""Loading clips and images: frame-exact reading against a plain loop that decodes all of a file.

For each format, one 16-frame clip (stride 2) from a random place of a rendered file, by one worker
and one thread. Both sides run in turns in the same process, whose allocator keeps freed memory as
in our loading processes; figures are medians. Frame indices are in memory already, as in every
epoch but the first. The cost of a clip in ten minutes of H.264 is compared with decoding 16 frames
and one group of pictures from the file's start.

`samples`: how fast a loading process hands over the data of a step of anonymizer training (8 videos
with 3 clips each, two views of 12 images) as uint8 crops, which the training's device augments,
against one that augments and hands over float32 views, as commit c45b28e did; both decode with
ours. `shared_memory_share` is bytes over bytes, of triplets or of LLTC's clips, whichever is more.

`workers_needed`: loading processes that keep a GPU busy on paper, the seconds of one of them for a
step's data over those of the step (see --step_seconds).
"""

import copy
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anonymization_training.params_anonymization import TRAIN_ANONYMIZER
from anonymization_training.training_batches import (
    BatchSource,
    augmented,
    clip_source,
    collate,
    image_source,
)
from aux_code.datasets.clip_sampling import random_clip
from aux_code.datasets.decode import DecodedCache, count_frames, read_frames, read_image
from aux_code.datasets.image_files import frame_files
from aux_code.datasets.transforms import Policy, augment_batch
from aux_code.datasets.ucf101 import Ucf101Item
from aux_code.devices import keep_freed_memory
from aux_code.runs import seeded_generator
from benchmarks import machine
from benchmarks.machine import median_seconds, medians, rounds_in_turns, seconds_of, write_video

PAPER = TRAIN_ANONYMIZER["paper"]
"""One step of anonymizer training: 8 videos with 3 clips each, 12 images (paper and release)."""

STEP_SECONDS = 44.0 / 88.0
"""TFLOP of its step over TFLOP/s in bf16 that a data-centre GPU may sustain: an assumption.

f_A takes 24.6 GFLOP for each of 384 frames, three times in step 1 (forward and backward) and once
in step 2; I3D 32.8 for each of 24 clips, forward and backward, twice; f_B is small."""
N_BATCHES = 4
"""In a row from one loading process, which the first of them starts."""
GROUP_OF_PICTURES = 250
"""Frames from one key frame to the next in the rendered H.264, as the encoder has it by default."""


class Format(NamedTuple):
    """A file to render; a folder of JPEG frames has no codec. Its `options` are the encoder's."""

    suffix: str
    codec: str
    options: dict[str, str]
    n_frames: int
    height: int = 240
    width: int = 320


_H264 = {"g": str(GROUP_OF_PICTURES), "bf": "2", "preset": "veryfast"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "128"}
FORMATS = {
    "h264_mp4": Format(".mp4", "libx264", _H264, 1500),
    "mpeg4_avi": Format(".avi", "mpeg4", {}, 186),
    "mjpeg_avi": Format(".avi", "mjpeg", {}, 186),
    "vp9_webm": Format(".webm", "libvpx-vp9", _VP9, 600),
    "jpeg_folder": Format("", "", {}, 200, 480, 856),
}
OPTIONS = {
    "rounds": (9, "clips read per format"),
    "formats": (tuple(FORMATS), "which; default: all"),
    "step_seconds": (STEP_SECONDS, "duration of the GPU step to feed; default: 44 TFLOP at 88/s"),
    "minutes": (10, "length of the H.264 video of the random access"),
}


def texture(height: int, width: int) -> Image.Image:
    """A smooth random texture, so that it costs what real images cost to decode."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def moving_frames(spec: Format):
    """Frames uint8 (H, W, 3) of a texture that moves."""
    pixels = np.asarray(texture(spec.height + 256, spec.width + 256))
    for i in range(spec.n_frames):
        y, x = (3 * i) % 256, (5 * i) % 256
        yield np.ascontiguousarray(pixels[y : y + spec.height, x : x + spec.width])


def render(name: str, spec: Format, folder: Path) -> Path:
    """Writes the file or folder of a format."""
    path = folder / f"{name}{spec.suffix}"
    if spec.codec:
        return write_video(path, moving_frames(spec), spec.codec, 1_000_000, **spec.options)
    path.mkdir()
    for i, frame in enumerate(moving_frames(spec)):
        Image.fromarray(frame).save(path / f"{i:03d}.jpg", quality=90)
    return path


def plain_read(path: Path, indices: np.ndarray) -> np.ndarray:
    """The baseline: decode everything, then index."""
    if path.is_dir():
        return np.stack([read_image(file) for file in frame_files(path)])[indices]
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)[indices]


def time_readers(path: Path, n_rounds: int) -> dict[str, float]:
    """Median seconds per clip of each reader; in a round both read the same clip, in turns."""
    n_frames, readers = count_frames(path), {"ours": read_frames, "plain": plain_read}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for i in range(n_rounds):
        indices, clips = random_clip(n_frames, 16, 2, seeded_generator("clip", i)), {}
        for name in list(readers)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            clips[name] = readers[name](path, indices)
            seconds[name].append(time.perf_counter() - start)
        if not np.array_equal(clips["ours"], clips["plain"]):
            raise SystemExit(f"{path.name}: the two readers disagree on frames {indices.tolist()}")
    return medians(seconds)


def random_access_cost(path: Path, n_rounds: int) -> float:
    """Seconds of 16 frames at a random place over those of the first 16 + one group of pictures."""
    n_frames = count_frames(path)

    def from_the_start() -> None:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for i, frame in enumerate(islice(container.decode(video=0), 16 + GROUP_OF_PICTURES)):
                if i < 16:
                    frame.to_ndarray(format="rgb24")

    places = (seeded_generator("place", i) for i in range(n_rounds))
    clips = (random_clip(n_frames, 16, 1, place) for place in places)
    measures = {
        "random": lambda: seconds_of(lambda: read_frames(path, next(clips))),
        "start": lambda: seconds_of(from_the_start),
    }
    seconds = medians(rounds_in_turns(measures, n_rounds))
    return seconds["random"] / seconds["start"]


def plain_collate(samples: list, size: int, policy: Policy) -> tuple[Tensor, list]:
    """The baseline: views (K, B, 3, T, size, size) in [0, 1], made where they are decoded."""
    views = range(len(samples[0].of_view))
    clips = [sample.clips[sample.of_view[k]].copy() for k in views for sample in samples]
    generators = [seeded_generator(*sample.keys, k) for k in views for sample in samples]
    made = augment_batch(clips, policy, size, generators)
    return made.unflatten(0, (len(views), len(samples))), []


def loading_step(folder: Path, video: Path, n_rounds: int) -> tuple[dict, dict]:
    """Ratios and figures of the data of a training step, by the stage's own batches."""
    image = folder / "image.jpg"
    texture(768, 1024).save(image, quality=90)
    params = replace(PAPER, n_workers=1, cache_megabytes=0)
    cache, videos = DecodedCache(0), [Ucf101Item(video, 1, 1)] * params.batch_videos
    clips, lltc = (clip_source(videos, k, params, cache, folder) for k in ("triplet", "lltc"))
    images = image_source([image] * params.batch_images, params, cache, folder)
    of_clips, of_images = (loading_seconds(source, n_rounds) for source in (clips, images))
    sums = {side: of_clips[side] + of_images[side] for side in of_clips}
    figures = handed_over(clips, "triplet") | handed_over(lltc, "lltc")
    shares = [
        figures[f"{views}_mb"] / figures[f"{views}_plain_mb"] for views in ("triplet", "lltc")
    ]
    ratios = {"samples": sums["plain"] / sums["ours"]}
    ratios |= {"samples_clips": of_clips["plain"] / of_clips["ours"]}
    ratios |= {"samples_images": of_images["plain"] / of_images["ours"]}
    return ratios, figures | {
        "shared_memory_share": max(shares),
        "images_per_second_per_worker": 1 / median_seconds(lambda: read_image(image), n_rounds),
        "clip_batch_seconds_per_worker": of_clips["ours"],
        "clip_batch_plain_seconds_per_worker": of_clips["plain"],
        "image_batch_seconds_per_worker": of_images["ours"],
        "image_batch_plain_seconds_per_worker": of_images["plain"],
        "seconds_per_paper_step_per_worker": sums["ours"],
        "clip_batch_augmenting_seconds": augmenting_seconds(clips),
    }


def loading_seconds(source: BatchSource, n_rounds: int) -> dict[str, float]:
    """Median seconds from one batch to the next of each side's process, in turns."""
    plain = copy.copy(source)
    plain.collate = partial(plain_collate, **source.how)
    sides = {"ours": source, "plain": plain}
    measures = {side: partial(seconds_per_batch, own) for side, own in sides.items()}
    return medians(rounds_in_turns(measures, n_rounds))


def seconds_per_batch(source: BatchSource) -> float:
    """From one batch to the next, while they are only taken."""
    batches = source.crops(0, N_BATCHES)
    next(batches)
    return seconds_of(lambda: list(batches)) / (N_BATCHES - 1)


def handed_over(source: BatchSource, name: str) -> dict[str, float]:
    """Megabytes of a batch, and of its views in float32."""
    crops = next(source.crops(0, 1))
    n_values = crops.draws[..., 0].numel() * crops.places[0][0][0] * 3 * source.how["size"] ** 2
    return {f"{name}_mb": crops.pixels.nbytes / 1e6, f"{name}_plain_mb": 4 * n_values / 1e6}


def augmenting_seconds(source: BatchSource) -> float:
    """What the training's device does instead, here on the CPU; stops if views differ."""
    samples = [source.samples[0, i] for i in range(len(source.samples))]
    crops, start = collate(samples, **source.how)[0], time.perf_counter()
    views = augmented(crops, **source.how, device=torch.device("cpu")).clips
    seconds = time.perf_counter() - start
    if not torch.equal(views, plain_collate(samples, **source.how)[0]):
        raise SystemExit("the two sides of the loading for training disagree")
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Renders the files, times the readers and ends with one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{machine.describe_machine()}, PyAV {av.__version__}, one worker")
    ratios, figures = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {name: render(name, FORMATS[name], folder) for name in options.formats}
        for name, path in files.items():
            seconds = time_readers(path, options.rounds)
            ratios[name] = seconds["plain"] / seconds["ours"]
            for reader, of_clip in seconds.items():
                figures[f"{name}_{reader}_clips_per_second"] = 1 / of_clip
                print(f"{name:12} {reader:8} {1 / of_clip:7.1f} clips/s")
        if "h264_mp4" in files:
            spec = FORMATS["h264_mp4"]._replace(n_frames=1500 * options.minutes)
            cost = random_access_cost(render("long", spec, folder), options.rounds)
            figures["h264_random_access_over_16_frames_and_a_group"] = cost
            print(f"anywhere in {options.minutes} minutes: {cost:.2f} of that from the start")
        # UCF101, on which the anonymizer is trained, is MPEG-4 in AVI
        video = files.get("mpeg4_avi") or render("mpeg4_avi", FORMATS["mpeg4_avi"], folder)
        of_step = loading_step(folder, video, options.rounds)
        ratios, figures = ratios | of_step[0], figures | of_step[1]
    workers = figures["seconds_per_paper_step_per_worker"] / options.step_seconds
    figures |= {"step_seconds": options.step_seconds, "workers_needed": workers}
    print(f"{ratios['samples']:.1f} times the samples per second and worker")
    print(f"a step of {options.step_seconds} s needs {workers:.1f} workers")
    print(machine.json_line("data_loading", ratios, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
