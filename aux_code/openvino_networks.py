"""Large networks by OpenVINO on the CPU, which fuses layers and packs weights once."""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from aux_code.models.utility import UtilityNetwork

logger = logging.getLogger(__name__)

_LARGE = 2_000_000
"""Trained values from which a network is worth a second of conversion per size of input."""

_PIXELS_PER_PASS = 4 * 224 * 224
"""Larger passes gain nothing (measured: four frames, a quarter of a clip)."""

_MAX_SIZES = 8
"""Sizes of input whose conversions are kept: enough for a batch and its rests."""


def is_worthwhile(network: nn.Module) -> bool:
    """Whether OpenVINO is installed and the network large enough; the miniature's ones are not."""
    if importlib.util.find_spec("openvino") is None:
        return False
    return sum(parameter.numel() for parameter in network.parameters()) >= _LARGE


class OpenVinoNetwork(nn.Module):
    """A frozen network on the CPU whose passes OpenVINO computes; float32 in and out.

    It is converted when an input of a new size comes. Batches go in pieces of 1, 2, 4, ... frames,
    clips one by one, so that memory does not grow with the batch. As many threads as PyTorch has
    are used. A size that cannot be converted stays with PyTorch.

    Args:
        network: f_A, f_T or f_B in float32, in eval mode; its weights are frozen here.
        precision: "fp32" or "bf16", of convolutions and matrix products.
    """

    def __init__(self, network: nn.Module, precision: str):
        super().__init__()
        self.network = network.requires_grad_(False)  # constants of what is traced
        self.precision = precision
        self.requires_boxes = getattr(network, "requires_boxes", False)
        self.feature_dim = getattr(network, "feature_dim", 0)
        self._models: dict[tuple, Any] = {}
        self._passes: dict[tuple, Callable[[Tensor], Tensor]] = {}

    def forward(self, x: Tensor):
        if isinstance(self.network, UtilityNetwork):  # the rest is not worth a conversion
            return self.network.classify(self.extract_features(x))
        return self._in_pieces("forward", x)

    def extract_features(self, x: Tensor) -> Tensor:
        """clips or images -> (B, feature_dim)."""
        return self._in_pieces("extract_features", x)

    def _in_pieces(self, method: str, x: Tensor) -> Tensor:
        n_pixels = x[0, 0].numel() if len(x) else 1
        pieces = x.contiguous().split(_piece_lengths(len(x), max(1, _PIXELS_PER_PASS // n_pixels)))
        outputs = [self._pass(method, piece)(piece) for piece in pieces]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _pass(self, method: str, piece: Tensor) -> Callable[[Tensor], Tensor]:
        key = method, tuple(piece.shape), torch.get_num_threads()
        if key not in self._passes:
            try:
                compute = self._compiled(method, piece)
            except CannotConvert as error:
                name = type(self.network).__name__
                logger.warning("OpenVINO does not take %s (%s); PyTorch computes it", name, error)
                compute = getattr(self.network, method)
            _keep(self._passes, key, compute)
        return self._passes[key]

    def _compiled(self, method: str, piece: Tensor) -> Callable[[Tensor], Tensor]:
        """The pass of one size of input."""
        size = method, tuple(piece.shape[1:])
        if size not in self._models:
            _keep(self._models, size, _convert(getattr(self.network, method), piece[:1]))
        model = self._models[size].clone()
        model.reshape(list(piece.shape))
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # several processes on a machine (shards) would otherwise all sit on the first cores
            "ENABLE_CPU_PINNING": False,
        }
        request = _core().compile_model(model, "CPU", options).create_infer_request()

        def run(x: Tensor) -> Tensor:
            output = request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0]
            return torch.from_numpy(output.copy())  # the next output goes to the same place

        return run


def _piece_lengths(n: int, longest: int) -> list[int]:
    """Powers of two that sum to a batch of `n`, none above `longest`: a pass is compiled for each.

    With odd lengths oneDNN shares out some convolutions among threads, and rounds, in another way.
    """
    lengths = []
    while n > sum(lengths):
        lengths.append(1 << min(n - sum(lengths), longest).bit_length() - 1)
    return lengths or [0]


def _keep(cache: dict, key: tuple, value: Any) -> None:
    """Adds to a cache of the last `_MAX_SIZES`; ever new sizes would fill the memory."""
    while len(cache) >= _MAX_SIZES:
        cache.pop(next(iter(cache)))
    cache[key] = value


class CannotConvert(Exception):
    """OpenVINO has no counterpart for some operation of a network."""


def _convert(compute: Callable[[Tensor], Tensor], example: Tensor) -> Any:
    """openvino.Model of a network's method for inputs of the example's size.

    Raises:
        CannotConvert: says which operation is at fault.
    """
    _import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Sizes read off the input become constants, as they should: a model serves one size. What is
    # traced may be neither an inference tensor nor of a caller's inference mode.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A function: of a module, a script module would be made for each part first.
        traced = torch.jit.trace(lambda x: compute(x), (example.clone(),), check_trace=False)
        decoder = TorchScriptPythonDecoder(traced)
        # By the front end itself: `openvino.convert_model` would report to the maker.
        front_end = FrontEndManager().load_by_framework("pytorch")
        try:
            input_model = front_end.load(decoder)
            return front_end.convert(input_model)
        except Exception as error:  # its failures have no common base
            raise CannotConvert(str(error).splitlines()[-1]) from error


@lru_cache(maxsize=1)
def _core() -> Any:
    """The one openvino.Core of the process, which lives as long as the process.

    Its CPU plugin gives the thread a stack for signal handlers and puts the one before back when it
    goes. Of two cores, the second to go would put back what the first has freed: SIGSEGV at the
    next signal.
    """
    return _import_openvino().Core()


def _import_openvino() -> Any:
    """The module without its telemetry, which writes to the home folder and calls its maker.

    It does without where that package is absent; it is made absent for the time of the import.
    """
    if "openvino" not in sys.modules:
        telemetry = sys.modules.get("openvino_telemetry")
        sys.modules["openvino_telemetry"] = None
        try:
            import openvino  # noqa: F401
        finally:
            del sys.modules["openvino_telemetry"]
            if telemetry is not None:
                sys.modules["openvino_telemetry"] = telemetry
    return sys.modules["openvino"]
