"""The anonymizer f_A: frames (N, 3, H, W) in [0, 1] -> (N, 3, H, W), for any H and W."""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.devices import in_full_precision, to_device
from aux_code.errors import UserError
from aux_code.layout import pad_to_multiple


class DoubleConv(nn.Module):
    """Twice (3 x 3 convolution, batch norm, ReLU), from `in_channels` to `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        layers = []
        for n_inputs in (in_channels, out_channels):
            conv = nn.Conv2d(n_inputs, out_channels, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """Halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Doubles the resolution and joins the encoder's map, which may be a pixel larger."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = DoubleConv(in_channels, out_channels)
        # the widths inside follow the published layout: half of the input's channels come first
        middle = in_channels // 2
        self.conv.double_conv[0] = nn.Conv2d(in_channels, middle, 3, padding=1)
        self.conv.double_conv[1] = nn.BatchNorm2d(middle)
        self.conv.double_conv[3] = nn.Conv2d(middle, out_channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        bottom, right = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        if bottom or right:
            x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Plain UNet with bilinear up-sampling and a sigmoid (release): -> (N, out_channels, H, W).

    Frames of less than 16 pixels, which the release does not take, are extended for the pass.
    """

    def __init__(self, out_channels: int = 3):
        super().__init__()
        self.inc = DoubleConv(3, 64)
        self.down1, self.down2 = Down(64, 128), Down(128, 256)
        self.down3, self.down4 = Down(256, 512), Down(512, 512)
        self.up1, self.up2 = Up(1024, 256), Up(512, 128)
        self.up3, self.up4 = Up(256, 64), Up(128, 64)
        # In a Sequential only for its name in the published state dict, `outc.conv`.
        self.outc = nn.Sequential(OrderedDict(conv=nn.Conv2d(64, out_channels, 1)))

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        maps = [self.inc(frames if min(height, width) >= 16 else pad_to_multiple(frames, 16))]
        for down in (self.down1, self.down2, self.down3, self.down4):
            maps.append(down(maps[-1]))
        x = maps.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            x = up(x, maps.pop())
        return self.outc(x).sigmoid()[..., :height, :width]


def _conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _two_convolutions(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    first = _conv_bn_relu(in_channels, out_channels, stride)
    return nn.Sequential(first, _conv_bn_relu(out_channels, out_channels))


class SmallUNet(nn.Module):
    """The miniature's f_A (ours): U-Net of widths 16/32/32 on 2 x 2 pixel blocks, with a sigmoid.

    A quarter of the cost of a U-Net on pixels. A 3 x 3 convolution at full resolution ends it:
    without, blocks of 2 x 2 pixels never see each other and a checkerboard remains. In
    channels-last memory it is 1.5 to 2 times faster on a CPU at this size.
    """

    def __init__(self, out_channels: int = 3, widths: tuple[int, int, int] = (16, 32, 32)):
        super().__init__()
        first, second, third = widths
        self.encoder1 = _two_convolutions(12, first)
        self.encoder2 = _two_convolutions(first, second, stride=2)
        self.encoder3 = _two_convolutions(second, third, stride=2)
        self.decoder2 = _conv_bn_relu(third + second, second)
        self.decoder1 = _conv_bn_relu(second + first, first)
        self.to_blocks = nn.Conv2d(first, 4 * 6, 3, padding=1)
        self.mend = nn.Conv2d(6, out_channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        blocks = F.pixel_unshuffle(pad_to_multiple(frames, 8), 2)  # (N, 12, H/2, W/2)
        fine = self.encoder1(blocks.contiguous(memory_format=torch.channels_last))
        middle = self.encoder2(fine)
        coarse = F.interpolate(self.encoder3(middle), scale_factor=2, mode="nearest")
        middle = self.decoder2(torch.cat([coarse, middle], dim=1))
        middle = F.interpolate(middle, scale_factor=2, mode="nearest")
        fine = self.decoder1(torch.cat([middle, fine], dim=1))
        pixels = F.pixel_shuffle(self.to_blocks(fine), 2)  # (N, 6, H, W)
        return self.mend(pixels).sigmoid()[..., :height, :width]


class NarrowOutput(nn.Module):
    """Lets less through (ours): an anonymizer's output in fewer channels, coarser and with noise.

    What the frame does not carry, no attacker can learn to read: in the miniature this removes far
    more of the leakage than the minimax alone. The order is: network, averaging down to
    `output_scale`, noise, nearest up-sampling to the input's size, one channel repeated to three.
    The noise is drawn once per *released* value, so that averaging the repeated copies does not
    remove it; it differs from frame to frame, in training and evaluation alike. Values with noise
    may leave the network's range by a few `output_noise`.

    `network`: frames (N, 3, H, W) -> (N, output_channels, H, W); the rest as `build_anonymizer`.
    `generators`: one for the noise of each frame that leaves, in order; None: the global one.
    `n_releases`: frames that leave, each with its noise, for one that comes.
    """

    def __init__(
        self, network: nn.Module, output_channels: int, output_scale: float, output_noise: float
    ):
        super().__init__()
        self.network, self.output_channels = network, output_channels
        self.output_scale, self.output_noise = output_scale, output_noise
        self.generators: Iterator[torch.Generator] | None = None
        self.n_releases = 1

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        output = in_full_precision(self.network(frames))
        if self.output_scale < 1:
            size = [max(1, round(side * self.output_scale)) for side in (height, width)]
            output = F.adaptive_avg_pool2d(output, size)
        if self.output_noise > 0:
            output = output.repeat_interleave(self.n_releases, dim=0)
            output = output + self.output_noise * self._noise_like(output)
        if output.shape[-2:] != frames.shape[-2:]:
            output = F.interpolate(output, size=(height, width), mode="nearest")
        return output.repeat(1, 3, 1, 1) if self.output_channels == 1 else output

    def _noise_like(self, output: Tensor) -> Tensor:
        """Drawn frame by frame: what a frame gets depends neither on its pass nor on a layout."""
        shape = output.shape[1:]
        if self.generators is None:
            noise = [torch.randn(shape, device=output.device) for _ in output]
        else:
            noise = [torch.randn(shape, generator=next(self.generators)) for _ in output]
        return to_device(torch.stack(noise), output.device).to(output)


class _Rounded(torch.autograd.Function):
    """To 8 bits; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx, frames: Tensor) -> Tensor:
        return frames.clamp(0, 1).mul_(255).round_().div_(255)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def as_8_bit(frames: Tensor) -> Tensor:
    """What a file or a camera's stream holds of frames: clamped to [0, 1], multiples of 1 / 255.

    float32 (float64 stays), with a straight-through gradient.
    """
    return _Rounded.apply(in_full_precision(frames))


