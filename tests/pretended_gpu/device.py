"""A GPU that is none: tensors that compute on the CPU, but are on cuda:0 and keep CUDA's rules.

For finding mistakes on machines without a GPU: operations that CUDA's autocast forbids, tensors of
two devices in one operation, .numpy() without .cpu(), and how often the host waits for the device.
It is torch's PrivateUse1 device under a false name, without a line of C++; fits torch 2.14.
Not covered: DALI on a GPU, NCCL, kernels and their rounding (but for that of tf32), speed, memory,
the cache of autocast.
"""

import contextlib
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

GPU = torch.device("cuda:0")
COUNTS = {"operations": 0, "syncs": 0}
WAITS = set(
    "_local_scalar_dense nonzero _unique2 unique_dim unique_consecutive masked_select equal "
    "is_nonzero repeat_interleave".split()
)
"""Operations whose result, or its size, the host reads."""
FROM_EITHER = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "set_"}
"""Operations that take tensors of both devices; of `index` only the indices may lie on the CPU."""
LOWER_PRECISION = set(
    "_convolution convolution cudnn_convolution cudnn_convolution_transpose conv1d conv2d conv3d "
    "conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d prelu addmm addmv addr matmul "
    "einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot "
    "_thnn_fused_lstm_cell _thnn_fused_gru_cell _cudnn_rnn lstm_cell gru_cell rnn_tanh_cell "
    "rnn_relu_cell _scaled_dot_product_flash_attention scaled_dot_product_attention".split()
)
WIDEST_INPUT = set(
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot "
    "scatter_add".split()
)
"""What autocast does to these operations; binary_cross_entropy it forbids, the rest of its list
(torch says which) computes in fp32."""
CONVOLUTIONS = {"convolution", "convolution_backward"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
"""Of what tf32 rounds the inputs."""


def named_device(args: tuple, kind: type) -> tuple:
    """Arguments of Tensor.to: a tensor in the first place gives device and dtype."""
    is_tensor = bool(args) and isinstance(args[0], kind)
    return (args[0].device, args[0].dtype, *args[1:]) if is_tensor else args


class PretendedTensor(torch.Tensor):
    """A tensor of cuda:0; `inner` is the CPU tensor that it stands for."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False):
        facts = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        facts |= {"dtype": inner.dtype, "device": torch.device("pretended:0")}
        with torch.inference_mode(inner.is_inference()):
            make = torch.Tensor._make_wrapper_subclass
            outer = make(cls, inner.shape, **facts, requires_grad=requires_grad)
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def to(self, *args, **kwargs):
        """No copy where nothing changes; torch itself would see another device's name."""
        args = named_device(args, torch.Tensor)
        copy = kwargs.pop("copy", False)
        device, dtype, waits_not, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        result = self
        if device is not None and device.type == "cpu":
            how = {"dtype": dtype, "device": device, "non_blocking": waits_not}
            result = torch.ops.aten._to_copy(self, **how)
        elif copy or dtype not in (None, self.dtype):
            result = torch.ops.aten._to_copy(self, dtype=dtype or self.dtype)
        return result.contiguous(memory_format=memory_format) if memory_format else result

    def cpu(self, **_):
        return self.to("cpu")

    def get_device(self):
        return 0

    def pin_memory(self, *_):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors")

    def record_stream(self, _):
        pass

    def tolist(self):
        COUNTS["syncs"] += 1
        return self.inner.tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = PretendedTensor(self.inner.clone(), self.requires_grad)
            if getattr(self, "_is_param", False):
                memo[id(self)]._is_param = True
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        COUNTS["syncs"] += 1
        return self.inner.detach().__reduce_ex__(protocol)


def compute(func, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation of torch on the CPU; its result is on the GPU if an input or `device` is."""
    name = func.__name__.split(".")[0]
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]
    on_gpu = bool(ours)
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if kwargs.get("device") is not None:
        on_gpu = torch.device(kwargs["device"]).type != "cpu"
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif name == "copy_":
        on_gpu = isinstance(args[0], PretendedTensor)
    if not (ours or on_gpu):
        return func(*args, **kwargs)
    refuse_mixed_devices(name, args, leaves)
    COUNTS["operations"] += 1
    reads = name in WAITS and func.__name__ != "repeat_interleave.self_int"
    copies = waits_for_a_copy(name, args, kwargs, on_gpu)
    COUNTS["syncs"] += reads or copies or indexes_with_a_mask(name, args)
    plain = tree_map(lambda x: x.inner if isinstance(x, PretendedTensor) else x, (args, kwargs))
    cudnn, cublas = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    for names, backend in ((CONVOLUTIONS, cudnn), (PRODUCTS, cublas)):
        if name in names and backend.fp32_precision == "tf32":
            plain = tree_map(as_tf32, plain)
    result = func(*plain[0], **plain[1])
    if not on_gpu:
        return result
    if name == "_to_copy" and not ours:
        result = result.clone()
    return wrap(result, ours)


def wrap(result: Any, inputs: list[PretendedTensor]) -> Any:
    """Tensors of the result, on the GPU; one that is an input (changed in place) is that input."""
    known = {id(x.inner): x for x in inputs}

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, PretendedTensor):
            return value
        if id(value) not in known:
            return PretendedTensor(value)
        if known[id(value)].shape != value.shape:
            raise NotImplementedError("a change of shape in place, on the pretended GPU")
        return known[id(value)]

    return tree_map(outer, result)


def refuse_mixed_devices(name: str, args: tuple, leaves: list[Any]) -> None:
    """CUDA takes numbers from the CPU, but no arrays."""
    if torch._C._current_graph_task_id() != -1:  # formulas of gradients are torch's own affair
        return
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if name in FROM_EITHER:
        tensors = [args[0], *args[2:3]] if name.startswith(("index", "_index")) else []
    arrays = [x for x in tensors if isinstance(x, torch.Tensor) and x.dim() and x.numel()]
    kinds = {isinstance(x, PretendedTensor) for x in arrays}
    if len(kinds) > 1 or (kinds == {False} and name in ("index", "index_put", "index_put_")):
        raise RuntimeError(f"Expected all tensors to be on the same device ({name})")


def as_tf32(value: Any) -> Any:
    """float32 rounded to 10 bits behind the point, ties to even."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def waits_for_a_copy(name: str, args: tuple, kwargs: dict[str, Any], to_gpu: bool) -> bool:
    """Whether it goes from one device to the other, and the host stays until it has arrived."""
    if name not in ("_to_copy", "copy_"):
        return False
    crosses = isinstance(args[name == "copy_"], PretendedTensor) != to_gpu
    return crosses and not (kwargs.get("non_blocking") or args[2:] == (True,))


def indexes_with_a_mask(name: str, args: tuple) -> bool:
    indices = args[1] if name == "index" else ()
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)


class Factories(TorchDispatchMode):
    """Tensors that come into being on the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def add_autocast_rules() -> tuple[torch.library.Library, ...]:
    """The rules of CUDA's autocast, which hold for as long as the libraries live."""
    library, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for full_name in torch._C._dispatch_get_all_op_names():
        if full_name.startswith("aten::") and has_kernel(full_name, "AutocastCUDA"):
            name, _, overload = full_name.removeprefix("aten::").partition(".")
            operation = getattr(getattr(torch.ops.aten, name), overload or "default")
            library.impl(full_name, autocast_kernel(name, operation, keys), "AutocastPrivateUse1")
    return library, others


def autocast_kernel(name: str, operation, keys):
    """The operation, with its floating inputs in the dtype that autocast gives them."""

    def kernel(*args, **kwargs):
        if name == "binary_cross_entropy":
            raise RuntimeError("binary_cross_entropy and BCELoss are unsafe to autocast")
        inputs = [x for x in tree_leaves((args, kwargs)) if is_castable(x)]
        dtype = torch.get_autocast_dtype("cuda") if name in LOWER_PRECISION else torch.float32
        if name in WIDEST_INPUT and all(x.dtype != torch.float32 for x in inputs):
            dtype = torch.get_autocast_dtype("cuda")
        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = tree_map(lambda x: x.to(dtype) if is_castable(x) else x, (args, kwargs))
            return operation(*args, **kwargs)

    return kernel


def is_castable(value: Any) -> bool:
    """Autocast leaves integers, fp64 and tensors of the CPU alone."""
    floating = isinstance(value, PretendedTensor) and value.is_floating_point()
    return floating and value.dtype != torch.float64


class Stream:
    """Everything has been done when a call returns; as an event, a moment."""

    def __init__(self, *_, **__):
        self.seconds = 0.0

    def synchronize(self):
        COUNTS["syncs"] += 1

    def wait_stream(self, _):
        pass

    def record(self, *_):
        self.seconds = time.perf_counter()

    def elapsed_time(self, other):
        return 1000 * (other.seconds - self.seconds)


ANSWERS = {
    "is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1,
    "current_device": 0, "get_device_name": "pretended", "get_device_capability": (9, 0),
    "get_arch_list": ["sm_90"], "mem_get_info": (70 * 2**30, 80 * 2**30), "_lazy_init": None,
    "manual_seed": None, "manual_seed_all": None, "set_device": None,
}  # fmt: skip
"""Function of torch.cuda -> what it returns."""


def pretend_torch_cuda() -> None:
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.synchronize = lambda *_: Stream().synchronize()
    torch.cuda.Stream = torch.cuda.Event = Stream
    torch.cuda.current_stream = torch.cuda.default_stream = Stream
    torch.cuda.stream = torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.Tensor.pin_memory = lambda self, *_: self


def mirror_autocast_state() -> None:
    """What scripts tell the autocast of cuda, this device is told too."""
    for name in ("set_autocast_enabled", "set_autocast_dtype"):
        original = getattr(torch, name)

        def both(device, value, original=original):
            original(device, value)
            if device == "cuda":
                original("pretended", value)

        setattr(torch, name, both)


def install() -> None:
    _setup_privateuseone_for_python_backend("pretended")
    torch._C._ensureCUDADeviceGuardSet()
    pretend_torch_cuda()
    mirror_autocast_state()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    plain_to = torch.Tensor.to

    def to(self, *args, **kwargs):
        return plain_to(self, *named_device(args, PretendedTensor), **kwargs)

    torch.Tensor.to = to
    install.kept = (*add_autocast_rules(), Factories())
    install.kept[-1].__enter__()
