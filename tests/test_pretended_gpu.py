"""Scripts on a GPU that is none (tests/pretended_gpu): CUDA's rules without its kernels."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_detection_mgfn import params_mgfn
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.mil_training import MilTraining
from anonymization_training.minimax import Networks, build_updaters, minimax_step
from anonymization_training.training_batches import _Sample, augmented, collate
from aux_code.artefacts import Recipe
from aux_code.batch_norm import Normalised
from aux_code.datasets.transforms import STRONG
from aux_code.devices import prepare_for_training, set_tf32, to_device
from aux_code.inference import prepare_anonymizer
from aux_code.model_loaders import load_anonymizer, load_fb_model
from aux_code.runs import Run
from feature_extraction.clip_views import Clip
from feature_extraction.extractor import ClipEncoder
from privacy_training import params_privacy
from privacy_training.attribute_prediction import build_attack, train_step
from tests.anonymization_training.conftest import batch, networks, params
from tests.commands import ROOT, python

RUN = ROOT / "tests" / "pretended_gpu" / "run.py"
GPU = torch.device("cuda")
MINIMAX = [("triplet", "bf16", 0), ("triplet", "bf16", 9), ("triplet", "fp16", 0)]
MINIMAX += [("ce", "bf16", 0), ("lltc", "bf16", 0), ("invariance", "bf16", 0)]
"""Utility loss, precision, frames per chunk of 72 (0: no chunks)."""


def run(*command: str | Path, artefacts: Path, **more: str | Path):
    if not torch.__version__.startswith("2.14."):
        pytest.skip("the pretended GPU fits torch 2.14")
    return python(RUN, *command, TED_SPAD_ARTIFACT_ROOT=artefacts, **more)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What `main` did in a process with that GPU."""
    return run(__file__, artefacts=tmp_path_factory.mktemp("artefacts"))


@pytest.fixture(scope="module")
def found(seen) -> dict:
    return json.loads(seen.stdout)


def test_a_minimax_step_waits_eight_times_at_most_and_never_per_layer_chunk_or_frame(found):
    syncs = found["minimax"]
    assert syncs[0] == syncs[1] and 0 < min(syncs) <= max(syncs) <= 8, list(zip(MINIMAX, syncs))


def test_other_steps_wait_for_their_loss_and_extraction_for_its_features(found):
    assert found["steps"] == {"MGFN": 2, "attacker": 1, "batch norm of all ranks": 0}
    launched = {name: [0, 1] for name in ("mosaic4_grey_noise0.05", "blur")}
    assert found["extraction"] == launched, "launch, then wait"


def test_fp32_is_ieee_and_tf32_is_asked_for(found):
    exact, rounded, folded = found["tf32"]
    assert exact < 1e-6 < 1e-4 < rounded < 1e-2 and folded, "batch norms are folded all the same"


def test_the_pretended_gpu_keeps_cudas_rules(seen, found):
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
    waits = ("item", "cpu", "bool", "nonzero", "mask", "tolist", "to the GPU", "into it")
    others = ("by pinned memory", "sum", "augment")
    assert found["syncs"] == dict.fromkeys(waits, 1) | dict.fromkeys(others, 0)
    assert found["augmented apart"] < 1e-6
    on_gpu, on_cpu = found["losses"]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5) and on_gpu[3] < on_gpu[0]
    assert "pretended GPU: " in seen.stderr.splitlines()[-1]


def refusal(function, *args, **kwargs) -> str:
    try:
        function(*args, **kwargs)
    except (RuntimeError, TypeError) as error:
        return str(error)[:100]
    return ""


def syncs_of(function: Callable[[], object]) -> int:
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


