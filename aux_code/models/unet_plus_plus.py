"""The published anonymizer f_A; a module of its own because its library takes seconds to import."""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from aux_code.layout import pad_to_multiple


class UNetPlusPlus(smp.UnetPlusPlus):
    """UNet++ (release): ResNet-18 encoder of depth 4, decoder 256/128/64/32; frames (N, 3, H, W).

    Without `sigmoid` (the release) outputs may leave [0, 1]; the paper describes a sigmoid. 13.90 M
    parameters, 24.6 GFLOP per 224 x 224 frame. The state dict has the names of
    segmentation-models-pytorch.

    Args:
        sigmoid: end with a sigmoid.
        out_channels: channels of the output.
    """

    def __init__(self, sigmoid: bool = False, out_channels: int = 3):
        # No encoder weights: `load_fa_model` has ImageNet's, and helpful messages.
        encoder = {"encoder_name": "resnet18", "encoder_depth": 4, "encoder_weights": None}
        output = {"classes": out_channels, "activation": "sigmoid" if sigmoid else None}
        super().__init__(**encoder, decoder_channels=(256, 128, 64, 32), in_channels=3, **output)

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        return super().forward(pad_to_multiple(frames, 16))[..., :height, :width]

    def fold_upsampling(self) -> None:
        """For inference, in place: a frame takes 19.7 GFLOP instead of 24.6; same outputs."""
        decoder = self.decoder
        for name, block in decoder.blocks.items():
            depth, layer = map(int, name.split("_")[1:])
            in_channels = decoder.skip_channels[layer - 1] if depth else decoder.in_channels[layer]
            decoder.blocks[name] = _FoldedBlock(block, in_channels)


class _FoldedBlock(nn.Module):
    """A block of the decoder (no attention); `in_channels` come from the coarser map."""

    def __init__(self, block: nn.Module, in_channels: int):
        super().__init__()
        conv, *rest = block.conv1
        self.conv1 = UpsampledConv2d(conv, in_channels)
        self.rest = nn.Sequential(*rest, block.conv2)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.rest(self.conv1(x, skip))


class UpsampledConv2d(nn.Module):
    """A 3 x 3 convolution of maps doubled by repetition, computed from the maps as they were.

    Of the nine pixels under the kernel only 2 x 2 differ then, so a transposed convolution with
    sums of its weights does the same in 4/9 of the operations. Maps that follow in the
    concatenation keep an ordinary one.

    Args:
        conv: 3 x 3, stride 1, padding 1; it is not changed.
        coarse_channels: how many of its input channels were doubled; they come first.
    """

    def __init__(self, conv: nn.Conv2d, coarse_channels: int):
        super().__init__()
        n_fine, n_out = conv.in_channels - coarse_channels, conv.out_channels
        coarse, fine = conv.weight.detach().split([coarse_channels, n_fine], dim=1)
        geometry = {"stride": 2, "padding": 1, "bias": conv.bias is not None}
        self.coarse = nn.ConvTranspose2d(coarse_channels, n_out, 4, **geometry)
        self.fine = nn.Conv2d(n_fine, n_out, 3, padding=1, bias=False) if n_fine else None
        with torch.no_grad():
            self.coarse.weight.copy_(_sum_pairs(_sum_pairs(coarse, -1), -2).transpose(0, 1))
            if conv.bias is not None:
                self.coarse.bias.copy_(conv.bias)
            if self.fine is not None:
                self.fine.weight.copy_(fine)
        self.to(conv.weight.device, conv.weight.dtype).requires_grad_(conv.weight.requires_grad)

    def forward(self, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        """(N, coarse_channels, H, W), (N, others, 2H, 2W) -> (N, out_channels, 2H, 2W)."""
        output = self.coarse(coarse)
        return output if self.fine is None else output + self.fine(fine)


def _sum_pairs(kernel: Tensor, dim: int) -> Tensor:
    """Taps (a, b, c) -> (c, b + c, a + b, a): what a coarse pixel gives to four fine ones."""
    a, b, c = kernel.split(1, dim)
    return torch.cat([c, b + c, a + b, a], dim)
