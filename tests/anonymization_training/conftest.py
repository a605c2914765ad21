"""Tiny players and batches for the stage's tests."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anonymization_training.minimax import Networks, Updater, Updaters
from anonymization_training.params_anonymization import MINIATURE, TrainAnonymizerParams
from anonymization_training.training_batches import ClipBatch, ImageBatch
from aux_code import config
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model

N_VIEWS = {"ce": 1, "triplet": 3, "invariance": 2, "lltc": 8}
CPU = torch.device("cpu")
TINY = tuple("--preset miniature --device cpu --size 24 --batch_videos 16 --batch_images 8".split())


class SwapRedAndBlue(nn.Module):
    """An anonymizer; the identity could not tell frames from colour planes."""

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.shape[1] == 3
        return frames.flip(1)

    replacement = forward


@pytest.fixture(autouse=True)
def one_thread():
    """Small operations are faster on one thread, and a machine that tests has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def params():
    """params(**changed): TeD-SPAD's with some fields replaced."""

    def build(**changed) -> TrainAnonymizerParams:
        return replace(MINIATURE, **{"precision": "fp32", "utility_weight": 0.7} | changed)

    return build


@pytest.fixture
def networks():
    """networks(): the small players, always with the same weights."""

    def build(teacher: bool = False) -> Networks:
        torch.manual_seed(0)
        fa, ft = load_fa_model("small"), load_ft_model("small", num_classes=5)
        built = Networks(fa, ft, load_fb_model("small", ssl=True))
        built.teacher = load_ft_model("small", num_classes=5).eval() if teacher else None
        return built

    return build


@pytest.fixture
def batch():
    """batch(views): clips of 3 videos and two views of 4 images, always the same."""

    def build(views: str = "triplet", size: int = 24) -> tuple[ClipBatch, ImageBatch]:
        generator = torch.Generator().manual_seed(1)
        clips = torch.rand(N_VIEWS[views], 3, 3, 8, size, size, generator=generator)
        images = torch.rand(2, 4, 3, size, size, generator=generator)
        videos = ClipBatch(clips, torch.tensor([1, 2, 4]), None, ("a.avi", "b.avi", "c.avi"))
        return videos, ImageBatch(images, ("1.jpg", "2.jpg"))

    return build


@pytest.fixture
def updater():
    """updater(net, learning_rate): fp32, unclipped."""

    def build(net: nn.Module, rate: float = 1e-2, precision="fp32", clip=0.0) -> Updater:
        return Updater(net, rate, precision, CPU, clip)

    return build


@pytest.fixture
def updaters(updater):
    """updaters(networks): one for each."""
    return lambda n: Updaters(updater(n.fa), updater(n.ft), updater(n.fb), updater(n.ft))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """UCF101 and VISPR of the miniature benchmark at a twentieth of its size."""
    from aux_code.miniature.render import render_benchmark

    root = tmp_path_factory.mktemp("stage 1") / "data"
    render_benchmark(root, seed=0, scale=0.05, only=["ucf101", "vispr"], workers=1)
    return root


def point_config_to(monkeypatch: pytest.MonkeyPatch, data: Path, artifacts: Path) -> None:
    """What the two environment variables do for a new process."""
    monkeypatch.setattr(config, "DATA_ROOT", data)
    monkeypatch.setattr(config, "UCF101_ROOT", data / "UCF101")
    monkeypatch.setattr(config, "VISPR_ROOT", data / "VISPR")
    monkeypatch.setattr(config, "ARTIFACT_ROOT", artifacts)
    for name in ("saved_models", "features", "results", "logs"):
        monkeypatch.setattr(config, f"{name.upper()}_ROOT", artifacts / name)


@pytest.fixture(scope="session")
def inits(tiny_data: Path, tmp_path_factory) -> dict[str, Path]:
    """Role -> checkpoint: the initialisations after three steps, through the scripts' mains."""
    from anonymization_training import init_anonymizer, init_privacy, init_utility

    artifacts = tmp_path_factory.mktemp("inits")
    with pytest.MonkeyPatch.context() as patch:
        point_config_to(patch, tiny_data, artifacts)
        for script in (init_anonymizer, init_utility, init_privacy):
            script.main([*TINY, "--max_steps", "3"])
    saved = artifacts / "saved_models"
    return {
        "init_fa": saved / "init_anonymizer_miniature" / "fa_recon.pth",
        "init_ft": saved / "init_utility_miniature" / "ft_action.pth",
        "init_fb": saved / "init_privacy_miniature" / "fb_ssl.pth",
    }


@pytest.fixture
def init_options(inits: dict[str, Path]) -> list[str]:
    """Options that name the initial checkpoints."""
    return [word for role, path in inits.items() for word in (f"--{role}", str(path))]


@pytest.fixture
def artifacts(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """config points to the tiny data and to an empty folder for this test."""
    point_config_to(monkeypatch, tiny_data, tmp_path)
    return tmp_path
