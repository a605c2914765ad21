"""The device of a run; its precisions, allocator and memory layouts."""

import contextlib
import ctypes
import logging
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from aux_code.batch_norm import synchronise_batch_norms
from aux_code.distributed import own_gpu
from aux_code.errors import UserError

log = logging.getLogger(__name__)

DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a precision -> dtype of autocast; None: no autocast. fp32 is IEEE's; tf32 lets a GPU
round the factors of its products and convolutions to 10 bits behind the point."""

_LIBRARIES = ("av", "openvino", "nvidia-dali-cuda130", "nvidia-dali-python")
"""Whose versions a result records, beside PyTorch's, where they are installed."""

DRIVER = Path("/proc/driver/nvidia/version")
"""It is there where NVIDIA's driver is loaded."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of a convolution's weight, of frames or of clips -> layout."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda -> device; under torchrun this rank's own GPU, now the current one.

    Raises:
        UserError: `cuda` where no GPU can be used; says why.
    """
    problem = gpu_problem() if name != "cpu" else ""
    if name == "cuda" and problem:
        raise UserError(f"--device cuda: {problem}; use --device cpu")
    return torch.device("cpu") if name == "cpu" or problem else own_gpu()


@cache
def gpu_problem() -> str:
    """Why no GPU can be used here; empty: one can be."""
    with warnings.catch_warnings(record=True) as said:  # PyTorch's own words are paragraphs
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            if torch.version.cuda is None and torch.version.hip is None:
                return f"PyTorch {torch.__version__} is built without CUDA"
            reasons = [re.split(r"\. | \(Triggered", str(w.message))[0] for w in said]
            return ": ".join(["PyTorch sees no GPU here", *reasons[:1]])
        n_processes, n_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if n_processes > n_gpus:
            return f"{n_processes} processes on this machine, but {n_gpus} GPU(s)"
        capability = torch.cuda.get_device_capability(own_gpu())
        if not has_kernels(capability, torch.cuda.get_arch_list()):
            number, gpu = ".".join(map(str, capability)), torch.cuda.get_device_name()
            return f"PyTorch {torch.__version__} has no kernels for {gpu} (compute {number})"
    return ""


def has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether code for these architectures runs on a GPU: binaries (sm_90) of its generation and no
    later, or PTX (compute_90) no later; unknown names, such as AMD's, are taken to."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in architectures]
    versions = [(m[1], (int(m[2]), int(m[3]))) for m in found if m]
    return not versions or any(
        version <= capability and (kind == "compute" or version[0] == capability[0])
        for kind, version in versions
    )


def start_device(name: str, precision: str = "fp32") -> torch.device:
    """`choose_device` at the start of a script: sets what float32 means, and logs where it runs,
    and why not on the GPU that seems to be there."""
    device = choose_device(name)
    set_tf32(precision_in_force(precision, device) == "tf32")
    if name == "auto" and device.type == "cpu" and (shutil.which("nvidia-smi") or DRIVER.exists()):
        log.warning("a GPU's driver is installed, but %s; running on the CPU", gpu_problem())
    found = environment(device, precision)
    details = found["device_name"], found["precision"], found["versions"]
    log.info("running on %s (%s), %s, %s", device, *details)
    return device


def environment(device: torch.device, precision: str = "fp32") -> dict[str, str]:
    """Where something was computed: kind and name of the device, precision in force, versions."""
    versions = [f"torch {torch.__version__}"]
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{library} {metadata.version(library)}")
    if device.type == "cuda":
        versions.append(f"cudnn {torch.backends.cudnn.version()}")
    return {
        "device_kind": device.type, "device_name": device_name(device),
        "precision": precision_in_force(precision, device), "versions": ", ".join(versions),
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def supports_bf16(device: torch.device | str) -> bool:
    """Whether the device computes in bf16 faster than in fp32 (an unsupported CPU emulates it)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else ""
    return "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()


def precision_in_force(precision: str, device: torch.device) -> str:
    """What --precision means here: `auto` is bf16 where the device is fast in it, else fp32; `tf32`
    is fp32 on a CPU, which has none."""
    if precision == "auto":
        return "bf16" if supports_bf16(device) else "fp32"
    return "fp32" if precision == "tf32" and device.type == "cpu" else precision


def inference_precision(precision: str, device: torch.device) -> str:
    """`precision_in_force` of networks for inference: fp32 where half precision is not fast."""
    in_force = precision_in_force(precision, device)
    is_fast = {"bf16": supports_bf16(device), "fp16": device.type == "cuda"}
    return in_force if is_fast.get(in_force, True) else "fp32"


def set_tf32(allowed: bool) -> None:
    """Whether float32 on a GPU may be tf32 in this process; cuDNN's convolutions are, untold."""
    cudnn = torch.backends.cudnn
    for products in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn):
        products.fp32_precision = "tf32" if allowed else "ieee"


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """IEEE's float32 inside, whatever the precision of the run."""
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(allowed)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast of a precision; of fp32 and tf32 one that does nothing."""
    dtype = DTYPES[precision_in_force(precision, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def in_full_precision(values: Tensor) -> Tensor:
    """float32 of what autocast computed in half precision; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without a wait for a GPU that computes."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


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
