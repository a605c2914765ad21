"""What the pretended GPU must do, as JSON; run by run.py from tests/test_pretended_gpu.py."""

import json
import sys

import torch
import torch.nn.functional as F
from torch import nn


def refusal(function, *args, **kwargs) -> str:
    """The first words of the error; empty if there is none."""
    try:
        function(*args, **kwargs)
    except (RuntimeError, TypeError) as error:
        return str(error)[:100]
    return ""


def syncs_of(function, *args) -> int:
    """How often the host waits in it."""
    before = sys.modules["device"].COUNTS["syncs"]
    function(*args)
    return sys.modules["device"].COUNTS["syncs"] - before


def dtypes(x: torch.Tensor, net: nn.Module) -> dict[str, str]:
    """Of results under autocast."""
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
    """Of a small network, which must be the same on the CPU."""
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


def main() -> None:
    """Prints it."""
    x, on_cpu = torch.rand(4, 4, device="cuda"), torch.rand(4, 4)
    net = nn.Sequential(nn.Conv2d(1, 2, 3)).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        forbidden = refusal(F.binary_cross_entropy, x, x)
    found = {
        "device": str(net[0].weight.device),
        "parameters": len(list(net.parameters())),
        "dtypes": dtypes(x, net),
        "refused": {
            "binary_cross_entropy": forbidden,
            "mix": refusal(torch.add, x, on_cpu),
            "mix the other way": refusal(torch.matmul, on_cpu, x),
            "input of a network": refusal(net, on_cpu[None]),
            "numpy": refusal(x.numpy),
            "index": refusal(lambda: on_cpu[torch.tensor([0]).to("cuda")]),
        },
        "allowed": {
            "binary_cross_entropy": refusal(F.binary_cross_entropy, x, x),
            "number": refusal(torch.add, x, torch.tensor(1.0)),
            "index": refusal(lambda: x[torch.tensor([0])]),
            "copy": refusal(x.copy_, on_cpu),
        },
        "syncs": {
            "item": syncs_of(x.sum().item),
            "cpu": syncs_of(x.cpu),
            "bool": syncs_of(bool, x.sum() > 0),
            "nonzero": syncs_of(x.nonzero),
            "mask": syncs_of(lambda: x[x > 0.5]),
            "tolist": syncs_of(x.tolist),
            "to the GPU": syncs_of(on_cpu.to, "cuda"),
            "sum": syncs_of(x.sum),
        },
        "losses": [trained_losses("cuda"), trained_losses("cpu")],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
