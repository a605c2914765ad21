"""Tiny players and batches, equal for equal calls, and the stage's scripts on a tiny rendering."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from anonymization_training import init_anonymizer, init_privacy, init_utility
from anonymization_training.minimax import Networks, Updater, Updaters
from anonymization_training.params_anonymization import MINIATURE, TrainAnonymizerParams
from anonymization_training.training_batches import N_VIEWS, ClipBatch, ImageBatch
from aux_code import config
from aux_code.checkpoints import load_checkpoint
from aux_code.miniature.render import render_benchmark
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model
from aux_code.training_state import TrainingState

ROOT = Path(__file__).resolve().parents[2]
TINY = tuple("--preset miniature --device cpu --size 24 --batch_videos 16 --batch_images 8".split())
CPU = torch.device("cpu")


def params(**changed) -> TrainAnonymizerParams:
    """TeD-SPAD's with some fields replaced."""
    return replace(MINIATURE, **{"precision": "fp32", "utility_weight": 0.7} | changed)


def networks(teacher: bool = False, fa_arch: str = "small", **arguments) -> Networks:
    """The small players, f_A with running statistics of frames as init_anonymizer leaves them."""
    torch.manual_seed(0)
    fa, ft = load_fa_model(fa_arch, **arguments), load_ft_model("small", num_classes=5)
    fb = load_fb_model("small", ssl=True)
    for module in fa.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches: of this one
    with torch.no_grad():
        fa(torch.rand(8, 3, 16, 16))
    return Networks(fa, ft, fb, load_ft_model("small", num_classes=5).eval() if teacher else None)


def batch(views: str = "triplet", size: int = 24) -> tuple[ClipBatch, ImageBatch]:
    """Clips of 3 videos and two views of 4 images."""
    generator = torch.Generator().manual_seed(1)
    clips = torch.rand(N_VIEWS[views], 3, 3, 8, size, size, generator=generator)
    images = torch.rand(2, 4, 3, size, size, generator=generator)
    videos = ClipBatch(clips, torch.tensor([1, 2, 4]), None, ("a.avi", "b.avi", "c.avi"))
    return videos, ImageBatch(images, ("1.jpg", "2.jpg"))


def updater(net: nn.Module, rate: float = 1e-2, precision="fp32", clip=0.0) -> Updater:
    """fp32, unclipped."""
    return Updater(net, rate, precision, CPU, clip)


def updaters(players: Networks) -> Updaters:
    """One for each network."""
    return Updaters(*(updater(net) for net in (players.fa, players.ft, players.fb, players.ft)))


@pytest.fixture(autouse=True)
def one_thread():
    """Small operations are faster on one thread, and a machine that tests has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """UCF101 and VISPR of the miniature benchmark at a twentieth of its size."""
    root = tmp_path_factory.mktemp("stage 1") / "data"
    render_benchmark(root, seed=0, scale=0.05, only=["ucf101", "vispr"], workers=1)
    return root


def point_config_to(monkeypatch: pytest.MonkeyPatch, data: Path, artifacts: Path) -> None:
    """What the two environment variables do for a new process."""
    roots = {"DATA": data, "UCF101": data / "UCF101", "VISPR": data / "VISPR"}
    folders = {name.upper(): artifacts / name for name in ("saved_models", "results", "logs")}
    for name, root in (roots | folders | {"ARTIFACT": artifacts}).items():
        monkeypatch.setattr(config, f"{name}_ROOT", root)


@pytest.fixture(scope="session")
def inits(tiny_data: Path, tmp_path_factory) -> dict[str, Path]:
    """Role -> checkpoint: the initialisations after three steps, through the scripts' mains."""
    saved = tmp_path_factory.mktemp("inits") / "saved_models"
    with pytest.MonkeyPatch.context() as patch:
        point_config_to(patch, tiny_data, saved.parent)
        for script in (init_anonymizer, init_utility, init_privacy):
            script.main([*TINY, "--max_steps", "3"])
    return {
        "init_fa": saved / "init_anonymizer_miniature" / "fa_recon.pth",
        "init_ft": saved / "init_utility_miniature" / "ft_action.pth",
        "init_fb": saved / "init_privacy_miniature" / "fb_ssl.pth",
    }


def naming(inits: dict[str, Path]) -> list[str]:
    """Options that name these initial checkpoints."""
    return [word for role, path in inits.items() for word in (f"--{role}", str(path))]


def same_weights(first: Path, second: Path) -> None:
    """Every tensor of every network of two checkpoints, bit for bit; metrics and epoch too."""
    a, b = load_checkpoint(first), load_checkpoint(second)
    roles = [key for key in a if key.endswith("_model_state_dict")]
    assert roles and a["epoch"] == b["epoch"] and a["meta"]["metrics"] == b["meta"]["metrics"]
    for role in roles:
        assert a[role].keys() == b[role].keys()
        for name, value in a[role].items():
            assert torch.equal(value, b[role][name]), (role, name)


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """config points to the tiny data and to an empty folder for this test."""
    point_config_to(monkeypatch, tiny_data, tmp_path)
    return tmp_path


@pytest.fixture
def environment(artifacts: Path, tiny_data: Path) -> dict[str, str]:
    """Of processes that read the tiny data and write below this test's folder."""
    roots = {"TED_SPAD_DATA_ROOT": str(tiny_data), "TED_SPAD_ARTIFACT_ROOT": str(artifacts)}
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **roots}


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch):
    """interrupt(n, run): calls `run` and ends it after the n-th save of its state."""

    def interrupted(n: int, run: Callable) -> None:
        save, saved = TrainingState.save, []

        def save_then_stop(self, position) -> None:
            save(self, position)
            saved.append(position)
            if len(saved) == n:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TrainingState, "save", save_then_stop)
            run()

    return interrupted
