"""An attacker's epoch and its evaluation: multi-label prediction of private attributes from
released pictures."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aux_code.devices import supports_bf16
from aux_code.errors import UserError
from aux_code.metrics import attribute_metrics
from aux_code.progress import progress
from aux_code.runs import Run, seeded_generator
from aux_code.schedules import learning_rate_factor, set_learning_rate
from aux_code.training_state import TrainingState
from privacy_training.params_privacy import PrivacyParams
from privacy_training.plateau import recent_gain
from privacy_training.released_images import ReleasedImages

log = logging.getLogger(__name__)


@dataclass
class Splits:
    """The pictures (or features) of one attack. The attacker learns from `train`; `test` chooses
    nothing."""

    train: ReleasedImages
    validation: ReleasedImages
    test: ReleasedImages


@dataclass
class Attack:
    """A network in training. `history` holds one dictionary per epoch and is all that a report
    needs."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    params: PrivacyParams
    run: Run
    history: list[dict[str, Any]]
    averaged: AveragedModel | None = None
    """Running average of the weights and batch-norm statistics; None without `weight_averaging`."""

    @property
    def reader(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.net if self.averaged is None else self.averaged.module

    @property
    def finished(self) -> bool:
        """The last epoch is done, the steps are used up, the plateau schedule has run out or the
        plateau is reached."""
        params, n_done = self.params, len(self.history)
        if params.max_steps and n_done and self.history[-1]["step"] >= params.max_steps:
            return True
        return (
            n_done >= params.n_epochs
            or self.plateau_rate() < params.min_learning_rate
            or self.at_plateau()
        )

    def at_plateau(self) -> bool:
        """Whether the last `plateau_epochs` have added no more than `plateau_gain` to the
        validation cMAP, and `least_epochs` are done.
        """
        if not self.params.plateau_epochs or len(self.history) < self.params.least_epochs:
            return False
        evaluated = [entry for entry in self.history if "validation_cmap" in entry]
        scores = [entry["validation_cmap"] for entry in evaluated]
        gain = recent_gain(
            [entry["epoch"] for entry in evaluated], scores, self.params.plateau_epochs
        )
        return gain is not None and gain <= self.params.plateau_gain

    def plateau_rate(self) -> float:
        """The rate of the next epoch after its divisions; a function of the train losses so far."""
        losses = [entry["train_loss"] for entry in self.history][self.params.warmup_epochs :]
        falls = sum(later >= earlier for earlier, later in zip(losses, losses[1:], strict=False))
        divisions = falls if self.params.schedule == "plateau" else 0
        return self.params.learning_rate / self.params.lr_divisor**divisions


def build_optimizer(net: nn.Module, params: PrivacyParams) -> torch.optim.Optimizer:
    """Adam (paper), with decoupled weight decay if the parameters have one, on the weights that are
    not frozen."""
    weights = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        weights, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )


def build_average(net: nn.Module, params: PrivacyParams) -> AveragedModel | None:
    """The running average that the parameters ask for, as yet of the starting weights."""
    if not params.weight_averaging:
        return None
    return AveragedModel(
        net, multi_avg_fn=get_ema_multi_avg_fn(params.weight_averaging), use_buffers=True
    )


def run_attack(attack: Attack, splits: Splits, state: TrainingState) -> None:
    """Trains to the end, evaluating on the way; saves between epochs, so that a resumed run
    continues exactly."""
    bar = progress(description="attack", total=attack.params.n_epochs, initial=len(attack.history))
    while not attack.finished:
        epoch = len(attack.history)
        entry = train_epoch(attack, splits.train, epoch)
        attack.history.append(entry)
        if epoch == 0 or attack.finished or (epoch + 1) % attack.params.evaluate_every == 0:
            entry["validation"] = predict(attack, splits.validation)
            entry["test"] = predict(attack, splits.test)
            entry["validation_cmap"] = _log_scores(attack.run, entry, splits)
        attack.run.writer.add_scalar("privacy/train_loss", entry["train_loss"], epoch)
        bar.set_postfix(loss=f"{entry['train_loss']:.3f}")
        bar.update()
        state.save_if_due({"history": attack.history})
    bar.close()


