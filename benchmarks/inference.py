"""Inference of f_A and I3D on the CPU: networks prepared by `prepare_for_inference` against plain
eager fp32.

The prepared networks are computed by OpenVINO where it is installed, else by PyTorch (the first
line says which); their conversion, one or two seconds, is not counted. The plain version is the
network as it is built, NCHW, one clip per batch (for f_A: its frames), in a process of its own,
whose allocator is the default one. Both sides and the machine's ceiling run in turns, in
alternating order; figures are medians. The ceiling is the faster of PyTorch's square matrix product
and a 1 x 1 convolution of the same size by oneDNN: on some processors the first is far from what
the second reaches. Errors are relative, in the Euclidean norm, of the 2048-d feature of f_A -> I3D.
Where the CPU has no bf16, those lines are fp32 too (a warning says so).
"""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if (
    str(Path(__file__).resolve().parent.parent) not in sys.path
):  # an uninstalled clone, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from aux_code.inference import prepare_anonymizer, prepare_utility
from aux_code.layout import apply_per_frame
from aux_code.model_loaders import load_fa_model, load_ft_model
from benchmarks.machine import (
    ChildProcess,
    MatrixProduct,
    describe_machine,
    json_line,
    medians,
    rounds_in_turns,
)
from benchmarks.machine import seconds_of as timed
from benchmarks.model_costs import Case, gflop

N_FRAMES = 16
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class OneDnnProduct(MatrixProduct):
    """The same product as a 1 x 1 convolution by oneDNN."""

    def __call__(self) -> float:
        pixels = self.left[None, :, :, None].permute(0, 2, 1, 3)
        kernel = self.right.t()[:, :, None, None]
        return timed(
            lambda: torch.mkldnn_convolution(pixels, kernel, None, (0, 0), (1, 1), (1, 1), 1)
        )


def runtime() -> str:
    """What computes the prepared networks."""
    try:
        return f"OpenVINO {version('openvino')}"
    except PackageNotFoundError:
        return "without OpenVINO"


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
    frames = clips[0].transpose(0, 1).contiguous()
    guard = torch.no_grad()
    functions = {
        "fa": guard(lambda: timed(lambda: fa(frames))),
        "i3d": guard(lambda: timed(lambda: ft.extract_features(clips))),
        "feature": guard(lambda: ft.extract_features(apply_per_frame(fa, clips)).numpy()),
    }
    functions["feature"]()  # warm
    return functions


def prepared_measures(
    size: int, chunk: int
) -> tuple[dict[str, Callable[[], float]], dict[str, Tensor]]:
    """(measures fa_fp32, i3d_fp32, fa_bf16, ..., feature (1, 2048) per precision) of the prepared
    networks."""
    (fa, ft), clips, cpu = networks(), clip(size), torch.device("cpu")
    measures, features = {}, {}
    for precision in PRECISIONS:
        fast_fa, fast_ft = (
            prepare_anonymizer(fa, cpu, precision),
            prepare_utility(ft, cpu, precision),
        )
        measures[f"fa_{precision}"] = lambda net=fast_fa: timed(
            lambda: apply_per_frame(net, clips, chunk)
        )
        measures[f"i3d_{precision}"] = lambda net=fast_ft: timed(
            lambda: net.extract_features(clips)
        )
        features[precision] = fast_ft.extract_features(apply_per_frame(fast_fa, clips, chunk))
    return measures, features


def main(argv: list[str] | None = None) -> int:
    """Times both sides in turns and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=224, help="height and width of the frames in pixels"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--chunk", type=int, default=4, help="frames per pass of the prepared f_A")
    parser.add_argument(
        "--product", type=int, default=2048, help="rows and columns of the ceiling's matrices"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of both sides; 0: PyTorch's default"
    )
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = f"one clip of {N_FRAMES} x {options.size} x {options.size}, {options.rounds} rounds"
    print(f"{describe_machine()}, {runtime()}; {sizes}")
    with ChildProcess(plain_functions, options.size) as child:
        expected = torch.from_numpy(child.call("feature"))
        measures, features = prepared_measures(options.size, options.chunk)
        plain = {f"plain_{name}": lambda name=name: child.call(name) for name in ("fa", "i3d")}
        products = {
            f"{kind.__name__}_{precision}": kind(dtype, options.product)
            for precision, dtype in PRECISIONS.items()
            for kind in (MatrixProduct, OneDnnProduct)
        }
        seconds = medians(rounds_in_turns(plain | measures | products, options.rounds))
    ratios, figures = summary(seconds, products, options.size)
    for precision, feature in features.items():
        figures[f"relative_error_{precision}"] = (
            (feature - expected).norm() / expected.norm()
        ).item()
        print(
            f"relative error of the feature in {precision}: {figures[f'relative_error_{precision}']:.1e}"
        )
    print(json_line("inference", ratios, figures))
    return 0


def summary(
    seconds: dict[str, float], products: dict[str, MatrixProduct], size: int
) -> tuple[dict, dict]:
    """(ratios, figures) of the median seconds; prints a line for each."""
    works = {
        "fa": N_FRAMES * gflop(Case(load_fa_model, (1, 3, size, size)), training=False),
        "i3d": gflop(Case(load_ft_model, (1, 3, N_FRAMES, size, size)), training=False),
    }
    ratios, figures = {}, {}
    for precision in PRECISIONS:
        rates = [
            products[name].gflop / seconds[name] for name in products if name.endswith(precision)
        ]
        figures[f"ceiling_gflops_{precision}"] = ceiling = max(rates)
        print(
            f"ceiling {precision}: {ceiling:.0f} GFLOP/s (matrix product {rates[0]:.0f}, by oneDNN {rates[1]:.0f})"
        )
        for network, work in works.items():
            key = f"{network}_{precision}"
            ratios[key] = seconds[f"plain_{network}"] / seconds[key]
            figures[f"gflops_{key}"] = rate = work / seconds[key]
            figures[f"ceiling_share_{key}"] = rate / ceiling
            figures[f"gflops_plain_{network}"] = work / seconds[f"plain_{network}"]
            plain = f"plain {figures[f'gflops_plain_{network}']:.0f} GFLOP/s"
            print(
                f"{key}: {ratios[key]:.2f} x, {rate:.0f} GFLOP/s, {rate / ceiling:.0%} of the ceiling; {plain}"
            )
    return ratios, figures


if __name__ == "__main__":
    raise SystemExit(main())
