"""Costs of the networks at the paper's sizes: parameters, GFLOP, peak memory, also in training.

GFLOP are counted by torch.utils.flop_counter: multiplication and addition are two; convolutions
and matrix products count. A training pass is forward and backward. Memory is the highest sum of the
tensors that the profiler saw allocated on the CPU, in fp32, beyond weights and input. A unit is a
frame (f_A), a clip (f_T), an image (f_B) or a batch of 32 bags of 32 segments (MGFN).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from anomaly_detection_mgfn.mgfn import MGFN
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model
from benchmarks.machine import describe_machine, json_line, parse_options


class Case(NamedTuple):
    """A network and the shape of one unit of its input."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


FRAME, CLIP = (1, 3, 224, 224), (1, 3, 16, 224, 224)
CASES = {
    "fa_unet++": Case(load_fa_model, FRAME), "fa_unet": Case(lambda: load_fa_model("unet"), FRAME),
    "ft_i3d": Case(load_ft_model, CLIP), "ft_r3d_18": Case(lambda: load_ft_model("r3d_18"), CLIP),
    "ft_mvitv2": Case(lambda: load_ft_model("mvitv2"), CLIP), "fb_r50": Case(load_fb_model, FRAME),
    "mgfn": Case(MGFN, (32, 1, 32, 2049)),
}  # fmt: skip


def n_parameters(case: Case) -> int:
    """Number of trained values."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in case.build().parameters())


def gflop(case: Case, training: bool) -> float:
    """Counted on the meta device, on which nothing is computed."""
    with torch.device("meta"):
        network, example = case.build().eval(), torch.zeros(case.shape, requires_grad=training)
        mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            run(network, example, training)
    return counter.get_total_flops() / 1e9


def _convolution_backward(grad_out, x, w, *rest, out_shape) -> int:
    """Torch's own counts a grouped convolution as if every output saw all inputs."""
    transposed, mask = rest[4], rest[7]
    return sum(mask[:2]) * conv_flop_count(x, w, grad_out, transposed)


def inference_gflop(size: int) -> dict[str, float]:
    """Of f_A on 16 frames and of I3D on the clip that they are, `size` pixels high and wide."""
    fa = gflop(Case(load_fa_model, (1, 3, size, size)), training=False)
    return {
        "fa": 16 * fa,
        "i3d": gflop(Case(load_ft_model, (1, 3, 16, size, size)), training=False),
    }


def peak_memory(case: Case, training: bool) -> int:
    """Most bytes that a pass holds beyond weights and input, as the profiler saw allocations."""
    network, example = case.build().train(training), torch.rand(case.shape)
    if case.shape[0] == 1:  # a head sees the one vector of a clip or image: it has no statistics
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(network, example.requires_grad_(training), training)
    events = profiler.profiler.kineto_results.events()
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        highest = max(highest, held)
    return highest


def run(network: nn.Module, example: Tensor, training: bool) -> None:
    """A forward pass without gradient, or one with and its backward pass from all outputs."""
    with torch.set_grad_enabled(training):
        output = network(example)
        if training:
            outputs = (output,) if isinstance(output, Tensor) else output
            sum(tensor.sum() for tensor in outputs).backward()


def main(argv: list[str] | None = None) -> int:
    """Prints a line per network and ends with one line of JSON."""
    options = parse_options(__doc__, argv, {"networks": (tuple(CASES), "which; default: all")})
    print(describe_machine())
    print(f"{'network':12}{'million':>10}{'GFLOP':>10}{'training':>10}{'MiB':>10}{'training':>10}")
    figures = {}
    for name in options.networks:
        case = CASES[name]
        costs = {
            "parameters_million": n_parameters(case) / 1e6,
            "gflop": gflop(case, training=False),
            "training_gflop": gflop(case, training=True),
            "peak_mib": peak_memory(case, training=False) / 2**20,
            "training_peak_mib": peak_memory(case, training=True) / 2**20,
        }
        print(f"{name:12}" + "".join(f"{value:10.2f}" for value in costs.values()), flush=True)
        figures |= {f"{name}_{key}": value for key, value in costs.items()}
    print(json_line("model_costs", {}, figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
