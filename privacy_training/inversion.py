"""The attacker `inversion` (ours): a U-Net learns to undo f_A; what it recovers is attacked."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.artefacts import Recipe, build_meta, is_current
from aux_code.checkpoints import load_checkpoint, save_checkpoint
from aux_code.devices import autocast, prepare_for_training
from aux_code.model_loaders import load_fa_model
from aux_code.progress import progress
from aux_code.runs import Run, seeded_generator
from aux_code.schedules import learning_rate_factor, set_learning_rate
from aux_code.training_state import detached_copy
from privacy_training.params_privacy import PrivacyParams
from privacy_training.released_images import ReleasedImages, Splits


def invert_splits(
    released: Splits, raw: Splits, params: PrivacyParams, run: Run, recipe: Recipe
) -> tuple[Splits, dict[str, dict[str, float]]]:
    """Trains the inverter on pairs of training images and applies it to all three splits.

    With --resume that of an interrupted run, saved as inverter.pth, is taken if its recipe is this.

    Returns:
        the recovered images, and {"released": ..., "recovered": ...}, each with `psnr` (dB) and
        `ssim` of the test images against the raw ones.
    """
    # the published UNet++ has no output activation; the inverter recovers images in [0, 1]
    arguments = {"sigmoid": True} if params.inversion_network == "unet++" else {}
    net = prepare_for_training(load_fa_model(params.inversion_network, **arguments), run.device)
    path = run.folder / "inverter.pth"
    if params.resume and is_current(path, recipe):
        net.load_state_dict(load_checkpoint(path)["fa_model_state_dict"])
    else:
        train_inverter(net, released.train, raw.train.releases[0], params, run)
        meta = build_meta("train_privacy", {"fa": net.architecture}, params, recipe, {})
        save_checkpoint(path, {"fa_model_state_dict": detached_copy(net), "meta": meta})
    inverted = Splits(*(_invert(net, images, params, run) for images in vars(released).values()))
    truth, splits = raw.test.releases[0], {"released": released, "recovered": inverted}
    return inverted, {n: image_quality(s.test.releases[0], truth) for n, s in splits.items()}


def train_inverter(
    net: nn.Module, released: ReleasedImages, raw: Tensor, params: PrivacyParams, run: Run
) -> None:
    """L1 between the network's output on released images and the raw ones; Adam, cosine to 0."""
    base = params.inversion_learning_rate
    optimizer = torch.optim.Adam(net.parameters(), lr=base)
    n_batches = max(1, len(raw) // params.batch_size)
    n_steps = params.inversion_epochs * n_batches
    net.train()
    for epoch in progress(range(params.inversion_epochs), "inverter"):
        order = torch.randperm(len(raw), generator=seeded_generator(params.seed, "inverter", epoch))
        inputs, total = released.release(epoch), 0.0
        for i, batch in enumerate(order.chunk(n_batches)):
            factor = learning_rate_factor(epoch * n_batches + i, n_steps, 0, "cosine")
            set_learning_rate(optimizer, base, factor)
            batch = batch.to(raw.device)
            with autocast(run.device, params.precision):
                recovered = net(inputs[batch].to(run.device).float())
            loss = F.l1_loss(recovered.float(), raw[batch].to(run.device).float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() / n_batches
        run.writer.add_scalar("privacy/inverter_l1", total, epoch)


@torch.inference_mode()
def _invert(
    net: nn.Module, images: ReleasedImages, params: PrivacyParams, run: Run
) -> ReleasedImages:
    net.eval()
    releases = []
    for release in images.releases:
        parts = release.split(params.release_batch)
        with autocast(run.device, params.precision):
            inverted = [net(part.to(run.device).float()).to(release) for part in parts]
        releases.append(torch.cat(inverted))
    return replace(images, releases=releases)


def image_quality(images: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of images (N, 3, H, W) against the truth (N, 3, H, W) in [0, 1]."""
    parts = list(zip(images.split(64), truth.split(64), strict=True))
    return {
        measure.__name__: float(torch.cat([measure(a, b) for a, b in parts]).mean())
        for measure in (psnr, ssim)
    }


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB, peak 1, at most 100."""
    error = (images.float().clamp(0, 1) - truth.float()).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def ssim(images: Tensor, truth: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity (N,) in [-1, 1], mean over channels (Wang et al. 2004)."""
    a, b = images.float().clamp(0, 1), truth.float()
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
