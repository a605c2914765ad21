"""The device of a run; its precisions, allocator and memory layouts."""

import ctypes

import torch
from torch import Tensor, nn

from aux_code.batch_norm import synchronise_batch_norms
from aux_code.errors import UserError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a precision -> dtype of autocast; None: no autocast."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of a convolution's weight, of frames or of clips -> layout."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda -> device.

    Raises:
        UserError: `cuda` without a GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "--device cuda: PyTorch sees no GPU here; use --device cpu or install a driver"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def supports_bf16(device: torch.device | str) -> bool:
    """Whether the device computes in bf16 faster than in fp32 (an unsupported CPU emulates it)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else ""
    return "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()


def precision_in_force(precision: str, device: torch.device) -> str:
    """What --precision means here: `auto` is bf16 where the device is fast in it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if supports_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast of a precision (fp32, bf16, fp16 or auto); of fp32 one that does nothing."""
    dtype = DTYPES[precision_in_force(precision, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def in_full_precision(values: Tensor) -> Tensor:
    """float32 of what autocast computed in half precision; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep freed memory of large temporaries, whose page faults are half
    of eager CPU time otherwise; False with other C libraries. Holds for the whole process."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def prepare_for_training(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on `device` with channels-last weights, which its activations follow. Under
    torchrun batch norms take the statistics of all ranks. The state dict keeps its names."""
    if device.type == "cpu":
        keep_freed_memory()
    network = network.to(device)
    for weight in network.parameters():
        if weight.dim() in _CHANNELS_LAST:
            weight.data = weight.data.contiguous(memory_format=_CHANNELS_LAST[weight.dim()])
    return synchronise_batch_norms(network)
