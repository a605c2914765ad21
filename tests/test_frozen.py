"""What may not change by mistake: command lines; and artefacts of commit c45b28e still load."""

import gzip
import shutil
import sys
from pathlib import Path

import pytest
import torch

from anomaly_detection_mgfn import main as stage_4
from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.model_loaders import load_fa_model, load_fb_model, load_ft_model
from tests.commands import ROOT
from tests.frozen import write as frozen

OLD = ROOT / "tests" / "frozen" / "c45b28e"


def test_options_and_defaults_are_those_on_record():
    changed = frozen.differences(frozen.read("options.json"), frozen.options())
    assert not changed, "\n".join([*changed, frozen.REMEDY.format("")])


def test_every_command_line_is_on_record():
    scripts = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        is_script = path.name == "__main__.py" or "\n    run_script(main" in text
        if is_script and not name.startswith(("benchmarks/", "tests/")):
            scripts.add(name)
    assert scripts == set(frozen.read("options.json"))


def test_differences_name_what_is_gone_new_or_changed():
    recorded = {"a": {"x": 1, "y": {"z": {}}}, "b": {}}
    now = {"a": {"x": 2, "y": {}}, "c": {}}
    expected = [" b: gone", " c: new", "a x: 1, now 2", "a y z: gone"]
    assert frozen.differences(recorded, now) == expected
    assert frozen.differences(recorded, recorded) == []


@pytest.fixture
def old_artefacts(tmp_path, monkeypatch) -> Path:
    """Of its miniature, trained for two steps (weights rounded to bf16), with the data set."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    for packed in tmp_path.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    for split in ("Train", "Test"):
        for name in (OLD / "UCF_Crime" / f"Anomaly_{split}.txt").read_text().split():
            video = tmp_path / "UCF_Crime" / "Videos" / name
            video.parent.mkdir(parents=True, exist_ok=True)
            video.touch()
    for name in ("SAVED_MODELS", "RESULTS", "LOGS"):
        monkeypatch.setattr(config, f"{name}_ROOT", tmp_path / name.lower())
    monkeypatch.setattr(config, "UCF_CRIME_ROOT", tmp_path / "UCF_Crime")
    return tmp_path


def test_checkpoints_of_c45b28e_load(old_artefacts: Path):
    path = old_artefacts / "train_anonymizer.pth"
    frames = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    fa = load_fa_model("small", path).eval()
    ft = load_ft_model("small", path, num_classes=11).eval()
    fb = load_fb_model("small", path, ssl=True).eval()
    with torch.no_grad():
        released = fa(frames)
        logits, embedding = ft(released[None].transpose(1, 2).repeat(1, 1, 4, 1, 1))
        found = torch.stack([released.mean(), logits.std(), embedding[0, 0], fb(released)[0, 0]])
    # what c45b28e computes
    expected = torch.tensor([0.497437, 0.076939, 0.167084, 0.067149])
    assert torch.allclose(found, expected, atol=1e-4), found.tolist()


def test_stage_4_evaluates_the_detector_of_c45b28e_on_its_features(old_artefacts, monkeypatch):
    words = ["main.py", "--preset", "miniature", "--device", "cpu", "--run_id", "old"]
    words += ["--eval_only", "--features", f"{old_artefacts}/features"]
    words += ["--checkpoint", f"{old_artefacts}/mgfn.pth"]
    monkeypatch.setattr(sys, "argv", words)
    assert stage_4.main() == 0
    found = read_json(config.RESULTS_ROOT / "anomaly_ucf_crime_old.json")["protocols"]["checkpoint"]
    assert found["auc"] == pytest.approx(0.462291, abs=1e-4)
    assert found["ap"] == pytest.approx(0.168023, abs=1e-4)
