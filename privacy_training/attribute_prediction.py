"""The training of an attacker: multi-label prediction of attributes from released images."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aux_code.devices import autocast, to_device
from aux_code.errors import UserError
from aux_code.metrics import attribute_metrics
from aux_code.progress import progress
from aux_code.runs import Run, seeded_generator
from aux_code.schedules import learning_rate_factor, plateau_divisions, set_learning_rate
from aux_code.training_state import TrainingState
from privacy_training.leakage_report import recent_gain
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import ReleasedImages, Splits, TrainingImages, pixels


class PixelScale(NamedTuple):
    """Takes a fixed pattern off images (N, 3, H, W), and stretches what varies."""

    mean: Tensor
    """(3, H, W)."""
    deviation: Tensor
    """(3, H, W)."""

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation


LEAST_DEVIATION = 0.05 / 255
"""Of a pixel that differs by one level in one image of 400; what varies less is left as little."""


@dataclass
class Attack:
    """A network in training. `history` holds one dictionary per epoch, all that a report needs."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    params: PrivacyParams
    run: Run
    averaged: AveragedModel | None = None
    """Running average of the weights and batch-norm statistics; None without `weight_averaging`."""
    scale: PixelScale | None = None
    """What the network sees the images through; None: as they are."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def seen(self, released: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], or features (N, F), as the network takes them."""
        return released if self.scale is None else self.scale(released)

    @property
    def reader(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.net if self.averaged is None else self.averaged.module

    @property
    def finished(self) -> bool:
        """The epochs or steps are used up, the plateau schedule has run out, or `plateau_epochs`
        have added at most `plateau_gain` to the validation cMAP after `least_epochs`."""
        params, n_done = self.params, len(self.history)
        if params.max_steps and n_done and self.history[-1]["step"] >= params.max_steps:
            return True
        if n_done >= params.n_epochs or self.plateau_rate() < params.min_learning_rate:
            return True
        if not params.plateau_epochs or n_done < params.least_epochs:
            return False
        cmaps = {e["epoch"]: e["validation_cmap"] for e in self.history if "validation_cmap" in e}
        gain = recent_gain(cmaps, params.plateau_epochs)
        return gain is not None and gain <= params.plateau_gain

    def plateau_rate(self) -> float:
        """The rate of the next epoch after its divisions; a function of the train losses so far."""
        losses = [entry["train_loss"] for entry in self.history][self.params.warmup_epochs :]
        divisions = plateau_divisions(losses) if self.params.schedule == "plateau" else 0
        return self.params.learning_rate / self.params.lr_divisor**divisions


def build_attack(net: nn.Module, params: PrivacyParams, run: Run) -> Attack:
    """Adam (paper) with decoupled weight decay on weights that are not frozen."""
    weights = [p for p in net.parameters() if p.requires_grad]
    rates = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    optimizer = torch.optim.AdamW(weights, **rates, fused=True)
    averaged = None
    if params.weight_averaging:
        average = get_ema_multi_avg_fn(params.weight_averaging)
        averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
    return Attack(net, optimizer, params, run, averaged)


@torch.no_grad()
def pixel_scale(images: TrainingImages, batch_size: int) -> PixelScale:
    """Of the training images as the first epoch releases them."""
    n, sums = len(images.files), 0
    for batch in torch.arange(n).split(batch_size):
        released = images.release(batch.tolist(), 0).double()  # (B, 3, H, W)
        sums = sums + torch.stack([released.sum(0), released.square().sum(0)])
    mean, square = sums / n
    deviation = (square - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST_DEVIATION)
    return PixelScale(mean.float(), deviation.float())


def run_attack(attack: Attack, splits: Splits, state: TrainingState) -> None:
    """Trains to the end, evaluating on the way; saves between epochs, to be continued exactly."""
    params, writer = attack.params, attack.run.writer
    bar = progress(description="attack", total=params.n_epochs, initial=len(attack.history))
    while not attack.finished:
        epoch = len(attack.history)
        entry = train_epoch(attack, splits.train, epoch)
        attack.history.append(entry)
        if epoch == 0 or attack.finished or (epoch + 1) % params.evaluate_every == 0:
            for name, images in (("validation", splits.validation), ("test", splits.test)):
                entry[name] = predict(attack, images)
                both = entry[name].numpy(), images.labels.numpy()
                scores = attribute_metrics(*(columns[:, params.counted] for columns in both))
                writer.add_scalar(f"privacy/{name}_cmap", scores.cmap, epoch + 1)
                writer.add_scalar(f"privacy/{name}_f1", scores.f1, epoch + 1)
                entry[f"{name}_cmap"] = scores.cmap
        writer.add_scalar("privacy/train_loss", entry["train_loss"], epoch)
        bar.set_postfix(loss=f"{entry['train_loss']:.3f}")
        bar.update()
        state.save_if_due({"history": attack.history})
    bar.close()


def train_epoch(attack: Attack, images: TrainingImages, epoch: int) -> dict[str, Any]:
    """One pass over the training images, which are released anew.

    Returns:
        {"epoch": 1-based, "step": steps done so far, "train_loss": mean loss}.

    Raises:
        UserError: the loss is not finite; an epoch either counts or the run fails.
    """
    params, device = attack.params, attack.run.device
    n = len(images.files)
    order = torch.randperm(n, generator=seeded_generator(params.seed, "order", epoch))
    # a last batch of one image has no batch statistics
    batches = [batch for batch in order.split(params.batch_size) if len(batch) > 1]
    warmup, n_steps = params.warmup_epochs * len(batches), params.n_epochs * len(batches)
    kind = "cosine" if params.schedule == "cosine" else "constant"
    rate = attack.plateau_rate()
    step = attack.history[-1]["step"] if attack.history else 0
    total = n_seen = 0
    attack.net.train()
    for i, batch in enumerate(batches):
        if params.max_steps and step >= params.max_steps:
            break
        factor = learning_rate_factor(epoch * len(batches) + i, n_steps, warmup, kind)
        set_learning_rate(attack.optimizer, rate, factor)
        released = images.release(batch.tolist(), epoch)
        loss = train_step(attack, released, to_device(images.labels[batch], device))
        total, n_seen, step = total + len(batch) * loss, n_seen + len(batch), step + 1
    return {"epoch": epoch + 1, "step": step, "train_loss": total / max(1, n_seen)}


def train_step(attack: Attack, released: Tensor, labels: Tensor) -> float:
    """Binary cross-entropy of images (N, 3, H, W) or features (N, F); one step of the optimizer."""
    with autocast(attack.run.device, attack.params.precision):
        logits = attack.net(attack.seen(released))
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    value = loss.item()  # one wait for the device
    if not math.isfinite(value):
        options = "--image_learning_rate or --feature_learning_rate"
        raise UserError(f"the attacker's loss is not finite; lower {options}")
    attack.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    attack.optimizer.step()
    if attack.averaged is not None:
        attack.averaged.update_parameters(attack.net)
    return value


@torch.inference_mode()
def predict(attack: Attack, images: ReleasedImages, batch_size: int = 100) -> Tensor:
    """Probabilities (N, n_attributes) on the CPU."""
    net, device = attack.reader.eval(), attack.run.device
    outputs = []
    for batch in images.released.split(batch_size):
        with autocast(device, attack.params.precision):
            logits = net(attack.seen(pixels(batch.to(device))))
        outputs.append(logits.float().sigmoid().cpu())
    return torch.cat(outputs)
