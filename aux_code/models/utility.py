"""The utility network f_T: clips (B, 3, T, H, W) in [0, 1] -> action logits and unit embedding."""

from abc import ABC, abstractmethod
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from aux_code.errors import UserError
from aux_code.models.i3d import I3DResNet50, TwoFrameConv3d, mend_short_clips


class UtilityOutput(NamedTuple):
    """What f_T says of clips."""

    logits: Tensor
    """(B, num_classes) action scores before the softmax."""
    embedding: Tensor
    """(B, embedding_dim) unit vectors for the temporal losses."""


class UtilityHead(nn.Module):
    """f_T's embedding head (widths of the release): unit vectors."""

    def __init__(self, feature_dim: int, hidden_dim: int = 512, embedding_dim: int = 128):
        super().__init__()
        self.fc1 = nn.Linear(feature_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.bn2 = nn.BatchNorm1d(embedding_dim)
        self.fc2 = nn.Linear(hidden_dim, embedding_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """features (B, feature_dim) -> unit vectors (B, embedding_dim)."""
        hidden = F.relu(self.bn1(self.fc1(features)))
        return F.normalize(self.bn2(self.fc2(hidden)), dim=1)


class UtilityNetwork(nn.Module, ABC):
    """Interface of every f_T."""

    feature_dim: int
    """Width of the pooled feature that extraction stores."""
    frozen_bn: bool = False
    """Batch norms keep their statistics and weights, in train mode too."""

    @abstractmethod
    def extract_features(self, clips: Tensor) -> Tensor:
        """clips (B, 3, T, H, W) -> pooled features (B, feature_dim)."""

    @abstractmethod
    def classify(self, features: Tensor) -> UtilityOutput:
        """features (B, feature_dim) -> logits (B, num_classes) and unit embedding."""

    def forward(self, clips: Tensor) -> UtilityOutput:
        return self.classify(self.extract_features(clips))

    def freeze_batch_norm(self) -> None:
        """Freezes every batch norm for good: statistics, weights and biases."""
        self.frozen_bn = True
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


class LargeI3D(UtilityNetwork):
    """The published f_T: I3D-ResNet50, 2048-d feature; at least 7 frames, any H, W from 32."""

    feature_dim = I3DResNet50.feature_dim

    def __init__(self, num_classes: int = 102):
        super().__init__()
        self.i3d = I3DResNet50(num_classes)
        self.mlp = UtilityHead(self.feature_dim)

    def extract_features(self, clips: Tensor) -> Tensor:
        return self.i3d.extract_features(clips)

    def classify(self, features: Tensor) -> UtilityOutput:
        return UtilityOutput(self.i3d.fc(features), self.mlp(features))


class TorchvisionUtility(UtilityNetwork):
    """A video network of torchvision with its Kinetics normalisation and the release's head.

    Args:
        backbone: clips -> (B, feature_dim): its last layer was replaced by the identity.
        feature_dim: width of its feature.
        num_classes: number of actions.
        mean, std: per RGB channel; applied inside, so that clips stay in [0, 1].
    """

    clip_shape: tuple[int, int, int] | None = None
    """T, H, W where the network takes no other."""

    def __init__(
        self, backbone: nn.Module, feature_dim: int, num_classes: int, mean: tuple, std: tuple
    ):
        super().__init__()
        self.feature_dim, self.backbone = feature_dim, backbone
        self.fc = nn.Linear(feature_dim, num_classes)
        self.mlp = UtilityHead(feature_dim)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1, 1), persistent=False)

    def extract_features(self, clips: Tensor) -> Tensor:
        found = tuple(clips.shape[2:])
        if self.clip_shape and found != self.clip_shape:
            raise ValueError(f"clips must have T, H, W = {self.clip_shape}, got {found}")
        return self.backbone((clips - self.mean) / self.std)

    def classify(self, features: Tensor) -> UtilityOutput:
        return UtilityOutput(self.fc(features), self.mlp(features))