def train_epoch(attack: Attack, images: ReleasedImages, epoch: int) -> dict[str, Any]:
    """One pass over the training pictures.

    Returns:
        {"epoch": 1-based, "step": steps done so far, "train_loss": mean loss}.

    Raises:
        UserError: the loss is not finite; an epoch either counts or the run fails.
    """
    params = attack.params
    inputs, labels = images.release(epoch), images.labels
    order = torch.randperm(len(inputs), generator=seeded_generator(params.seed, "order", epoch))
    # a last batch of one picture has no batch statistics
    batches = [batch for batch in order.split(params.batch_size) if len(batch) > 1]
    step = attack.history[-1]["step"] if attack.history else 0
    total = n_seen = 0
    attack.net.train()
    for i, batch in enumerate(batches):
        if params.max_steps and step >= params.max_steps:
            break
        set_learning_rate(
            attack.optimizer, attack.plateau_rate(), _factor(params, epoch, i, len(batches))
        )
        views = inputs[batch.to(inputs.device)].to(attack.run.device)
        if views.ndim == 4:
            views = augment_released(
                views, params, seeded_generator(params.seed, "views", epoch, i)
            )
        total += len(batch) * _step(
            attack, views, labels[batch.to(labels.device)].to(attack.run.device)
        )
        n_seen, step = n_seen + len(batch), step + 1
    return {"epoch": epoch + 1, "step": step, "train_loss": total / max(1, n_seen)}


def _step(attack: Attack, views: Tensor, labels: Tensor) -> float:
    with autocast(attack.run.device, attack.params):
        logits = attack.net(views.float())
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    if not torch.isfinite(loss):
        raise UserError(
            "the attacker's loss is not finite; lower --image_learning_rate or --feature_learning_rate"
        )
    attack.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    attack.optimizer.step()
    if attack.averaged is not None:
        attack.averaged.update_parameters(attack.net)
    return loss.item()


def autocast(device: torch.device, params: PrivacyParams) -> torch.autocast:
    """bf16 where the parameters or, left to `auto`, the device want it."""
    wanted = params.precision == "bf16" or (params.precision == "auto" and supports_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def _factor(params: PrivacyParams, epoch: int, i: int, n_batches: int) -> float:
    """Factor on the learning rate of batch i of an epoch: the warm-up, and the cosine where that is
    the schedule."""
    kind = "cosine" if params.schedule == "cosine" else "constant"
    n_steps, warmup = params.n_epochs * n_batches, params.warmup_epochs * n_batches
    return learning_rate_factor(epoch * n_batches + i, n_steps, warmup, kind)


@torch.inference_mode()
def predict(attack: Attack, images: ReleasedImages, batch_size: int = 100) -> Tensor:
    """Probabilities (N, n_attributes) on the CPU, from the first release, without augmentation."""
    net = attack.reader.eval()
    outputs = []
    for batch in images.release(0).split(batch_size):
        with autocast(attack.run.device, attack.params):
            logits = net(batch.to(attack.run.device).float())
        outputs.append(logits.float().sigmoid().cpu())
    return torch.cat(outputs)


def augment_released(pictures: Tensor, params: PrivacyParams, generator: torch.Generator) -> Tensor:
    """The attacker's views of released pictures: shift, zoom, mirror, brightness and contrast.

    Args:
        pictures: (N, 3, H, W), any number format; values outside [0, 1] (noise, no activation) stay
            as they are.
        params: `shift`, `zoom` and `jitter` are read.
        generator: on the CPU.

    Returns:
        float32 (N, 3, H, W), channels-last as the attackers' convolutions like it; pixels beyond
        the border repeat it by reflection.
    """
    n = len(pictures)
    u = 2 * torch.rand(n, 6, generator=generator) - 1
    u = u.to(pictures.device)
    scale = 1 + params.zoom * u[:, 0]
    mirror = torch.where(u[:, 1] < 0, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=pictures.device)
    theta[:, 0, 0], theta[:, 1, 1] = scale * mirror, scale
    # the coordinates span 2 from border to border
    theta[:, :, 2] = 2 * params.shift * u[:, 2:4]
    pictures = pictures.float()
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    views = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = (1 + params.jitter * u[:, 4:6, None, None, None]).unbind(1)
    views = ((views - mean) * contrast + mean) * brightness
    return views.contiguous(memory_format=torch.channels_last)


def _log_scores(run: Run, entry: dict[str, Any], splits: Splits) -> float:
    """Writes TensorBoard scalars; returns the validation cMAP."""
    cmaps = {}
    for name, images in (("validation", splits.validation), ("test", splits.test)):
        scores = attribute_metrics(entry[name].numpy(), images.labels.cpu().numpy())
        run.writer.add_scalar(f"privacy/{name}_cmap", scores.cmap, entry["epoch"])
        run.writer.add_scalar(f"privacy/{name}_f1", scores.f1, entry["epoch"])
        cmaps[name] = scores.cmap
    return cmaps["validation"]
