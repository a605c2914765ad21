"""Scripts on a GPU that is none (tests/pretended_gpu): CUDA's rules without its kernels."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anonymization_training.training_batches import _Sample, augmented, collate
from aux_code.datasets.transforms import STRONG
from tests.commands import ROOT, python

RUN = ROOT / "tests" / "pretended_gpu" / "run.py"


def run(*command: str | Path, artefacts: Path, **more: str | Path):
    if not torch.__version__.startswith("2.14."):
        pytest.skip("the pretended GPU fits torch 2.14")
    return python(RUN, *command, TED_SPAD_ARTIFACT_ROOT=artefacts, **more)


def test_the_pretended_gpu_keeps_cudas_rules(tmp_path: Path):
    result = run(__file__, artefacts=tmp_path)
    found = json.loads(result.stdout)
    assert found["device"] == "cuda:0" and found["parameters"] == 2
    bf16, fp32 = "bfloat16", "float32"
    lower = dict.fromkeys(("matmul", "conv", "mean"), bf16)
    others = ("softmax", "add", "sum", "exp", "cross_entropy", "scatter_add")
    assert found["dtypes"] == lower | dict.fromkeys(others, fp32)
    refused = found["refused"]
    assert "unsafe to autocast" in refused.pop("binary_cross_entropy")
    assert "numpy" in refused.pop("numpy")
    assert all("same device" in message for message in refused.values()), refused
    assert not any(found["allowed"].values()), found["allowed"]
    waits = {"item": 1, "cpu": 1, "bool": 1, "nonzero": 1, "mask": 1, "tolist": 1}
    assert found["syncs"] == {**waits, "to the GPU": 0, "sum": 0, "augment": 0}
    assert found["augmented apart"] < 1e-6
    on_gpu, on_cpu = found["losses"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5) and on_gpu[3] < on_gpu[0]
    assert "pretended GPU: " in result.stderr.splitlines()[-1]


def refusal(function, *args, **kwargs) -> str:
    try:
        function(*args, **kwargs)
    except (RuntimeError, TypeError) as error:
        return str(error)[:100]
    return ""


def syncs_of(function) -> int:
    counts = sys.modules["device"].COUNTS
    before = counts["syncs"]
    function()
    return counts["syncs"] - before


def dtypes(x: torch.Tensor, net: nn.Module) -> dict[str, str]:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        results = {
            "matmul": x @ x, "conv": net[0](x[None, None]), "softmax": (x @ x).softmax(0),
            "add": x + x.bfloat16(), "sum": x.bfloat16().sum(), "mean": x.bfloat16().mean(),
            "exp": x.bfloat16().exp(),
            "cross_entropy": F.cross_entropy(x @ x, torch.arange(4, device="cuda")),
            "scatter_add": x.scatter_add(0, x.long().clamp(0, 3), x.clone()),
        }  # fmt: skip
    return {name: str(result.dtype).removeprefix("torch.") for name, result in results.items()}


def trained_losses(device: str) -> list[float]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)
    net = nn.Sequential(*layers).to(device)
    images, labels = torch.rand(8, 3, 8, 8).to(device), torch.arange(8).to(device) % 5
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=1e-2), []
    for _ in range(4):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.inference_mode():
        return [*losses, net.eval()(images).cpu().double().sum().item()]


def augmented_on(device: str) -> torch.Tensor:
    """A batch of stage 1, from clips of two sizes that a loading process handed over."""
    drawn = np.random.default_rng(0)
    clips = [drawn.integers(0, 256, (2, 90, 60 + 20 * i, 3), dtype=np.uint8) for i in range(2)]
    samples = [_Sample([clip] * 2, [0, 0, 1], (0, i), "", i) for i, clip in enumerate(clips * 2)]
    crops, _ = collate(samples, 64, STRONG)
    return augmented(crops, 64, STRONG, torch.device(device)).clips


def main() -> None:
    """On the pretended GPU: what it does, as JSON."""
    x, on_cpu = torch.rand(4, 4, device="cuda"), torch.rand(4, 4)
    net = nn.Sequential(nn.Conv2d(1, 2, 3)).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        forbidden = refusal(F.binary_cross_entropy, x, x)
    refused = {
        "mix": (torch.add, x, on_cpu), "mix the other way": (torch.matmul, on_cpu, x),
        "input of a network": (net, on_cpu[None]), "numpy": (x.numpy,),
        "index": (on_cpu.__getitem__, torch.tensor([0]).to("cuda")),
    }  # fmt: skip
    allowed = {
        "binary_cross_entropy": (F.binary_cross_entropy, x, x), "copy": (x.copy_, on_cpu),
        "number": (torch.add, x, torch.tensor(1.0)), "index": (x.__getitem__, torch.tensor([0])),
    }  # fmt: skip
    waiting = {
        "item": x.sum().item, "cpu": x.cpu, "bool": (x.sum() > 0).__bool__, "nonzero": x.nonzero,
        "mask": lambda: x[x > 0.5], "tolist": x.tolist, "to the GPU": lambda: on_cpu.to("cuda"),
        "sum": x.sum, "augment": lambda: augmented_on("cuda"),
    }  # fmt: skip
    refusals = {name: refusal(*call) for name, call in refused.items()}
    found = {
        "device": str(net[0].weight.device), "parameters": len(list(net.parameters())),
        "dtypes": dtypes(x, net), "refused": refusals | {"binary_cross_entropy": forbidden},
        "allowed": {name: refusal(*call) for name, call in allowed.items()},
        "syncs": {name: syncs_of(function) for name, function in waiting.items()},
        "losses": [trained_losses("cuda"), trained_losses("cpu")],
        "augmented apart": (augmented_on("cuda").cpu() - augmented_on("cpu")).abs().max().item(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