def _build_r3d_18(num_classes: int = 102) -> TorchvisionUtility:
    """R3D-18 (paper table 10), 512-d feature; any T, H, W."""
    from torchvision.models.video import r3d_18

    backbone = mend_short_clips(r3d_18())
    backbone.fc = nn.Identity()
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    return TorchvisionUtility(backbone, 512, num_classes, mean, std)


def _build_mvitv2(num_classes: int = 102) -> TorchvisionUtility:
    """MViTv2-S (paper table 10), 768-d feature; clips of exactly 16 frames of 224 x 224."""
    from torchvision.models.video.mvit import mvit_v2_s

    backbone = mvit_v2_s()
    backbone.head = nn.Identity()
    network = TorchvisionUtility(backbone, 768, num_classes, (0.45,) * 3, (0.225,) * 3)
    network.clip_shape = (16, 224, 224)
    return network


class SmallUtility(UtilityNetwork):
    """The miniature's f_T (ours): four 3 x 3 x 3 convolutions, pooled feature, head; any T, H, W.

    It sees a clip's difference from its mean over time, since the camera is fixed and what happens
    is motion: 0.96 instead of 0.44 accuracy on raw clips; with `motion` off the clip itself, as a
    still one would be empty. Features are the largest responses in space (people are small),
    averaged over time. The first two strides are spatial only; 64 MFLOP for 48 px and 8 frames.
    """

    def __init__(
        self,
        num_classes: int = 102,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        embedding_dim: int = 32,
        motion: bool = True,
    ):
        super().__init__()
        self.motion = motion
        self.feature_dim = widths[-1]
        strides = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
        layers, in_channels = [], 3
        for width, stride in zip(widths, strides, strict=True):
            conv = TwoFrameConv3d(in_channels, width, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm3d(width), nn.ReLU(inplace=True)]
            in_channels = width
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(self.feature_dim, num_classes)
        self.mlp = UtilityHead(self.feature_dim, self.feature_dim, embedding_dim)
        self.to(memory_format=torch.channels_last_3d)

    def extract_features(self, clips: Tensor) -> Tensor:
        if self.motion:
            clips = 2 * (clips - clips.mean(dim=2, keepdim=True))
        maps = self.layers(clips.contiguous(memory_format=torch.channels_last_3d))
        return maps.amax(dim=(3, 4)).mean(dim=2)

    def classify(self, features: Tensor) -> UtilityOutput:
        return UtilityOutput(self.fc(features), self.mlp(features))


UTILITY_NETWORKS = {
    "largei3d": LargeI3D,
    "r3d_18": _build_r3d_18,
    "mvitv2": _build_mvitv2,
    "small": SmallUtility,
    # Table 10 in miniature (features of 128 and 32 values), and Table 1 (features of still clips)
    "small_wide": partial(SmallUtility, widths=(16, 32, 64, 128)),
    "small_narrow": partial(SmallUtility, widths=(16, 32, 32, 32)),
    "small_still": partial(SmallUtility, motion=False),
}
"""Architecture name -> constructor, keyword argument `num_classes` and those of its own."""
LEAST_SIZES = {"largei3d": 37, "r3d_18": 17, "mvitv2": 224} | dict.fromkeys(
    ("small", "small_wide", "small_narrow", "small_still"), 9
)
"""Architecture name -> least frames from which it learns, see `model_loaders.require_size`."""


def build_utility(
    arch: str, num_classes: int = 102, freeze_bn: bool = False, **arguments
) -> UtilityNetwork:
    """Builds an f_T with random weights.

    Args:
        arch: a key of UTILITY_NETWORKS, else a UserError; `arguments`: further ones of it.
        num_classes: actions; the release has one more than UCF101's 101.
        freeze_bn: freeze all batch norms, those of the head included.
    """
    if arch not in UTILITY_NETWORKS:
        known = ", ".join(UTILITY_NETWORKS)
        raise UserError(f"unknown utility architecture '{arch}'; known: {known}")
    network = UTILITY_NETWORKS[arch](num_classes=num_classes, **arguments)
    if freeze_bn:
        network.freeze_batch_norm()
    return network
