"""The attackers by name: networks that read attributes from images or features."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from aux_code.errors import UserError
from aux_code.model_loaders import load_budget, load_fb_model, require_size
from privacy_training.params_privacy import PrivacyParams

log = logging.getLogger(__name__)


def build_attacker(
    params: PrivacyParams, n_attributes: int, features: Tensor | None = None
) -> nn.Module:
    """The network: images (N, 3, H, W) or features (N, feature_dim) -> logits (N, n_attributes).

    Args:
        params: `attacker`, `network`, `level`, `size`, `mlp_widths` and the weights' options.
        n_attributes: outputs.
        features: (N, feature_dim) of the training images, at feature level.

    Raises:
        UserError: weights that do not fit, or images too small to learn from.
    """
    if params.level == "feature":
        if features is None:
            raise ValueError("the feature level needs the training features")
        return FeatureMlp(features, params.mlp_widths, n_attributes)
    name, weights = params.network_name, params.starting_weights
    net = build_network(name, n_attributes, params.size, params.imagenet_weights)
    if weights is not None:
        _start_from(net, weights)
    if params.attacker == "linear_probe":
        return LinearProbe(net, n_attributes, name.endswith("_imagenet") or weights is not None)
    require_size(params.size, "fb", name.removesuffix("_imagenet"))
    if params.attacker == "inversion":
        require_size(params.size, "fa", params.inversion_network)
    return net


def build_network(
    name: str, n_attributes: int, size: int, imagenet_weights: Path | None = None
) -> nn.Module:
    """An attacker network by name; random weights, but for r50_imagenet.

    Raises:
        UserError: weights that do not fit, or that are neither given nor to be had by torchvision.
    """
    if name == "r50_imagenet":
        try:
            return load_fb_model("r50", imagenet_weights or "imagenet", num_pa=n_attributes)
        except UserError as error:
            raise UserError(f"{error}; here: --imagenet_weights FILE") from error
    if name == "vit":
        return _vision_transformer(n_attributes, size, patch=16, depth=12, width=384)
    if name == "small_vit":
        return _vision_transformer(n_attributes, size, patch=8, depth=4, width=96)
    return load_fb_model(name, num_pa=n_attributes)


def _vision_transformer(
    n_attributes: int, size: int, patch: int, depth: int, width: int
) -> nn.Module:
    """torchvision's ViT; `vit` has the size of ViT-S/16, which 10,000 images can train (ours)."""
    # torchvision's networks take seconds to import, which only this architecture should cost
    from torchvision.models import VisionTransformer

    size -= size % patch
    heads = max(1, width // 32)
    net = VisionTransformer(size, patch, depth, heads, width, 4 * width, num_classes=n_attributes)
    # its head starts at zero, which with a fresh backbone only delays learning
    nn.init.trunc_normal_(net.heads.head.weight, std=0.02)
    return nn.Sequential(CentreCrop(size), net)


class CentreCrop(nn.Module):
    """Cuts (N, C, H, W) to `size`: a ViT takes whole patches only."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        top, left = ((side - self.size) // 2 for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


class FeatureMlp(nn.Module):
    """MLP (paper, Table 1: 2048-2048-1028-1028-512-7); features (N, feature_dim) -> logits.

    The features are standardised by the training set's statistics first, so that networks whose
    features differ in scale are attacked alike (ours).
    """

    def __init__(self, features: Tensor, widths: tuple[int, ...], n_attributes: int):
        super().__init__()
        features = features.float().cpu()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.std(0).clamp_min(1e-6))
        sides = (features.shape[1], *widths)
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sides, sides[1:], strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(sides[-1], n_attributes))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers((features - self.mean) / self.deviation)


class LinearProbe(nn.Module):
    """One linear layer on the frozen features of a pretrained network (batch norm in eval mode)."""

    def __init__(self, net: nn.Module, n_attributes: int, pretrained: bool):
        super().__init__()
        if not hasattr(net, "extract_features"):
            raise UserError("--attacker linear_probe needs --network r50, r50_imagenet or small")
        if not pretrained:
            raise UserError(
                "--attacker linear_probe reads frozen features: give --probe_weights or "
                "--attacker_weights FILE (fb_ssl.pth of init_privacy.py), or --network r50_imagenet"
            )
        self.backbone = net.requires_grad_(False)
        self.norm = nn.BatchNorm1d(net.feature_dim)
        self.fc = nn.Linear(net.feature_dim, n_attributes)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone.extract_features(images)
        return self.fc(self.norm(features))


def _start_from(net: nn.Module, path: Path) -> None:
    """Copies the backbone of a checkpoint's f_B into the attacker; its last layer stays random.

    Raises:
        UserError: no f_B in the file, or one of another architecture.
    """
    source = load_budget(path)
    backbone = source[0] if isinstance(source, nn.Sequential) else source

    def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith("fc.")}

    weights, own = without_head(backbone.state_dict()), without_head(net.state_dict())
    wrong = [name for name in own if name not in weights]
    wrong += [n for n, value in weights.items() if n not in own or own[n].shape != value.shape]
    if wrong:
        problem = f"its f_B does not fit this attacker (first difference: {wrong[0]})"
        raise UserError(f"{path}: {problem}; choose the attacker of its architecture")
    net.load_state_dict(weights, strict=False)
    if getattr(backbone, "normalised", False):
        net.normalised = net.architecture["arguments"]["normalised"] = True
    log.info("attacker starts from the backbone in %s", path)
