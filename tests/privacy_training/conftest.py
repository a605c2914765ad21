"""Tiny VISPR sets in the real layout, and a way to run the stage's script in this process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aux_code import config
from aux_code.checkpoints import read_json, save_checkpoint
from aux_code.datasets.vispr import VISPR1
from aux_code.errors import UserError
from privacy_training import train_privacy
from tests.anonymization_training.conftest import interrupt, one_thread  # noqa: F401

COUNTS = {"train": 48, "val": 24, "test": 32}
COMMON = "--preset miniature --size 24 --batch_size 16 --n_bootstrap 20 --device cpu".split()
COMMON += ["--minutes_between_saves", "0"]


@pytest.fixture
def vispr_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VISPR whose first attribute is whether a square in the middle is red; others are chance."""
    root = tmp_path / "data" / "VISPR"
    generator = np.random.default_rng(7)
    for split, n_images in COUNTS.items():
        (root / f"{split}2017").mkdir(parents=True)
        for i in range(n_images):
            _write_image(root / f"{split}2017" / f"2017_{i:08d}.jpg", generator, red=i % 2 == 0)
    monkeypatch.setattr(config, "VISPR_ROOT", root)
    for name in ("SAVED_MODELS_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / name.split("_ROOT")[0].lower())
    return root


def _write_image(path: Path, generator: np.random.Generator, red: bool) -> None:
    pixels = generator.integers(90, 160, (40, 52, 3), dtype=np.uint8)
    pixels[12:28, 18:34] = (220, 40, 40) if red else (40, 40, 220)
    Image.fromarray(pixels).save(path, quality=95)
    others = [name for name in VISPR1[1:] if generator.random() < 0.4]
    labels = ([VISPR1[0]] if red else []) + others
    content = {"image_path": path.name, "labels": labels or ["a0_safe"]}
    path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def run_main(vispr_root: Path, monkeypatch: pytest.MonkeyPatch):
    """run_main(option, value, ...) runs train_privacy.py on the tiny set and returns its status."""

    def run(*options: object, run_id: str = "tiny") -> int:
        argv = ["train_privacy.py", *COMMON, "--run_id", run_id, *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        return train_privacy.main()

    return run


@pytest.fixture
def run_stage(run_main):
    """The same for one attack; returns its result."""

    def run(*options: object, run_id: str = "tiny") -> dict:
        assert run_main(*options, run_id=run_id) == 0
        return read_json(config.RESULTS_ROOT / f"privacy_{run_id}.json")

    return run


@pytest.fixture
def refused(run_main):
    """refused(message, option, value, ...): the script ends with a UserError that says this."""

    def run(message: str, *options: object, run_id: str = "tiny") -> None:
        with pytest.raises(UserError, match=message):
            run_main(*options, run_id=run_id)

    return run


@pytest.fixture
def checkpoint_of(tmp_path):
    """checkpoint_of(role, net) writes a checkpoint of one network in our format."""

    def write(role: str, net: torch.nn.Module) -> str:
        path = tmp_path / f"{role}.pth"
        meta = {"architectures": {role: net.architecture}}
        save_checkpoint(path, {f"{role}_model_state_dict": net.state_dict(), "meta": meta})
        return str(path)

    return write
