"""Both steps of the anonymizer training against a plain version at 112 and 224 pixels.

Full-size networks (UNet++, I3D-ResNet50, ResNet-50), 2 videos x 3 clips x 16 frames and 4 images x
2 views; at further sizes fewer videos and images, and for speed shorter clips, so that a batch has
about as many pixels. The plain version is eager fp32 in contiguous layout (NCHW) with the C
library's default allocator, and computes the gradients of every network in both steps. Ours is
`anonymization_training.minimax` as train_anonymizer.py calls it. Both work in processes of their
own and take turns; seconds are medians. Memory is the highest of a fresh process, of one after the
other.

Speed and memory are those of one setting, the preset `paper`: f_A's activations are computed again
in the backward pass, 16 frames at a time (--recompute_chunk 0 keeps them: faster and larger).
`pair_*_against_no_grad` compares with a plain version that at least runs f_A without gradient in
step 2, as the release does.

The batch that fits a GPU is computed, if 224 pixels are among the sizes: from the highest memory
here with one and with two videos of that size and the paper's 12 images, in bf16 where the CPU has
it, follows what a video adds and what is there without one.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anonymization_training import minimax
from anonymization_training.minimax import Networks
from anonymization_training.params_anonymization import PAPER
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code.devices import prepare_for_training, supports_bf16
from aux_code.losses.nt_xent import nt_xent_loss
from aux_code.losses.temporal import temporally_distinct_loss
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model
from aux_code.models.anonymizers import as_8_bit
from benchmarks import machine
from benchmarks.machine import ChildProcess, medians, peak_mib, rounds_in_turns, seconds_of

STEP = replace(PAPER, budget_positives="views", gradient_clip=1.0)
"""The paper's step with images' views as positives, and clipped: that of `ours`."""

CPU = torch.device("cpu")
CORNER = 64
"""Pixels of the frames on which both steps are taken once before memory counts, for the moments."""

Sizes = tuple[int, int, int, int]
"""Pixels, videos, frames of a clip, images."""

OPTIONS = {
    "sizes": ([112, 224], "pixels; the first gives the ratios"),
    "videos": (2, "per batch, three clips each"), "frames": (16, "per clip"),
    "images": (4, "per batch, two views each"), "rounds": (3, "of all sides in turns"),
    "recompute_chunk": (STEP.recompute_chunk, "frames; 0 keeps all"),
    "memory": (True, "measure peak memory"),
}  # fmt: skip


def build_networks() -> Networks:
    """The paper's architectures with random weights, the same in every process."""
    torch.manual_seed(0)
    fa, ft = load_fa_model("unet++"), load_ft_model("largei3d")
    return Networks(fa, ft, load_fb_model("r50", ssl=True))


def build_batches(sizes: Sizes) -> tuple[ClipBatch, ImageBatch]:
    """Random pixels: anchor, positive and negative of each video, two views of each image."""
    size, n_videos, n_frames, n_images = sizes
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(3, n_videos, 3, n_frames, size, size, generator=generator)
    images = torch.rand(2, n_images, 3, size, size, generator=generator)
    videos = tuple(f"video {i}" for i in range(n_videos))
    batch = ClipBatch(clips, torch.arange(n_videos), None, videos)
    return batch, ImageBatch(images, tuple(f"image {i}" for i in range(n_images)))