def minimax_syncs(term: str, precision: str, chunk: int) -> int:
    """Of both steps on one batch, as the scripts prepare them."""
    found = vars(networks(teacher=True)).values()
    players = Networks(*(prepare_for_training(network, GPU) for network in found))
    changed = {"recompute_chunk": chunk, "distillation_weight": 1.0, "precision": precision}
    goal = params(utility_loss=term, gradient_clip=1.0, **changed)
    clips, images = batch(term)
    clips = clips._replace(clips=clips.clips.to(GPU), labels=clips.labels.to(GPU))
    images = images._replace(views=images.views.to(GPU))
    updaters = build_updaters(players, goal, GPU)
    return syncs_of(lambda: minimax_step(players, clips, images, goal, updaters))


def mgfn_syncs() -> int:
    """Of an epoch of one step."""
    goal = replace(params_mgfn.MINIATURE, precision="bf16", candidate_dropout=0.7, batch_size=4)
    net = MGFN(feature_dim=8, dims=(8, 8, 8), depths=(1, 1, 1)).to(GPU)
    run, nothing = Run("gpu", "main", Path(), GPU), Recipe({})
    training = MilTraining(goal, net, run, Path(), nothing)
    bags = {kind: torch.rand(4, 1, 8, 9).to(GPU) for kind in ("normal", "anomalous")}
    return syncs_of(lambda: training.train_epoch(SimpleNamespace(**bags), 0))


def attack_syncs() -> int:
    """Of a step."""
    net = prepare_for_training(load_fb_model("small", num_pa=7), GPU)
    goal = replace(params_privacy.PRESETS["miniature"], precision="bf16")
    attack = build_attack(net, goal, Run("gpu", "train_privacy", Path(), GPU))
    images, labels = torch.rand(4, 3, 24, 24).to(GPU), torch.ones(4, 7).to(GPU)
    return syncs_of(lambda: train_step(attack, images, labels))


def normalised() -> None:
    """Forward and backward passes of what torchrun's ranks compute."""
    x, weight, bias = (torch.rand(*shape, device=GPU, requires_grad=True)
                       for shape in ((4, 3, 5, 5), (3,), (3,)))  # fmt: skip
    Normalised.apply(x, weight, bias, 1e-5)[0].square().sum().backward()


def extraction_syncs(anonymizer: str) -> list[int]:
    """Of a launched pass, and then of its features."""
    net = load_anonymizer(anonymizer)
    encoder = ClipEncoder(net, networks().ft, GPU, "fp16")
    boxes = [[torch.tensor([[2.0, 3.0, 9.0, 9.0]])] * 16] if net.requires_boxes else None
    clips = [Clip(i, torch.rand(1, 16, 3, 16, 16), boxes, np.arange(16)) for i in range(3)]
    passes = []
    launch = syncs_of(lambda: passes.append(encoder.launch([Path("v")] * 3, clips)))
    return [launch, syncs_of(passes[0].wait)]


def tf32_errors() -> list:
    """Of fp32 and of tf32 on a GPU against the CPU, and whether tf32 leaves batch norms folded."""
    fa, frames = networks().fa.eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected, found = fa(frames), []
        for allowed in (False, True):
            set_tf32(allowed)
            output = fa.to(GPU)(frames.to(GPU)).cpu()
            found.append(((output - expected).norm() / expected.norm()).item())
    prepared = prepare_anonymizer(fa, GPU, "tf32")
    set_tf32(False)
    return [*found, not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())]


def main() -> None:
    """On the pretended GPU: what it does, as JSON."""
    set_tf32(False)
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
        "into it": lambda: x.clone().copy_(on_cpu),
        "by pinned memory": lambda: to_device(on_cpu, GPU),
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
        "tf32": tf32_errors(),
        "steps": {"MGFN": mgfn_syncs(), "attacker": attack_syncs(),
                  "batch norm of all ranks": syncs_of(normalised)},
        "extraction": {n: extraction_syncs(n) for n in ("mosaic4_grey_noise0.05", "blur")},
        "minimax": [minimax_syncs(*case) for case in MINIMAX],
    }  # fmt: skip
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
