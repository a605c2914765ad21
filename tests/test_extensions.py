"""The blocks of docs/extending.md go into a copy of the repository; its commands run there."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np

from aux_code.checkpoints import read_json
from aux_code.datasets.surveillance import load_surveillance
from aux_code.miniature.formats import write_video
from aux_code.miniature.render import render_benchmark
from tests.commands import ROOT, answers

DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PACKAGES = (
    "aux_code", "anonymization_training", "privacy_training", "feature_extraction",
    "anomaly_detection_mgfn", "reproduction",
)  # fmt: skip
SHORT = {
    "init_anonymizer": "--max_steps 2", "init_utility": "--max_steps 2", "main": "--epochs 2",
    "train_privacy": "--epochs 1", "dali_extraction": "--reader pyav", "reproduce": "--dry_run",
    "distance_head": "",
}  # fmt: skip
"""What a test adds to the commands for time."""


def write_corridor(root: Path) -> None:
    """The data set of the document: grey videos, half of which turn bright, and labels.txt."""
    (root / "videos").mkdir(parents=True)
    lines = []
    for split, number in (*(("train", n) for n in range(6)), *(("test", n) for n in range(4))):
        start, end = (64, 128) if number % 2 else (0, 0)
        levels = [210 if start <= i < end else 60 for i in range(150 + number)]
        frames = [np.full((48, 64, 3), level, np.uint8) for level in levels]
        write_video(root / "videos" / f"{split}_{number}.mp4", frames, 25)
        lines.append(f"{split}_{number} {split} {start} {end}")
    (root / "labels.txt").write_text("\n".join(lines) + "\n")


def copy_with_blocks(copy: Path) -> None:
    """The repository with every block of Python in the file that it names."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "reproduce.py", copy)
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(found) == DOCUMENT.count("```python"), "every block names its file"
    for file, code in found:
        with open(copy / file, "a", encoding="utf-8") as target:
            target.write(f"\n\n{code}" if target.tell() else code)


def test_every_command_of_the_document_ends_well_and_the_parts_meet(tmp_path: Path):
    copy, data = tmp_path / "copy", tmp_path / "data"
    copy_with_blocks(copy)
    render_benchmark(data, seed=0, scale=0.03, only=["ucf101", "vispr"], workers=1)
    write_corridor(data / "Corridor")
    lines = [shlex.split(line) for line in re.findall(r"^    python (.*)$", DOCUMENT, re.MULTILINE)]
    names = [Path(script).stem for script, *_ in lines]
    assert set(names) == set(SHORT)
    commands = [(s, [*words, *SHORT[Path(s).stem].split()]) for s, *words in lines]
    roots = {"TED_SPAD_DATA_ROOT": data, "TED_SPAD_ARTIFACT_ROOT": copy}
    given, log = answers(commands, cwd=copy, **roots)
    failed = [name for name, (status, _) in zip(names, given, strict=True) if status]
    assert not failed, log[-3000:]
    texts = {name: text for name, (_, text) in zip(names, given, strict=True)}

    attack = read_json(copy / "results" / "privacy_tint.json")
    assert attack["anonymizer"].endswith("tint/fa_recon.pth")
    assert 0 < attack["protocols"]["last"]["cmap"] <= 1
    features = copy / "features" / "corridor" / "posterize"
    manifest = read_json(features / "manifest.json")
    assert manifest["feature_dim"] == 6 and manifest["frames_per_feature"] == 32
    assert manifest["anonymizer"]["name"] == "posterize" and len(manifest["videos"]) == 10
    assert manifest["utility"]["arch"] == "colour_statistics"
    level = 3 * np.load(features / "test_0.npy")[0, 0]
    assert np.isclose(level, round(level), atol=1e-3), "a grey clip in four levels is one level"
    results = list((copy / "results").glob("anomaly_*.json"))
    assert len(results) == 1, "the built-in head takes the width"
    assert "roc_auc=1.0" in texts["distance_head"].replace("np.float64(1.0)", "1.0")
    for words in ("--anonymizer posterize", "train_privacy.py"):
        assert words in texts["reproduce"]


def test_a_data_set_is_a_folder_with_two_lists(tmp_path: Path):
    train = ["cam1/monday.mp4,normal,", "cam1/tuesday.mp4,anomalous,"]
    test = ["cam2/friday.mp4,anomalous,120-180;300-420", "cam2/sunday.mp4,normal,"]
    assert all(line in DOCUMENT for line in train + test), "the rows of the document"
    for split, rows in (("train", train), ("test", test)):
        (tmp_path / f"{split}.csv").write_text("\n".join(["video,label,anomalies", *rows]) + "\n")
    videos = load_surveillance(str(tmp_path))
    assert [video.label for video in videos.train] == [0, 1]
    assert [video.events for video in videos.test] == [((120, 180), (300, 420)), ()]
