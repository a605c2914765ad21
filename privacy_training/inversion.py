"""The attacker `inversion` (ours): a U-Net learns to undo f_A; what it recovers is attacked."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.artefacts import Recipe, build_meta, is_current
from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.devices import autocast, prepare_for_training
from aux_code.model_loaders import load_fa_model
from aux_code.models.anonymizers import as_8_bit
from aux_code.progress import progress
from aux_code.runs import Run, seeded_generator
from aux_code.schedules import learning_rate_factor, set_learning_rate
from aux_code.training_state import detached_copy
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import Splits, TrainingImages, as_bytes, pixels


def invert_splits(
    splits: Splits, truth: Tensor, params: PrivacyParams, run: Run, recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Trains the inverter on pairs of training images and puts it behind f_A in all three splits.

    With --resume that of an interrupted run, saved as inverter.pth, is taken if its recipe is this.

    Returns:
        {"released": ..., "recovered": ...}, each with `psnr` (dB) and `ssim` of the test images
        against the raw ones, `truth` (N, 3, H, W) uint8.
    """
    # the published UNet++ has no output activation; the inverter recovers images in [0, 1]
    arguments = {"sigmoid": True} if params.inversion_network == "unet++" else {}
    net = prepare_for_training(load_fa_model(params.inversion_network, **arguments), run.device)
    path = run.folder / "inverter.pth"
    if params.resume and is_current(path, recipe):
        net.load_state_dict(load_checkpoint(path)["fa_model_state_dict"])
    else:
        train_inverter(net, splits.train, params, run)
        meta = build_meta("train_privacy", {"fa": net.architecture}, params, recipe, {})
        save_checkpoint(path, {"fa_model_state_dict": detached_copy(net), "meta": meta})
    net.eval()

    @torch.no_grad()
    def inverter(released: Tensor) -> Tensor:
        with autocast(run.device, params.precision):
            return as_8_bit(net(released))

    quality = {"released": image_quality(splits.test.released, truth)}
    for images in (splits.validation, splits.test):
        parts = images.released.split(params.release_batch)
        recovered = [as_bytes(inverter(pixels(part.to(run.device)))) for part in parts]
        images.released = torch.cat(recovered)
    splits.train.releaser.inverter = inverter
    return quality | {"recovered": image_quality(splits.test.released, truth)}


def train_inverter(net: nn.Module, images: TrainingImages, params: PrivacyParams, run: Run) -> None:
    """L1 between the network's output on released crops and the raw ones; Adam, cosine to 0."""
    base, n = params.inversion_learning_rate, len(images.files)
    optimizer = torch.optim.Adam(net.parameters(), lr=base)
    n_batches = max(1, n // params.batch_size)
    n_steps = params.inversion_epochs * n_batches
    net.train()
    for epoch in progress(range(params.inversion_epochs), "inverter"):
        order = torch.randperm(n, generator=seeded_generator(params.seed, "inverter", epoch))
        total = 0.0
        for i, batch in enumerate(order.chunk(n_batches)):
            factor = learning_rate_factor(epoch * n_batches + i, n_steps, 0, "cosine")
            set_learning_rate(optimizer, base, factor)
            crops, released = images.pairs(batch.tolist(), epoch)
            with autocast(run.device, params.precision):
                recovered = net(released)
            loss = F.l1_loss(recovered.float(), crops)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() / n_batches
        run.writer.add_scalar("privacy/inverter_l1", total, epoch)


def image_quality(images: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of stored images (N, 3, H, W) against the true ones, all uint8."""
    parts = [(pixels(a), pixels(b)) for a, b in zip(images.split(64), truth.split(64), strict=True)]
    return {
        measure.__name__: float(torch.cat([measure(a, b) for a, b in parts]).mean())
        for measure in (psnr, ssim)
    }


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB, peak 1, at most 100."""
    error = (images - truth).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def ssim(images: Tensor, truth: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity (N,) in [-1, 1], mean over channels (Wang et al. 2004)."""
    a, b = images, truth
    offsets = torch.arange(window, device=a.device) - window // 2
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2).expand(a.shape[1], 1, window, window)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=x.shape[1])

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    values = values / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return values.mean(dim=(1, 2, 3))