class PlainSteps:
    """The textbook form: one loss, one backward pass through everything, one optimizer each."""

    def __init__(self, clips: ClipBatch, images: ImageBatch):
        self.networks, self.clips, self.images = build_networks(), clips, images
        self.networks.fa.eval()  # its statistics are those of its initialisation
        players = [self.networks.fa, self.networks.ft.train(), self.networks.fb.train()]
        rate = STEP.learning_rate
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=rate) for net in players]

    def step_1(self) -> None:
        """f_A learns."""
        utility, budget = self.losses()
        (STEP.utility_weight * utility - STEP.budget_weight * budget).backward()
        nn.utils.clip_grad_norm_(self.networks.fa.parameters(), STEP.gradient_clip)
        self.learn(self.optimizers[:1])

    def step_2(self, gradient_of_fa: bool = True) -> None:
        """f_T and f_B learn; the gradient of f_A is computed, or not, and used by nobody."""
        utility, budget = self.losses(gradient_of_fa)
        (utility + budget).backward()
        self.learn(self.optimizers[1:])

    def learn(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Their steps; all gradients are forgotten."""
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def losses(self, gradient_of_fa: bool = True) -> tuple[Tensor, Tensor]:
        """L_T and L_B."""
        clips = self.clips.clips.flatten(0, 1)  # (K*B, 3, T, H, W)
        n_clips, _, n_frames = clips.shape[:3]
        frames = clips.transpose(1, 2).flatten(0, 1)  # (K*B*T, 3, H, W)
        with torch.set_grad_enabled(gradient_of_fa):
            released = as_8_bit(self.networks.fa(frames))  # (K*B*T, 3, H, W)
            released = released.unflatten(0, (n_clips, n_frames)).transpose(1, 2)
            images = as_8_bit(self.networks.fa(self.images.views.flatten(0, 1)))  # (2*N, 3, H, W)
        logits, embedding = self.networks.ft(released)
        n_videos = len(self.clips.labels)
        triplet = temporally_distinct_loss(*embedding.unflatten(0, (3, n_videos)), STEP.margin)
        utility = F.cross_entropy(logits[:n_videos], self.clips.labels) + STEP.omega * triplet
        return utility, nt_xent_loss(*self.networks.fb(images).chunk(2), STEP.temperature)


class OurSteps:
    """Those of the training."""

    def __init__(self, clips: ClipBatch, images: ImageBatch, precision: str, recompute_chunk: int):
        plain = build_networks()
        players = (prepare_for_training(net, CPU) for net in (plain.fa, plain.ft, plain.fb))
        self.networks, self.clips, self.images = Networks(*players), clips, images
        self.params = replace(STEP, precision=precision, recompute_chunk=recompute_chunk)
        self.updaters = minimax.build_updaters(self.networks, self.params, CPU)

    def step_1(self) -> dict[str, float]:
        """f_A learns."""
        what = (self.networks, self.clips, self.images, self.params)
        return minimax.step_anonymizer(*what, self.updaters.fa)

    def step_2(self) -> dict[str, float]:
        """f_T and f_B learn."""
        what = (self.networks, self.clips, self.images, self.params)
        return minimax.step_adversaries(*what, self.updaters)


def take_on_corner(steps: PlainSteps | OurSteps) -> None:
    """Both steps on a corner of the frames."""
    clips, images = steps.clips, steps.images
    steps.clips = clips._replace(clips=clips.clips[..., :CORNER, :CORNER])
    steps.images = images._replace(views=images.views[..., :CORNER, :CORNER])
    steps.step_1(), steps.step_2()
    steps.clips, steps.images = clips, images


def serve(kind: str, recompute_chunk: int, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """Built in a child process: name -> seconds of one call, or the peak memory in bytes."""
    batches = build_batches(sizes)
    steps = PlainSteps(*batches) if kind == "plain" else OurSteps(*batches, kind, recompute_chunk)
    no_grad = partial(steps.step_2, False) if kind == "plain" else steps.step_2
    timed = {"step_1": steps.step_1, "step_2": steps.step_2, "step_2_no_grad": no_grad}
    functions = {name: partial(seconds_of, step) for name, step in timed.items()}
    functions["corner"] = partial(take_on_corner, steps)
    return functions | {"peak": lambda: peak_mib() * 2**20}


def time_steps(
    sizes: Sizes, kinds: list[str], n_rounds: int, recompute_chunk: int
) -> dict[str, float]:
    """ "KIND STEP" -> median seconds, after one call of each that does not count."""
    pairs = [(kind, step) for kind in kinds for step in ("step_1", "step_2")]
    with machine.children({kind: (serve, kind, recompute_chunk, sizes) for kind in kinds}) as sides:
        measures = {
            f"{kind} {step}": partial(sides[kind].call, step)
            for kind, step in [*pairs, ("plain", "step_2_no_grad")]
        }
        for measure in measures.values():
            measure()
        return medians(rounds_in_turns(measures, n_rounds))


def peak_bytes(kind: str, recompute_chunk: int, sizes: Sizes) -> float:
    """Peak memory of a process that takes both steps, with the moments there from the start."""
    with ChildProcess(serve, kind, recompute_chunk, sizes) as child:
        for step in ("corner", "step_1", "step_2"):
            child.call(step)
        return child.call("peak")


def batch_sizes(size: int, options: argparse.Namespace, whole_clips: bool) -> Sizes:
    """Those with about as many pixels as a batch of the first size has, but 1 video and 2 images.

    Clips are shorter where one video is too much, unless they shall be whole.
    """
    share = min(1.0, (options.sizes[0] / size) ** 2)
    n_videos, n_images = (
        max(1, round(options.videos * share)),
        max(2, round(options.images * share)),
    )
    wanted = max(min(8, options.frames), round(options.frames * share * options.videos / n_videos))
    return size, n_videos, options.frames if whole_clips else min(options.frames, wanted), n_images


def describe(sizes: Sizes) -> str:
    """A batch in words."""
    pixels, n_videos, n_frames, n_images = sizes
    return f"{pixels} px: {n_videos} videos x 3 clips x {n_frames} frames, {n_images} images x 2"


def compare_speed(
    size: int, options: argparse.Namespace, kinds: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and figures of one frame size; prints a line for each step."""
    sizes = batch_sizes(size, options, whole_clips=False)
    seconds = time_steps(sizes, kinds, options.rounds, options.recompute_chunk)
    print(describe(sizes))
    ratios, figures = {}, {}
    for kind in kinds[1:]:
        key = f"pair_{kind}_{size}"
        pair = seconds[f"{kind} step_1"] + seconds[f"{kind} step_2"]
        ratios[key] = (seconds["plain step_1"] + seconds["plain step_2"]) / pair
        no_grad = seconds["plain step_1"] + seconds["plain step_2_no_grad"]
        figures[f"{key}_against_no_grad"] = no_grad / pair
        for step in ("step_1", "step_2"):
            plain, own = seconds[f"plain {step}"], seconds[f"{kind} {step}"]
            times = f"plain {plain:.2f} s, {kind} {own:.2f} s"
            print(f"{size} px, {step}: {times}, {plain / own:.2f} x faster")
    return ratios, figures


def compare_memory(size: int, options: argparse.Namespace, kinds: list[str]) -> dict[str, float]:
    """Peak of each kind as a share of the plain one's; prints gigabytes."""
    sizes = batch_sizes(size, options, whole_clips=True)
    peaks = {kind: peak_bytes(kind, options.recompute_chunk, sizes) for kind in kinds}
    shares = {kind: peak / peaks["plain"] for kind, peak in peaks.items()}
    each = (f"{kind} {peak / 1e9:.2f} GB ({shares[kind]:.0%})" for kind, peak in peaks.items())
    print(f"{describe(sizes)}: peak {', '.join(each)}")
    figures = {f"memory_share_{kind}_{size}": shares[kind] for kind in kinds[1:]}
    return {f"plain_gb_{size}": peaks["plain"] / 1e9} | figures


def fitting_batches(kind: str) -> dict[str, float]:
    """Videos per batch of the paper's preset that fit 24 and 141 GB; 90 % of the memory is used."""
    batches = [(STEP.size, n, STEP.clip_length, STEP.batch_images) for n in (1, 2)]
    one, two = (peak_bytes(kind, STEP.recompute_chunk, sizes) for sizes in batches)
    per_video = max(1.0, two - one)
    rest = one - per_video
    room = {gb: 0.9 * gb * 1e9 - rest for gb in (24, 141)}
    fits = {f"videos_in_{gb}_gb": float(max(0, int(x / per_video))) for gb, x in room.items()}
    per_size = f"{per_video / 1e9:.2f} GB per video of {STEP.size} px"
    print(f"{kind}: {rest / 1e9:.2f} GB and {per_size}: {fits}")
    return fits | {"gb_per_video": per_video / 1e9, "gb_without_videos": rest / 1e9}


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each step and size, then one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    print(machine.describe_machine())
    kinds = ["plain", "fp32"] + ["bf16"] * supports_bf16(CPU)
    ratios, figures = {}, {}
    for size in options.sizes:
        more_ratios, more_figures = compare_speed(size, options, kinds)
        ratios, figures = ratios | more_ratios, figures | more_figures
        if options.memory:
            figures |= compare_memory(size, options, kinds)
    first = {f"pair_{kind}": ratios[f"pair_{kind}_{options.sizes[0]}"] for kind in kinds[1:]}
    if options.memory:
        shares = [share for name, share in figures.items() if name.startswith("memory_share")]
        figures["memory_share"] = max(shares)
    if options.memory and STEP.size in options.sizes:
        figures |= fitting_batches(kinds[-1])
    print(machine.json_line("anonymization_step", first | ratios, figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
