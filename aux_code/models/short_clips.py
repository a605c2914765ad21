"""Convolutions over clips of which two frames are left, as in the last layers of the paper's
f_T."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TwoFrameConv3d(nn.Conv3d):
    """A Conv3d, with the same weights and values, whose gradient is right for inputs of two frames
    in bf16 on a CPU.

    There PyTorch's weight gradient (oneDNN, seen in PyTorch 2.14 with AVX-512 BF16) of a kernel of
    three frames with padding 1 and stride 1 is memory that nobody wrote: finite or not, and silent.
    Padding beforehand avoids it.
    """

    def forward(self, x: Tensor) -> Tensor:
        affected = (
            x.shape[2] == 2
            and self.kernel_size[0] == 3
            and self.padding[0] == 1
            and self.stride[0] == 1
        )
        if not (affected and torch.is_grad_enabled() and x.device.type == "cpu"):
            return super().forward(x)
        padding = (0, *self.padding[1:])
        x = F.pad(x, (0, 0, 0, 0, 1, 1))
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def mend_short_clips(network: nn.Module) -> nn.Module:
    """Replaces, in place, every Conv3d with a kernel of three frames by a `TwoFrameConv3d` of the
    same weights."""
    for name, module in list(network.named_modules()):
        if (
            isinstance(module, nn.Conv3d)
            and module.kernel_size[0] == 3
            and not isinstance(module, TwoFrameConv3d)
        ):
            mended = TwoFrameConv3d(
                module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
                module.dilation, module.groups, module.bias is not None,
            )  # fmt: skip
            mended.load_state_dict(module.state_dict())
            network.set_submodule(name, mended)
    return network
