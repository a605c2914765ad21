"""blur and blacken get people by the same options, files and detector in every stage."""

import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from anomaly_detection_mgfn.params_mgfn import MgfnParams
from anomaly_detection_mgfn.score_video import common_options
from anonymization_training import init_utility
from aux_code import config
from aux_code.artefacts import sha256
from aux_code.checkpoints import load_checkpoint, read_json, save_checkpoint
from aux_code.datasets.person_box_files import read_boxes, write_boxes
from aux_code.errors import UserError
from aux_code.model_loaders import load_ft_model
from aux_code.models import person_boxes
from aux_code.models.person_boxes import PersonBoxes, find_boxes_file, open_person_boxes
from feature_extraction import dali_extraction
from privacy_training import train_privacy
from tests.datasets.media import write_lines
from tests.datasets.test_ucf101 import make_ucf101
from tests.feature_extraction.videos import HEIGHT, WIDTH, write_video
from visualization import anonymize_video

STAGES = ("init_utility", "train_privacy", "dali_extraction", "anonymize_video")
N_FRAMES = 3
Seen = namedtuple("Seen", "path indices boxes")
"""One call for boxes: of which image or video, of which frames, and what came back."""


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Random weights for torchvision's own; the bias of the class makes every region a person."""
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 91}
    state = fasterrcnn_resnet50_fpn(**options).state_dict()
    state["roi_heads.box_predictor.cls_score.bias"][person_boxes.COCO_PERSON] = 20.0
    path = tmp_path_factory.mktemp("detector") / "fasterrcnn.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """Two actions of three recordings each, sixteen photographs, one video, and an f_T."""
    root = tmp_path_factory.mktemp("data")
    make_ucf101(root / "UCF101", n_groups=2, clips=(1,))
    for path in (root / "UCF101").rglob("*.avi"):
        write_video(path, N_FRAMES, "mpeg4")
    generator = np.random.default_rng(0)
    for split, n_images in (("train", 8), ("val", 4), ("test", 4)):
        folder = root / "VISPR" / f"{split}2017"
        folder.mkdir(parents=True)
        for i in range(n_images):
            pixels = generator.integers(0, 256, (40, 52, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"2017_{i}.jpg")
            labels = ["a4_gender"] if i % 2 else ["a0_safe"]
            (folder / f"2017_{i}.json").write_text(json.dumps({"labels": labels}))
    (root / "Street").mkdir()
    write_video(root / "Street" / "street.mp4", N_FRAMES)
    ft = load_ft_model("small", num_classes=3)
    meta = {"architectures": {"ft": ft.architecture}}
    save_checkpoint(root / "ft.pth", {"ft_model_state_dict": ft.state_dict(), "meta": meta})
    return root


@pytest.fixture
def scene(rendered, tmp_path, monkeypatch) -> Path:
    """The data where config points; small frames for the detector; one thread."""
    root = shutil.copytree(rendered, tmp_path / "data")
    for name in ("UCF101", "VISPR"):
        monkeypatch.setattr(config, f"{name}_ROOT", root / name)
    monkeypatch.setattr(config, "ARTIFACT_ROOT", tmp_path / "out")
    for name in ("SAVED_MODELS_ROOT", "RESULTS_ROOT", "LOGS_ROOT"):
        monkeypatch.setattr(config, name, tmp_path / "out" / name)
    monkeypatch.setattr(person_boxes, "SHORTEST_SIDE", 32)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield root
    torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch) -> list[Seen]:
    calls, of_frames = [], PersonBoxes.of_frames

    def noted(self, path, indices, frames=None):
        boxes = of_frames(self, path, indices, frames)
        calls.append(Seen(Path(path), tuple(map(int, indices)), boxes))
        return boxes

    monkeypatch.setattr(PersonBoxes, "of_frames", noted)
    return calls


def run(stage: str, root: Path, monkeypatch, *options: object) -> None:
    """The stage's main as its script calls it, with --anonymizer blacken."""
    out = config.ARTIFACT_ROOT
    common = ["--preset", "miniature", "--device", "cpu", "--anonymizer", "blacken"]
    street, clip = root / "Street", f"--frames_per_clip {N_FRAMES} --frames_per_feature {N_FRAMES}"
    arguments = {
        init_utility: "--clip_length 2 --stride 1 --size 24 --n_workers 0 --max_steps 1 "
        "--batch_videos 2 --validation_fraction 0.5 --run_id ft",
        train_privacy: "--attributes a4_gender --epochs 1 --size 24 --batch_size 4 "
        "--n_bootstrap 5 --run_id attack",
        dali_extraction: f"{clip} --stride 1 --size 24 --dataset {street} --reader pyav "
        f"--utility {root / 'ft.pth'} --output {out / 'features'}",
        anonymize_video: f"{street / 'street.mp4'} {out / 'copy.mp4'}",
    }
    script = next(module for module in arguments if module.__name__.endswith(stage))
    words = [*common, *arguments[script].split(), *map(str, options)]
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", *words])
    script.main(words) if script is init_utility else script.main()


