"""Weights and inputs of tests/golden, made of names and shapes alone (splitmix64)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
LAYOUTS = Path(__file__).parent / "layouts"


def uniform(count: int, key: str) -> np.ndarray:
    """`count` float64 values in (-1, 1) that depend on the key alone."""
    z = np.full(count, zlib.crc32(key.encode()), dtype=np.uint64) << np.uint64(32)
    z = z + np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) / 2.0**52 - 1.0


def filled(name: str, tensor: Tensor) -> Tensor:
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros_like(tensor)
    u = torch.from_numpy(uniform(tensor.numel(), name)).view(tensor.shape)
    is_row = tensor.dim() == 3 and tensor.shape[0] == tensor.shape[2] == 1
    if tensor.dim() != 1 and not is_row:
        return (u * (6 / tensor[0].numel()) ** 0.5).float()
    return (1 + 0.1 * u if last in ("weight", "g", "scale", "running_var") else 0.1 * u).float()


def fill(network: nn.Module) -> nn.Module:
    """Sets a network's deterministic weights, puts it into eval mode and returns it."""
    network.load_state_dict({n: filled(n, tensor) for n, tensor in network.state_dict().items()})
    return network.eval()


def picture(key: str, *shape: int) -> Tensor:
    return torch.from_numpy(0.5 + 0.5 * uniform(int(np.prod(shape)), key)).view(shape).float()


def bags(key: str, n_bags: int, n_clips: int, width: int = 2048) -> Tensor:
    """(n_bags, 1, n_clips, width + 1) features with their L2 magnitude appended."""
    features = np.abs(uniform(n_bags * n_clips * width, key)).reshape(n_bags, 1, n_clips, width)
    scale = 0.2 + 0.8 * np.abs(uniform(n_bags * n_clips, f"{key}.scale"))
    scale = scale.reshape(n_bags, 1, n_clips, 1)
    features = torch.from_numpy((features * scale).astype(np.float32))
    return torch.cat([features, features.norm(dim=-1, keepdim=True)], dim=-1)


def layout(name: str) -> dict[str, list[int]]:
    return json.loads((LAYOUTS / f"{name}.json").read_text())


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def relative_error(ours: Tensor, golden: np.ndarray | Tensor) -> float:
    golden = torch.as_tensor(golden)
    assert ours.shape == golden.shape
    return ((ours.double() - golden).norm() / golden.norm()).item()
