"""I3D-ResNet50: a ResNet-50 inflated over time (as published with Kinetics-400 weights)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TwoFrameConv3d(nn.Conv3d):
    """A Conv3d whose gradient is right for two frames (f_T's last layers) in bf16 on a CPU, too.

    There PyTorch's weight gradient (oneDNN, seen in PyTorch 2.14 with AVX-512 BF16) of a kernel of
    three frames with padding 1 and stride 1 is memory that nobody wrote: finite or not, and silent.
    Padding beforehand avoids it.
    """

    def forward(self, x: Tensor) -> Tensor:
        geometry = (self.kernel_size[0], self.padding[0], self.stride[0])
        affected = x.shape[2] == 2 and geometry == (3, 1, 1)
        if not (affected and torch.is_grad_enabled() and x.device.type == "cpu"):
            return super().forward(x)
        x, padding = F.pad(x, (0, 0, 0, 0, 1, 1)), (0, *self.padding[1:])
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def mend_short_clips(network: nn.Module) -> nn.Module:
    """Replaces, in place, every Conv3d of three frames by a `TwoFrameConv3d` of its weights."""
    for name, conv in list(network.named_modules()):
        is_plain = isinstance(conv, nn.Conv3d) and not isinstance(conv, TwoFrameConv3d)
        if is_plain and conv.kernel_size[0] == 3:
            shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
            rest = (conv.padding, conv.dilation, conv.groups, conv.bias is not None)
            mended = TwoFrameConv3d(*shape, *rest)
            mended.load_state_dict(conv.state_dict())
            network.set_submodule(name, mended)
    return network


class Bottleneck(nn.Module):
    """1 x 1 (x 3 frames where `temporal`), 3 x 3, 1 x 1 convolutions, residual; to 4 * width."""

    def __init__(self, in_channels: int, width: int, stride: int, temporal: bool):
        super().__init__()
        frames = 3 if temporal else 1
        self.conv1 = TwoFrameConv3d(
            in_channels, width, (frames, 1, 1), padding=(frames // 2, 0, 0), bias=False
        )
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(
            width, width, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False
        )
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != 4 * width:
            shortcut = nn.Conv3d(in_channels, 4 * width, 1, stride=(1, stride, stride), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


# which blocks of each layer look at three frames (published layout)
_TEMPORAL_BLOCKS = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))


class I3DResNet50(nn.Module):
    """Clips (B, 3, T, H, W) -> logits (B, num_classes); 32.8 GFLOP per 16 x 224 x 224 clip."""

    feature_dim = 2048

    def __init__(self, num_classes: int = 400):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (5, 7, 7), stride=(2, 2, 2), padding=(2, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool1 = nn.MaxPool3d((2, 3, 3), stride=(2, 2, 2))
        self.maxpool2 = nn.MaxPool3d((2, 1, 1), stride=(2, 1, 1))
        in_channels = 64
        for i, temporal in enumerate(_TEMPORAL_BLOCKS):
            width, stride = 64 * 2**i, 1 if i == 0 else 2
            blocks = []
            for has_time in temporal:
                blocks.append(Bottleneck(in_channels, width, stride, bool(has_time)))
                in_channels, stride = 4 * width, 1
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(self.feature_dim, num_classes)

    def extract_features(self, clips: Tensor) -> Tensor:
        """clips (B, 3, T, H, W) -> pooled features (B, 2048)."""
        x = self.maxpool1(self.relu(self.bn1(self.conv1(clips))))
        x = self.maxpool2(self.layer1(x))
        x = self.layer4(self.layer3(self.layer2(x)))
        return x.mean(dim=(2, 3, 4))

    def forward(self, clips: Tensor) -> Tensor:
        return self.fc(self.extract_features(clips))
