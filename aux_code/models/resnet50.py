"""ResNet-50 as the paper's privacy network and attacker."""

from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet


class ResNet50(ResNet):
    """torchvision's ResNet-50 with access to its 2048-d feature; 8.2 GFLOP per 224 x 224 image."""

    feature_dim = 2048

    def __init__(self, num_outputs: int):
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=num_outputs)

    def extract_features(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) -> (N, 2048)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.extract_features(images))
