"""Networks prepared for inference: folded batch norms, channels-last, bf16; OpenVINO or oneDNN;
compiled if wanted."""

import logging
import math
import os
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aux_code.devices import keep_freed_memory, supports_bf16
from aux_code.models.anonymizers import NarrowOutput
from aux_code.openvino_networks import OpenVinoNetwork, is_worthwhile

logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def keep_prepared_products() -> None:
    """Lets oneDNN keep what it prepares for a product's size, for 8,192 sizes; call it before the
    first product.

    It takes a millisecond for each. By default the last 1,024 are kept: with lengths that differ
    from video to video an epoch with its evaluation has more, so that the next one finds none of
    them (6 % of MGFN's epoch).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


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
    network: nn.Module, example: Tensor, precision: str = "fp32", compile_network: bool = False
) -> InferenceNetwork:
    """A fast frozen copy of a network.

    On a CPU OpenVINO computes it, where that is installed and the network is large; else PyTorch
    does.

    Args:
        network: f_A, f_T or f_B; it is not changed.
        example: an input of the kind that will come, on the device where the copy shall run: frames
            (N, 3, H, W) or clips (B, 3, T, H, W). One small one is enough.
        precision: "fp32", or "bf16" where the device has it (else fp32, with a warning).
        compile_network: torch.compile the copy; pays for long runs at one input size.

    Returns:
        The copy. Its outputs equal the network's in eval mode up to rounding (about 1e-6, in bf16
        about 1e-2).

    Raises:
        ValueError: unknown precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got '{precision}'")
    device = example.device
    if device.type == "cpu":
        keep_freed_memory()
    if precision == "bf16" and not supports_bf16(device):
        logger.warning("%s has no fast bf16; computing in fp32", device)
        precision = "fp32"
    copy = deepcopy(network).eval().requires_grad_(False).to(device)
    # without the wrapper, whose noise would hide whether folding changed the output
    narrow = copy if isinstance(copy, NarrowOutput) else None
    inner = copy.network if narrow else copy
    fold_batch_norms(inner, example)
    if device.type == "cpu" and hasattr(inner, "fold_upsampling"):
        inner.fold_upsampling()
    if device.type == "cpu" and not compile_network and is_worthwhile(inner):
        inner = OpenVinoNetwork(inner, precision)
        if narrow:
            narrow.network = inner
        return InferenceNetwork(narrow or inner, torch.float32, torch.contiguous_format).eval()
    return _by_pytorch(copy, example, precision, compile_network)


def _by_pytorch(
    copy: nn.Module, example: Tensor, precision: str, compile_network: bool
) -> InferenceNetwork:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    memory_format = torch.channels_last_3d if example.dim() == 5 else torch.channels_last
    copy = copy.to(dtype).to(memory_format=memory_format)
    if example.device.type == "cpu" and not compile_network:
        use_onednn_conv3d(copy)
    if compile_network:
        copy.compile()
        if hasattr(copy, "extract_features"):
            copy.extract_features = torch.compile(copy.extract_features)
    return InferenceNetwork(copy, dtype, memory_format).eval()


def prepare_anonymizer(
    network: nn.Module, device: torch.device, precision: str = "fp32"
) -> nn.Module:
    """f_A as `load_anonymizer` gives it, ready for inference on a device.

    Args:
        network: frames (N, 3, H, W) in [0, 1] -> (N, 3, H, W); it is not changed where it is
            prepared.
        device: where it shall run.
        precision: of `prepare_for_inference`.

    Returns:
        A network with weights prepared; one without (raw, blur, blacken, ...) itself, in eval mode
        on the device.
    """
    return _prepare(network, (1, 3, 64, 64), device, precision)


def prepare_utility(network: nn.Module, device: torch.device, precision: str = "fp32") -> nn.Module:
    """f_T, for `extract_features(clips)` and `forward`, ready for inference on a device; as
    `prepare_anonymizer`."""
    return _prepare(
        network, (1, 3, *(getattr(network, "clip_shape", None) or (16, 64, 64))), device, precision
    )


def _prepare(
    network: nn.Module, shape: tuple[int, ...], device: torch.device, precision: str
) -> nn.Module:
    if next(network.parameters(), None) is None:
        return network.to(device).eval()
    # values that differ everywhere: on a constant picture a wrong folding could go unseen
    example = torch.linspace(0, 1, math.prod(shape), device=device).view(shape)
    return prepare_for_inference(network, example, precision)


class OneDnnConv3d(nn.Module):
    """nn.Conv3d by oneDNN whatever the batch: PyTorch itself takes a several times slower loop for
    single fp32 clips.

    Args:
        conv: a convolution with zero padding, given in numbers; its parameters are shared.
    """

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(x, self.weight, self.bias, *self.geometry)


def use_onednn_conv3d(network: nn.Module) -> int:
    """Replaces the 3-D convolutions of a network on the CPU by `OneDnnConv3d`, in place; returns
    how many."""
    if not torch.backends.mkldnn.is_available():
        return 0
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ]
    for name, module in found:
        if name:
            network.set_submodule(name, OneDnnConv3d(module))
    return len([name for name, _ in found if name])


@torch.no_grad()
def fold_batch_norms(network: nn.Module, example: Tensor) -> int:
    """Folds every batch norm that directly follows a convolution into it, in place; returns how
    many.

    The pairs are found by running the example: a batch norm belongs to the convolution whose output
    it receives. Both must run exactly once in a pass. A network whose output would change is left
    as it was (with a warning): some convolution's output is read elsewhere too. The network must be
    in eval mode.
    """
    pairs, expected = _find_pairs(network, example)
    replaced: list[tuple[str, nn.Module]] = []
    for conv_name, norm_name in pairs:
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        network.set_submodule(norm_name, nn.Identity())
        replaced += [(conv_name, conv), (norm_name, norm)]
    difference = (_first(network(example)) - expected).norm()
    if difference <= 1e-3 * expected.norm():
        return len(replaced) // 2
    logger.warning(
        "the batch norms of %s cannot be folded; it runs as it is", type(network).__name__
    )
    for name, module in replaced:
        network.set_submodule(name, module)
    return 0


def _first(output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _find_pairs(network: nn.Module, example: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of (convolution, the batch norm that takes its output), and the network's output of the
    example."""
    # the outputs are kept alive, so that no two tensors of the pass share an id
    produced: dict[int, tuple[str, Tensor]] = {}
    found: list[tuple[str, str]] = []
    runs: dict[str, int] = {}

    def watch(name: str, module: nn.Module):
        def after(_module, inputs, output):
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, _CONVOLUTIONS):
                produced[id(output)] = (name, output)
            elif id(inputs[0]) in produced:
                found.append((produced[id(inputs[0])][0], name))

        return module.register_forward_hook(after)

    watched = [
        (n, m) for n, m in network.named_modules() if isinstance(m, (*_CONVOLUTIONS, _BatchNorm))
    ]
    handles = [watch(name, module) for name, module in watched]
    try:
        output = _first(network(example))
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in found if runs[pair[0]] == runs[pair[1]] == 1], output