def written(stage: str) -> dict:
    """What a stage notes of where its boxes came from: {"sha256": ...}."""
    out, saved = config.ARTIFACT_ROOT, config.SAVED_MODELS_ROOT
    if stage == "init_utility":
        return load_checkpoint(saved / "ft" / "ft_action.pth")["meta"]["inputs"]["person_boxes"]
    if stage == "train_privacy":
        inputs = read_json(config.RESULTS_ROOT / "privacy_attack.json")["inputs"]
        return inputs.get("boxes") or inputs["detector"]
    return read_json(out / "features" / "manifest.json")["person_boxes"]


def files_of(stage: str, root: Path) -> list[str]:
    """What the boxes are about, as a boxes file calls it."""
    folder, pattern = {
        "init_utility": (root / "UCF101", "Videos/*/*.avi"),
        "train_privacy": (root / "VISPR", "*2017/*.jpg"),
    }.get(stage, (root / "Street", "*.mp4"))
    return [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_detector_finds_people_in_every_stage(stage, scene, weights_file, seen, monkeypatch):
    run(stage, scene, monkeypatch, "--detector_weights", weights_file)
    found = [boxes for call in seen for boxes in call.boxes]
    assert found and all(len(boxes) for boxes in found)
    width, height = (52, 40) if stage == "train_privacy" else (WIDTH, HEIGHT)
    corners = np.concatenate(found)
    assert (corners >= 0).all() and (corners <= [v + 1e-3 for v in (width, height) * 2]).all()
    assert corners[:, 2].max() > 24, "in pixels of the decoded frame, not of the network's"
    if stage != "anonymize_video":
        assert written(stage)["sha256"] == sha256(weights_file)


@pytest.mark.parametrize("stage", STAGES)
def test_a_boxes_file_counts_in_every_stage(stage, scene, seen, monkeypatch, tmp_path):
    frames = range(1 if stage == "train_privacy" else N_FRAMES)
    boxes = {i: np.array([[i, 2, 30, 20]], np.float32) for i in frames}
    write_boxes(tmp_path / "boxes.csv", dict.fromkeys(files_of(stage, scene), boxes))
    run(stage, scene, monkeypatch, "--boxes", tmp_path / "boxes.csv")
    found = [pair for call in seen for pair in zip(call.indices, call.boxes, strict=True)]
    assert found and all(boxes.tolist() == [[i, 2, 30, 20]] for i, boxes in found)
    if stage != "anonymize_video":
        assert written(stage)["sha256"] == sha256(tmp_path / "boxes.csv")


@pytest.mark.parametrize("stage", STAGES)
def test_mistakes_are_the_same_in_every_stage(stage, scene, monkeypatch, tmp_path):
    write_boxes(tmp_path / "boxes.csv", {"other/place.mp4": {0: np.array([[0, 0, 9, 9]])}})
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    rows = ("--boxes", tmp_path / "boxes.csv")
    weights = ("--detector_weights", tmp_path / "other.pth")
    for options, message in [
        (rows + weights, "give one of them"),
        (rows, "has no row for .*so nobody would be hidden"),
        (("--boxes", tmp_path / "nowhere.csv"), "nowhere.csv"),
        (weights, "other.pth do not fit"),
        (("--detector_weights", tmp_path / "nowhere.pth"), "nowhere.pth"),
    ]:
        with pytest.raises(UserError, match=message):
            run(stage, scene, monkeypatch, *options)


def test_people_in_training_videos_are_sought_once(scene, weights_file, seen, monkeypatch):
    """A second run takes the boxes of the first; a changed video is looked at again."""
    paths = sorted((scene / "UCF101").glob("Videos/*/*g0[23]_c01.avi"))
    for _ in range(2):
        run("init_utility", scene, monkeypatch, "--detector_weights", weights_file)
    kept = sorted((config.ARTIFACT_ROOT / "person_boxes").rglob("*.csv"))
    assert [path.stem for path in kept] == [path.name for path in paths]
    whole = tuple(range(N_FRAMES))
    assert sorted(call.path for call in seen if call.indices == whole) == paths
    (name,) = read_boxes(kept[0])
    assert name == paths[0].relative_to(scene / "UCF101").as_posix()
    kept[0].write_text("file,frame,x0,y0,x1,y1\n")
    earlier = paths[0].stat().st_mtime - 10
    os.utime(kept[0], (earlier, earlier))
    run("init_utility", scene, monkeypatch, "--detector_weights", weights_file)
    assert len([call for call in seen if call.indices == whole]) == len(paths) + 1
    assert read_boxes(kept[0])


def test_which_source_applies_and_scoring_a_video_hands_it_on(tmp_path, weights_file):
    for option in ("boxes", "detector_weights"):
        words = common_options(MgfnParams(**{option: Path("a file")}))
        assert words[-2:] == [f"--{option}", "a file"]
    assert "--boxes" not in common_options(MgfnParams())
    below, lying = tmp_path / "set" / "videos", tmp_path / "set" / "person_boxes.csv"
    below.mkdir(parents=True)
    assert find_boxes_file(None, None, below) is None
    lying.write_text("file,frame,x0,y0,x1,y1\n")
    for place in (below / "a.mp4", tmp_path / "set"):
        assert find_boxes_file(None, None, place) == lying
    assert find_boxes_file(tmp_path / "own.csv", None, below) == tmp_path / "own.csv"
    assert find_boxes_file(None, weights_file, below) is None, "an option goes before such a file"
    assert open_person_boxes(None, weights_file, below).needs_frames


def test_rows_are_read_as_written_and_belong_to_the_path_that_they_end(tmp_path, caplog):
    def box(x):
        return {0: np.array([[x, 0, 9, 9]], np.float32)}

    people = PersonBoxes({"a.jpg": box(1), "train2017/a.jpg": box(2), "b/c.mp4": box(3)})
    (tmp_path / "link.mp4").symlink_to(write_lines(tmp_path / "b" / "c.mp4"))
    for path, x in (("x/a.jpg", 1), ("x/train2017/a.jpg", 2), ("x/b/c.mp4", 3), ("link.mp4", 3)):
        assert people.of_frames(tmp_path / path, [0])[0][0, 0] == x
    for path, frame in (("c.mp4", 0), ("a.jpg", 1)):
        assert people.of_frames(tmp_path / path, [frame])[0].shape == (0, 4)
    people.require([tmp_path / "a.jpg", tmp_path / "none.jpg"])
    assert "no row for 1 of 2 files" in caplog.text and "none.jpg" in caplog.text
    with pytest.raises(UserError, match="none.jpg or any other of 2 files"):
        people.require([tmp_path / "none.jpg", tmp_path / "c.mp4"])
    rows = np.array([[0.125, 1 / 3, 5, 6], [1, 2, 3, 4]], np.float32)
    write_boxes(tmp_path / "b.csv", {"a, b.avi": {3: rows}, "ä.jpg": {}})
    read = read_boxes(tmp_path / "b.csv")
    assert list(read) == ["a, b.avi"] and np.array_equal(read["a, b.avi"][3], rows)
