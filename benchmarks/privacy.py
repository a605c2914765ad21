"""An epoch of the privacy attack at full size, f_A and a ResNet-50 attacker, against a plain loop.

The plain loop sends every image through f_A (unet++) in every epoch, in the attacker's own loop:
eager, fp32, NCHW, in a process of its own with the default allocator. Ours runs f_A once before the
first epoch, in its inference form, and trains the attacker on what was released: channels-last, in
the device's precision, freed memory kept. Both take the same batches and the same views of the
released images, so in fp32 their losses agree (a test compares them).

`epoch` counts our release too, divided by the epochs that it serves (`--epochs`, the paper's 100);
without it the ratio is `epoch_without_release`, and `first_epoch` is an epoch with a whole release
before it: what a single epoch would gain. The images are decoded beforehand on both sides: the
plain loop would also decode them in every epoch, ours once, which is not counted. A random f_A is
released several times (`n_releases` of the parameters); multiply `release_seconds` by that.
Evaluation, which the plain loop would anonymize for as well, is left out.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.devices import prepare_for_training
from aux_code.model_loaders import load_fa_model, load_fb_model
from aux_code.runs import Run, seeded_generator
from benchmarks import machine
from benchmarks.machine import ChildProcess, medians, rounds_in_turns, seconds_of
from privacy_training.attribute_prediction import augment_released, build_attack, train_epoch
from privacy_training.params_privacy import PRESETS, PrivacyParams
from privacy_training.released_images import ReleasedImages, Releaser

N_ATTRIBUTES = 7
OPTIONS = {
    "images": (64, "images per epoch; batches hold 32, the paper's"),
    "size": (224, "height and width of the images in pixels"),
    "rounds": (3, "epochs of each side that count"),
    "epochs": (100, "epochs that one release serves"),
    "threads": machine.THREADS,
}


def parameters(precision: str = "auto") -> PrivacyParams:
    """The paper's attack, at its full learning rate from the first step."""
    return replace(PRESETS["paper"], warmup_epochs=0, precision=precision, seed=0)


def networks() -> tuple[nn.Module, nn.Module]:
    """Frozen f_A and a fresh attacker, with the same random weights in every process."""
    torch.manual_seed(0)
    anonymizer = load_fa_model(sigmoid=True).eval().requires_grad_(False)
    return anonymizer, load_fb_model(num_pa=N_ATTRIBUTES)


def labelled_frames(n_images: int, size: int) -> tuple[Tensor, Tensor]:
    """(frames (n, 3, size, size) in [0, 1], labels (n, 7) in {0, 1}), the same in every process."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(n_images, 3, size, size, generator=generator)
    return frames, (torch.rand(n_images, N_ATTRIBUTES, generator=generator) < 0.3).float()


class PlainLoop:
    """f_A in the attacker's loop."""

    def __init__(self, n_images: int, size: int):
        self.params = parameters()
        self.anonymizer, self.net = networks()
        self.frames, self.labels = labelled_frames(n_images, size)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.params.learning_rate)
        self.n_epochs = 0

    def train_epoch(self) -> float:
        """One pass over the images; their mean loss."""
        self.net.train()
        seed, epoch = self.params.seed, self.n_epochs
        order = torch.randperm(len(self.frames), generator=seeded_generator(seed, "order", epoch))
        total = 0.0
        for i, batch in enumerate(order.split(self.params.batch_size)):
            with torch.no_grad():
                released = self.anonymizer(self.frames[batch])
            generator = seeded_generator(seed, "views", epoch, i)
            views = augment_released(released, self.params, generator).contiguous()
            loss = F.binary_cross_entropy_with_logits(self.net(views), self.labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += len(batch) * loss.item()
        self.n_epochs += 1
        return total / len(order)


class OurStage:
    """What train_privacy.py does: a release, then epochs on it."""

    def __init__(self, n_images: int, size: int, folder: Path, precision: str = "auto"):
        self.params = parameters(precision)
        anonymizer, net = networks()
        self.frames, self.labels = labelled_frames(n_images, size)
        run = Run("benchmark", "train_privacy", folder, torch.device("cpu"))
        self.attack = build_attack(prepare_for_training(net, run.device), self.params, run)
        storage = getattr(torch, self.params.storage) if precision == "auto" else torch.float32
        self.releaser = Releaser(anonymizer, run.device, storage=storage)
        self.images: ReleasedImages

    def release(self) -> None:
        """All images through f_A, once."""
        parts = self.frames.split(self.params.release_batch)
        parts = [self.releaser(part, None, [Path("drawn")] * len(part)) for part in parts]
        self.images = ReleasedImages([torch.cat(parts)], self.labels)

    def train_epoch(self) -> float:
        """One pass over the released images; their mean loss."""
        self.attack.history.append(train_epoch(self.attack, self.images, len(self.attack.history)))
        return self.attack.history[-1]["train_loss"]


def build_plain(n_images: int, size: int) -> dict[str, Callable[[], float]]:
    """What the child process of the plain loop can be asked for."""
    plain = PlainLoop(n_images, size)
    return {"epoch": lambda: seconds_of(plain.train_epoch)}


def measure(n_images: int, size: int, n_rounds: int) -> dict[str, float]:
    """Median seconds of plain epoch, release and our epoch, after a round that does not count."""
    with tempfile.TemporaryDirectory() as name, ChildProcess(build_plain, n_images, size) as child:
        ours = OurStage(n_images, size, Path(name))
        measures = {
            "plain": partial(child.call, "epoch"),
            "release": partial(seconds_of, ours.release),
            "ours": partial(seconds_of, ours.train_epoch),
        }
        rounds_in_turns(measures, n_rounds=1)
        return medians(rounds_in_turns(measures, n_rounds))


def main(argv: list[str] | None = None) -> int:
    """Measures both sides in turns and ends with one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    sizes = f"{options.images} images of {options.size} pixels, {options.rounds} rounds"
    print(f"{machine.describe_machine()}; {sizes}")
    found = measure(options.images, options.size, options.rounds)
    plain, release, ours = found["plain"], found["release"], found["ours"]
    seconds = {"epoch": ours + release / options.epochs, "epoch_without_release": ours}
    seconds["first_epoch"] = ours + release
    ratios = {key: plain / value for key, value in seconds.items()}
    print(f"plain epoch {plain:.2f} s; ours {ours:.2f} s after a release of {release:.2f} s")
    for key, ratio in ratios.items():
        print(f"{key:22} {ratio:6.2f}x")
    figures = {f"{name}_seconds": value for name, value in found.items()}
    figures |= {name: getattr(options, name) for name in ("images", "size", "rounds", "epochs")}
    print(machine.json_line("privacy", ratios, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
