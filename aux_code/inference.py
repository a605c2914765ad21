"""Networks for inference: by OpenVINO on a CPU, else batch norms folded, channels-last, bf16."""

import logging
import math
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aux_code.devices import DTYPES, inference_precision, keep_freed_memory, without_tf32
from aux_code.models.anonymizers import NarrowOutput
from aux_code.openvino_networks import OpenVinoNetwork, is_worthwhile

logger = logging.getLogger(__name__)


class InferenceNetwork(nn.Module):
    """A frozen network that takes and returns float32 whatever it computes in; without gradients.

    Its `extract_features` is the network's own.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format):
        super().__init__()
        self.network, self.dtype, self.memory_format = network, dtype, memory_format
        self.requires_boxes = getattr(network, "requires_boxes", False)
        self.feature_dim = getattr(network, "feature_dim", 0)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return _float32(self.network(self._prepared(x)))

    @torch.inference_mode()
    def extract_features(self, x: Tensor) -> Tensor:
        """clips or images -> (B, feature_dim) float32."""
        return _float32(self.network.extract_features(self._prepared(x)))

    def _prepared(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).contiguous(memory_format=self.memory_format)


def _float32(output):
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(*(tensor.float() for tensor in output))


def prepare_for_inference(
    network: nn.Module, example: Tensor, precision: str = "fp32"
) -> InferenceNetwork:
    """A fast frozen copy of a network.

    On a CPU OpenVINO computes it, where that is installed and the network is large; else PyTorch.

    Its outputs equal the network's in eval mode up to rounding (about 1e-6, in tf32 1e-3, in bf16
    about 1e-2).

    Args:
        network: f_A, f_T or f_B; it is not changed.
        example: a small input of the kind that will come, on the device where the copy shall run:
            frames (N, 3, H, W) or clips (B, 3, T, H, W).
        precision: a key of DTYPES; bf16 and fp16 where the device is fast in it (else fp32, with a
            warning), tf32 where `set_tf32` allowed it.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got '{precision}'")
    device = example.device
    if device.type == "cpu":
        keep_freed_memory()
    wanted, precision = precision, inference_precision(precision, device)
    if precision != wanted:
        logger.warning("%s has no fast %s; computing in %s", device, wanted, precision)
    dtype = DTYPES[precision] or torch.float32
    memory_format = torch.channels_last_3d if example.dim() == 5 else torch.channels_last
    copy = deepcopy(network).eval().requires_grad_(False).to(device)
    # Without the wrapper, whose noise would hide whether folding changed the output.
    narrow = copy if isinstance(copy, NarrowOutput) else None
    inner = copy.network if narrow else copy
    if device.type == "cpu" and is_worthwhile(inner):
        if hasattr(inner, "fold_upsampling"):
            inner.fold_upsampling()
        inner = OpenVinoNetwork(inner, precision)
        dtype, memory_format = torch.float32, torch.contiguous_format
    else:
        inner = _folded(inner, example).to(dtype).to(memory_format=memory_format)
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            use_onednn_conv3d(inner)
    if narrow:
        narrow.network = inner
    return InferenceNetwork(narrow or inner, dtype, memory_format).eval()


def prepare_anonymizer(
    network: nn.Module, device: torch.device, precision: str = "fp32"
) -> nn.Module:
    """f_A of `load_anonymizer` by `prepare_for_inference`; one without weights itself."""
    return _prepare(network, (1, 3, 64, 64), device, precision)


def prepare_utility(network: nn.Module, device: torch.device, precision: str = "fp32") -> nn.Module:
    """f_T, for `extract_features(clips)` and `forward`; as `prepare_anonymizer`."""
    clip_shape = getattr(network, "clip_shape", None) or (16, 64, 64)
    return _prepare(network, (1, 3, *clip_shape), device, precision)


def _prepare(
    network: nn.Module, shape: tuple[int, ...], device: torch.device, precision: str
) -> nn.Module:
    if next(network.parameters(), None) is None:
        return network.to(device).eval()
    # Values that differ everywhere: on a constant frame a wrong folding could go unseen.
    example = torch.linspace(0, 1, math.prod(shape), device=device).view(shape)
    return prepare_for_inference(network, example, precision)


@without_tf32()
@torch.no_grad()
def _folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy with folded batch norms; without, where its output of the example would change."""
    folded, expected = fold_batch_norms(deepcopy(network)), _first(network(example))
    if (_first(folded(example)) - expected).norm() <= 1e-3 * expected.norm():
        return folded
    logger.warning("%s runs with its batch norms: they cannot be folded", type(network).__name__)
    return network


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Folds every batch norm that is registered right behind a convolution into it, in place."""
    for module in list(network.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, (nn.Conv2d, nn.Conv3d)) and isinstance(norm, _BatchNorm):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network


class OneDnnConv3d(nn.Conv3d):
    """By oneDNN whatever the size: for one small clip torch takes a loop three times as slow."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        return torch.mkldnn_convolution(x, weight, bias, *geometry)


def use_onednn_conv3d(network: nn.Module) -> None:
    """Lets the 3-D convolutions of a network on a CPU run by oneDNN, in place."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv3d) and conv.padding_mode == "zeros" and conv.padding != "same":
            conv.__class__ = OneDnnConv3d


def _first(output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
