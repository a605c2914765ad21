"""An epoch of the privacy attack at full size, f_A and a ResNet-50 attacker, against a plain loop.

Both send fresh crops of every image through f_A (unet++) in every epoch and train the attacker on
what comes out. The plain loop is eager, fp32 and NCHW, in a process of its own with the default
allocator; ours, `train_epoch` of the stage, has f_A in its inference form, the attacker
channels-last, both in the device's precision, and keeps freed memory. They take the same batches
and crops, so in fp32 they learn the same (a test compares them). The images are decoded beforehand
on both sides; evaluation is left out.
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

from aux_code.devices import precision_in_force, prepare_for_training
from aux_code.model_loaders import load_fa_model, load_fb_model
from aux_code.runs import Run, seeded_generator
from benchmarks import machine
from benchmarks.machine import ChildProcess, medians, rounds_in_turns, seconds_of
from privacy_training.attribute_prediction import build_attack, train_epoch
from privacy_training.params_privacy import PRESETS, PrivacyParams
from privacy_training.released_images import AUGMENTATIONS, Releaser, TrainingImages

N_ATTRIBUTES = 7
CPU = torch.device("cpu")
OPTIONS = {
    "images": (64, "images per epoch; batches hold 32, the paper's"),
    "size": (224, "height and width of the images in pixels"),
    "rounds": (3, "epochs of each side that count"),
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


def training_images(n_images: int, size: int, releaser: Releaser) -> TrainingImages:
    """Noise with random labels, the same in every process."""
    generator, policy = torch.Generator().manual_seed(1), AUGMENTATIONS["strong"]
    shape = (n_images, *2 * (round(size / policy.crop_factor[0]),), 3)
    sources = list(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
    labels = (torch.rand(n_images, N_ATTRIBUTES, generator=generator) < 0.3).float()
    files = [Path(f"{i}.jpg") for i in range(n_images)]
    return TrainingImages(sources, [], labels, files, [], releaser, policy, size)


class PlainLoop:
    """f_A as it was trained, in the attacker's loop."""

    def __init__(self, n_images: int, size: int):
        self.params = parameters()
        self.anonymizer, self.net = networks()
        self.images = training_images(n_images, size, Releaser(nn.Identity(), CPU))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.params.learning_rate)
        self.n_epochs = 0

    @torch.no_grad()
    def release(self, batch: list[int], epoch: int) -> Tensor:
        """What f_A makes of an epoch's crops, (n, 3, size, size)."""
        crops, _ = self.images.crops(batch, epoch)
        return (self.anonymizer(crops.contiguous()) * 255).round() / 255

    def train_epoch(self) -> float:
        """One pass over the images; their mean loss."""
        self.net.train()
        n, seed, epoch = len(self.images.files), self.params.seed, self.n_epochs
        order = torch.randperm(n, generator=seeded_generator(seed, "order", epoch))
        total = 0.0
        for batch in order.split(self.params.batch_size):
            logits = self.net(self.release(batch.tolist(), epoch))
            loss = F.binary_cross_entropy_with_logits(logits, self.images.labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += len(batch) * loss.item()
        self.n_epochs += 1
        return total / n


class OurStage:
    """What train_privacy.py does."""

    def __init__(self, n_images: int, size: int, folder: Path, precision: str = "auto"):
        anonymizer, net = networks()
        releaser = Releaser(anonymizer, CPU, precision=precision_in_force(precision, CPU))
        self.images = training_images(n_images, size, releaser)
        run = Run("benchmark", "train_privacy", folder, CPU)
        self.attack = build_attack(prepare_for_training(net, CPU), parameters(precision), run)

    def train_epoch(self) -> float:
        """One pass over the images; their mean loss."""
        self.attack.history.append(train_epoch(self.attack, self.images, len(self.attack.history)))
        return self.attack.history[-1]["train_loss"]


def build_plain(n_images: int, size: int) -> dict[str, Callable[[], float]]:
    """What the child process of the plain loop can be asked for."""
    plain = PlainLoop(n_images, size)
    return {"epoch": lambda: seconds_of(plain.train_epoch)}


def measure(n_images: int, size: int, n_rounds: int) -> dict[str, float]:
    """Median seconds of either side's epoch, after a round that does not count."""
    with tempfile.TemporaryDirectory() as name, ChildProcess(build_plain, n_images, size) as child:
        ours = OurStage(n_images, size, Path(name))
        measures = {
            "plain": partial(child.call, "epoch"),
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
    ratio = found["plain"] / found["ours"]
    print(f"plain epoch {found['plain']:.2f} s; ours {found['ours']:.2f} s: {ratio:.2f}x")
    figures = {f"{name}_seconds": value for name, value in found.items()}
    figures |= {name: getattr(options, name) for name in ("images", "size", "rounds")}
    print(machine.json_line("privacy", {"epoch": ratio}, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
