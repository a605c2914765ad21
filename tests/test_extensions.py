"""The blocks of docs/extending.md go into a copy of the repository; its commands run there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from aux_code.datasets.surveillance import load_surveillance

ROOT = Path(__file__).resolve().parent.parent
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

RUN_ALL = """
import contextlib, json, io, runpy, sys
sys.path.insert(0, {root!r})
answers = []
for script, *words in json.loads({commands!r}):
    sys.argv = [script, *words]
    out = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            status = error.code or 0
    answers.append([status, out.getvalue()])
print(json.dumps(answers))
"""
"""One process for all commands: each would spend seconds on importing PyTorch."""


def write_video(path: Path, n_frames: int, events: tuple[tuple[int, int], ...]) -> None:
    """Grey frames that turn bright during the events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(n_frames):
            level = 210 if any(start <= i < end for start, end in events) else 60
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), level, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_corridor(root: Path) -> None:
    """The data set of the document: videos and labels.txt."""
    lines = []
    for split, n_videos in (("train", 6), ("test", 4)):
        for number in range(n_videos):
            event = (64, 128) if number % 2 else (0, 0)
            write_video(root / "videos" / f"{split}_{number}.mp4", 150 + number, (event,))
            lines.append(f"{split}_{number} {split} {event[0]} {event[1]}")
    (root / "labels.txt").write_text("\n".join(lines) + "\n")


def blocks() -> list[tuple[str, str]]:
    """(file, code) of every block of Python."""
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(found) == DOCUMENT.count("```python"), "every block names its file"
    return found


def commands() -> list[list[str]]:
    """Every command, with what makes it short."""
    lines = re.findall(r"^    python (.*)$", DOCUMENT, re.MULTILINE)
    split = [shlex.split(line) for line in lines]
    return [[*words, *shlex.split(SHORT[Path(words[0]).stem])] for words in split]


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[int, str, Path]]:
    """Script or run id -> (exit status, standard output, the copy's root), run in order."""
    from aux_code.miniature.render import render_benchmark

    copy, data = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("data")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "reproduce.py", copy)
    for file, code in blocks():
        with open(copy / file, "a", encoding="utf-8") as target:
            target.write(f"\n\n{code}" if target.tell() else code)
    render_benchmark(data, seed=0, scale=0.03, only=["ucf101", "vispr"], workers=1)
    write_corridor(data / "Corridor")
    program = RUN_ALL.format(root=str(copy), commands=json.dumps(commands()))
    roots = {"TED_SPAD_DATA_ROOT": str(data), "TED_SPAD_ARTIFACT_ROOT": str(copy)}
    environment = {**os.environ, **roots, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    options = {"cwd": copy, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run(command, timeout=280, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    given = json.loads(result.stdout.splitlines()[-1])
    names = [Path(words[0]).stem for words in commands()]
    assert len(given) == len(names)
    failed = [(name, status) for name, (status, _) in zip(names, given, strict=True) if status]
    assert not failed, result.stderr[-3000:]
    return {name: (status, text, copy) for name, (status, text) in zip(names, given, strict=True)}


def test_every_command_of_the_document_ends_well(answers):
    assert set(answers) == set(SHORT)


def test_the_trained_anonymizer_is_rebuilt_and_attacked(answers):
    root = answers["train_privacy"][2]
    result = json.loads((root / "results" / "privacy_tint.json").read_text())
    assert (
        result["anonymizer"].endswith("tint/fa_recon.pth")
        and 0 < result["protocols"]["last"]["cmap"] <= 1
    )


def test_own_data_set_anonymizer_and_utility_network_meet_in_the_features(answers):
    folder = answers["dali_extraction"][2] / "features" / "corridor" / "posterize"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["feature_dim"], manifest["frames_per_feature"], len(manifest["videos"])) == (
        6,
        32,
        10,
    )
    assert (
        manifest["anonymizer"]["name"] == "posterize"
        and manifest["utility"]["arch"] == "colour_statistics"
    )
    stored = np.load(folder / "test_0.npy")
    assert np.isclose(stored[0, 0] * 3, round(stored[0, 0] * 3), atol=1e-3), (
        "a grey clip in four levels is one level"
    )
    assert len(list((folder.parents[2] / "results").glob("anomaly_*.json"))) == 1, (
        "the built-in head takes the width"
    )


def test_own_head_finds_the_bright_clips(answers):
    assert "roc_auc=1.0" in answers["distance_head"][1].replace("np.float64(1.0)", "1.0")


def test_own_row_is_in_the_plan(answers):
    text = answers["reproduce"][1]
    assert "--anonymizer posterize" in text and "train_privacy.py" in text


def test_a_data_set_is_a_folder_with_two_lists(tmp_path: Path):
    root = tmp_path / "my_shop"
    rows = {"train": ("cam1/monday.mp4,normal,", "cam1/tuesday.mp4,anomalous,")}
    rows["test"] = ("cam2/friday.mp4,anomalous,120-180;300-420", "cam2/sunday.mp4,normal,")
    for split, lines in rows.items():
        assert all(line in DOCUMENT for line in lines), "the rows of the document"
        root.mkdir(exist_ok=True)
        (root / f"{split}.csv").write_text("\n".join(["video,label,anomalies", *lines]) + "\n")
    videos = load_surveillance(str(root))
    assert [video.label for video in videos.train] == [0, 1]
    assert [video.events for video in videos.test] == [((120, 180), (300, 420)), ()]
