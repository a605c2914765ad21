"""The privacy (budget) network f_B and the attackers: images (N, 3, H, W) in [0, 1] -> logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aux_code.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation per RGB channel that torchvision's classifiers expect to be taken off."""


class BudgetHead(nn.Module):
    """f_B's projection head (release, SimCLR): Linear, ReLU, Linear, unit length."""

    def __init__(self, feature_dim: int, hidden_dim: int, embedding_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(feature_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        """features (N, feature_dim) -> unit vectors (N, embedding_dim)."""
        return F.normalize(self.fc2(F.relu(self.fc1(features))), dim=1)


class SelfSupervised(nn.Sequential):
    """f_B of the anonymization training: images (N, 3, H, W) -> unit vectors (N, embedding_dim).

    A Sequential because the published state dict has the prefixes `0.` and `1.`.
    """

    def __init__(self, backbone: nn.Module, head: BudgetHead):
        super().__init__(backbone, head)
        backbone.fc = nn.Identity()
        self.feature_dim = backbone.feature_dim

    def extract_features(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) -> (N, feature_dim), before the projection head."""
        return self[0](images)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual, half the resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.bn3(self.shortcut(x)))


class SmallBudget(nn.Module):
    """The miniature's f_B and attacker (ours): convolution of 16, residual blocks of 32/64/64.

    The first one keeps the resolution: a face spans few of the 48 pixels. 41 MFLOP per image.
    """

    def __init__(self, num_outputs: int, widths: tuple[int, ...] = (16, 32, 64, 64)):
        super().__init__()
        self.feature_dim = widths[-1]
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*map(ResidualBlock, widths, widths[1:]))
        self.fc = nn.Linear(self.feature_dim, num_outputs)
        self.to(memory_format=torch.channels_last)

    def extract_features(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) -> (N, feature_dim)."""
        x = F.relu(self.bn(self.conv(images.contiguous(memory_format=torch.channels_last))))
        return self.blocks(x).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.extract_features(images))


def _build_resnet50(num_outputs: int, normalised: bool = False) -> nn.Module:
    """torchvision's ResNet-50 with access to its 2048-d feature; 8.2 GFLOP per 224 x 224 image.

    With `normalised` it takes ImageNet's mean and deviation from the images first, as classifiers
    of ImageNet were trained.
    """
    # Imported here: torchvision's networks take seconds, which only this architecture should cost.
    from torchvision.models.resnet import Bottleneck, ResNet

    class ResNet50(ResNet):
        feature_dim = 2048
        normalised = False

        def extract_features(self, images: Tensor) -> Tensor:
            if self.normalised:
                images = (images - self.mean) / self.deviation
            x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.avgpool(x).flatten(1)  # (N, 2048)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.extract_features(images))

    network = ResNet50(Bottleneck, [3, 4, 6, 3], num_classes=num_outputs)
    network.normalised = normalised
    for name, values in zip(("mean", "deviation"), IMAGENET, strict=True):
        network.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
    return network


PRIVACY_NETWORKS = {"r50": _build_resnet50, "small": SmallBudget}
"""Architecture name -> backbone constructor, argument `num_outputs` and those of its own."""
LEAST_SIZES = {"r50": 33, "small": 9}
"""Architecture name -> least images from which it learns, see `model_loaders.require_size`."""

_HEADS = {"r50": (2048, 128), "small": (64, 64)}
"""Architecture name -> hidden and embedding width of its projection head."""


def build_privacy(arch: str, num_pa: int = 7, ssl: bool = False, **arguments) -> nn.Module:
    """Builds an f_B with random weights.

    Args:
        arch: a key of PRIVACY_NETWORKS, else a UserError; `arguments`: further ones of it.
        num_pa: number of private attributes; not used with `ssl`.
        ssl: projection head and unit embeddings in place of attribute logits.
    """
    if arch not in PRIVACY_NETWORKS:
        known = ", ".join(PRIVACY_NETWORKS)
        raise UserError(f"unknown privacy architecture '{arch}'; known: {known}")
    backbone = PRIVACY_NETWORKS[arch](num_outputs=1 if ssl else num_pa, **arguments)
    if not ssl:
        return backbone
    return SelfSupervised(backbone, BudgetHead(backbone.feature_dim, *_HEADS[arch]))
