"""Inference of f_A and I3D on the CPU: `prepare_for_inference` against plain eager fp32.

The prepared networks are computed by OpenVINO where it is installed, else by PyTorch (the first
line says which); their conversion, one or two seconds, is not counted. The plain version is the
network as it is built, NCHW, one clip per batch (for f_A: its frames), in a process of its own,
whose allocator is the default one. Both sides and the machine's ceiling run in turns, in
alternating order; figures are medians. The ceiling is the faster of PyTorch's square matrix product
and a 1 x 1 convolution of the same size by oneDNN: on some processors the first is far from what
the second reaches. Errors are relative, in the Euclidean norm, of the 2048-d feature of f_A -> I3D.
Where the CPU has no bf16, those lines are fp32 too (a warning says so).
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from aux_code.devices import supports_bf16
from aux_code.inference import prepare_anonymizer, prepare_utility
from aux_code.layout import apply_per_frame
from aux_code.model_loaders import load_fa_model, load_ft_model
from benchmarks import machine
from benchmarks.machine import PRECISIONS, ChildProcess, MatrixProduct, medians, rounds_in_turns
from benchmarks.machine import seconds_of as timed
from benchmarks.model_costs import inference_gflop

N_FRAMES = 16
OPTIONS = {
    "size": (224, "height and width of the frames in pixels"), "rounds": (7, "rounds that count"),
    "chunk": (4, "frames per pass of the prepared f_A"),
    "product": (2048, "rows and columns of the ceiling's matrices"), "threads": machine.THREADS,
}  # fmt: skip


class OneDnnProduct(MatrixProduct):
    """The same product as a 1 x 1 convolution by oneDNN."""

    def __call__(self) -> float:
        pixels = self.left[None, :, :, None].permute(0, 2, 1, 3)  # (1, C, N, 1)
        kernel = self.right.t()[:, :, None, None]  # (C, C, 1, 1)
        geometry = ((0, 0), (1, 1), (1, 1), 1)
        return timed(lambda: torch.mkldnn_convolution(pixels, kernel, None, *geometry))


def networks() -> tuple[nn.Module, nn.Module]:
    """f_A and I3D with the same random weights in every process."""
    torch.manual_seed(0)
    return load_fa_model().eval(), load_ft_model().eval()


def clip(size: int) -> Tensor:
    """(1, 3, T, size, size) in [0, 1], the same in every process."""
    return torch.rand(1, 3, N_FRAMES, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def plain_functions(size: int) -> dict[str, Callable[[], object]]:
    """The plain version's measures; called in the child."""
    fa, ft = networks()
    clips = clip(size)
    frames = clips[0].transpose(0, 1).contiguous()  # (T, 3, H, W)
    guard = torch.no_grad()
    functions = {
        "fa": guard(lambda: timed(lambda: fa(frames))),
        "i3d": guard(lambda: timed(lambda: ft.extract_features(clips))),
        "feature": guard(lambda: ft.extract_features(apply_per_frame(fa, clips)).numpy()),
    }
    functions["feature"]()  # warm
    return functions


def prepared_measures(size: int, chunk: int, precision: str) -> dict[str, Callable[[], object]]:
    """The same of the prepared networks, called here."""
    (fa, ft), clips, cpu = networks(), clip(size), torch.device("cpu")
    fa, ft = prepare_anonymizer(fa, cpu, precision), prepare_utility(ft, cpu, precision)
    return {
        f"fa_{precision}": lambda: timed(lambda: apply_per_frame(fa, clips, chunk)),
        f"i3d_{precision}": lambda: timed(lambda: ft.extract_features(clips)),
        "feature": lambda: ft.extract_features(apply_per_frame(fa, clips, chunk)),
    }


def ceilings(size: int) -> dict[str, MatrixProduct]:
    """Each kind of product in each precision."""
    fast = supports_bf16("cpu")
    return {
        f"{kind.__name__}_{precision}": kind(dtype if fast else torch.float32, size)
        for precision, dtype in PRECISIONS.items()
        for kind in (MatrixProduct, OneDnnProduct)
    }


def main(argv: list[str] | None = None) -> int:
    """Times both sides in turns and ends with one line of JSON."""
    options = machine.parse_options(__doc__, argv, OPTIONS)
    try:
        runtime = f"OpenVINO {version('openvino')}"
    except PackageNotFoundError:
        runtime = "without OpenVINO"
    sizes = f"one clip of {N_FRAMES} x {options.size} x {options.size}, {options.rounds} rounds"
    print(f"{machine.describe_machine()}, {runtime}; {sizes}")
    measures, features = {}, {}
    with ChildProcess(plain_functions, options.size) as child:
        expected = torch.from_numpy(child.call("feature"))
        for precision in PRECISIONS:
            measures |= prepared_measures(options.size, options.chunk, precision)
            features[precision] = measures.pop("feature")()
        measures |= {f"plain_{name}": partial(child.call, name) for name in ("fa", "i3d")}
        products = ceilings(options.product)
        seconds = medians(rounds_in_turns(measures | products, options.rounds))
    gflops = {name: product.gflop / seconds[name] for name, product in products.items()}
    ratios, figures = summary(seconds, gflops, inference_gflop(options.size))
    for precision, feature in features.items():
        error = ((feature - expected).norm() / expected.norm()).item()
        figures[f"relative_error_{precision}"] = error
        print(f"relative error of the feature in {precision}: {error:.1e}")
    print(machine.json_line("inference", ratios, figures))
    return 0


def summary(
    seconds: dict[str, float], products: dict[str, float], works: dict[str, float]
) -> tuple[dict, dict]:
    """(ratios, figures) of median seconds, GFLOP/s of products and GFLOP of networks; printed."""
    ratios, figures = {}, {}
    for precision in PRECISIONS:
        ceiling = max(rate for name, rate in products.items() if name.endswith(precision))
        figures[f"ceiling_gflops_{precision}"] = ceiling
        print(f"ceiling {precision}: {ceiling:.0f} GFLOP/s")
        for network, work in works.items():
            key, plain = f"{network}_{precision}", seconds[f"plain_{network}"]
            ratios[key] = plain / seconds[key]
            figures[f"gflops_{key}"] = rate = work / seconds[key]
            figures[f"ceiling_share_{key}"] = rate / ceiling
            figures[f"gflops_plain_{network}"] = work / plain
            share = f"{rate / ceiling:.0%} of the ceiling; plain {work / plain:.0f}"
            print(f"{key}: {ratios[key]:.2f} x, {rate:.0f} GFLOP/s, {share}")
    return ratios, figures


if __name__ == "__main__":
    raise SystemExit(main())
