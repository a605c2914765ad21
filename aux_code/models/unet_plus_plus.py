"""The published anonymizer f_A; a module of its own because its library takes seconds to import."""

import segmentation_models_pytorch as smp
from torch import Tensor

from aux_code.models.padding import pad_to_multiple


class UNetPlusPlus(smp.UnetPlusPlus):
    """UNet++ with a ResNet-18 encoder of depth 4, decoder 256/128/64/32 (release): frames (N, 3, H, W) -> the same.

    Without `sigmoid` (the release) outputs may leave [0, 1]; the paper describes a sigmoid. 13.90 M parameters,
    24.6 GFLOP per 224 x 224 frame. The state dict has the names of segmentation-models-pytorch.

    Args:
        sigmoid: end with a sigmoid.
        out_channels: channels of the output.
    """

    def __init__(self, sigmoid: bool = False, out_channels: int = 3):
        super().__init__(
            encoder_name="resnet18",
            encoder_depth=4,
            encoder_weights=None,  # from ImageNet through `load_fa_model`, whose messages help without a network
            decoder_channels=(256, 128, 64, 32),
            in_channels=3,
            classes=out_channels,
            activation="sigmoid" if sigmoid else None,
        )

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        return super().forward(pad_to_multiple(frames, 16))[..., :height, :width]