def remove_noise(network: nn.Module) -> None:
    """Lets every `NarrowOutput` inside a network release without noise, in place."""
    for module in network.modules():
        if isinstance(module, NarrowOutput):
            module.output_noise = 0.0


def _build_unet_plus_plus(**arguments) -> nn.Module:
    # imported here because its library takes seconds, which only this architecture should cost
    from aux_code.models.unet_plus_plus import UNetPlusPlus

    return UNetPlusPlus(**arguments)


ANONYMIZERS = {"unet++": _build_unet_plus_plus, "unet": UNet, "small": SmallUNet}
"""Architecture name -> constructor, keyword arguments `out_channels` and those of its own."""
LEAST_SIZES = {"unet++": 17, "unet": 32, "small": 9}
"""Architecture name -> least frames from which it learns, see `model_loaders.require_size`."""


def build_anonymizer(
    arch: str,
    output_channels: int = 3,
    output_scale: float = 1.0,
    output_noise: float = 0.0,
    **arguments,
) -> nn.Module:
    """Builds an f_A with random weights.

    Args:
        arch: a key of ANONYMIZERS.
        output_channels: 3, or 1 (grey repeated to three channels).
        output_scale: in (0, 1]; resolution of the output relative to the input's.
        output_noise: standard deviation of Gaussian noise, in units of the pixel range; 0: none.
        arguments: further ones of the architecture, such as `sigmoid` of unet++.

    Raises:
        UserError: unknown architecture or an impossible value.
    """
    if arch not in ANONYMIZERS:
        raise UserError(
            f"unknown anonymizer architecture '{arch}'; known: {', '.join(ANONYMIZERS)}"
        )
    if output_channels not in (1, 3):
        raise UserError(f"output_channels must be 1 or 3, got {output_channels}")
    if not 0 < output_scale <= 1:
        raise UserError(f"output_scale must lie in (0, 1], got {output_scale}")
    if output_noise < 0:
        raise UserError(f"output_noise must not be negative, got {output_noise}")
    network = ANONYMIZERS[arch](out_channels=output_channels, **arguments)
    if (output_channels, output_scale, output_noise) == (3, 1, 0):
        return network
    return NarrowOutput(network, output_channels, output_scale, output_noise)
