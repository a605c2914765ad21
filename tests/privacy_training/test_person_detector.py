"""Boxes by torchvision's detector, whose weights come from a local file; here random ones that take much for people."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aux_code import config
from aux_code.errors import UserError
from aux_code.model_loaders import load_anonymizer
from aux_code.models.person_boxes import COCO_PERSON
from privacy_training.params_privacy import PRESETS
from privacy_training.released_splits import person_boxes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Random weights of the published layout; the bias of the class makes every region a person."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    torch.manual_seed(0)
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    state["roi_heads.box_predictor.cls_score.bias"][COCO_PERSON] = 20.0
    path = tmp_path_factory.mktemp("detector") / "fasterrcnn.pth"
    torch.save(state, path)
    return path


def test_boxes_come_from_a_detector_with_local_weights(tmp_path, monkeypatch, weights_file):
    monkeypatch.setattr(config, "VISPR_ROOT", tmp_path)  # no person_boxes.csv there
    params = replace(PRESETS["paper"], detector_weights=weights_file)
    anonymizer = load_anonymizer("blacken")
    boxes_of = person_boxes(params, anonymizer, CPU)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = boxes_of(tmp_path / "train2017" / "a.jpg", picture)
    assert boxes.ndim == 2 and boxes.shape[1] == 4 and len(boxes) > 0
    rounding = 1e-3
    assert (boxes >= 0).all() and (boxes <= np.array([80, 60, 80, 60]) + rounding).all(), (
        "pixels of the picture as it was decoded"
    )
    frame = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    hidden = anonymizer(frame, [torch.from_numpy(boxes)])
    assert (hidden == 0).all(dim=1).float().mean() > (frame == 0).all(dim=1).float().mean()
    (tmp_path / "person_boxes.csv").write_text("file,frame,x0,y0,x1,y1\ntrain2017/a.jpg,0,1,2,3,4\n")
    from_file = person_boxes(params, anonymizer, CPU)(tmp_path / "train2017" / "a.jpg", picture)
    assert from_file.tolist() == [[1, 2, 3, 4]], "a boxes file in the data set's folder comes first"


def test_anonymizer_without_boxes_needs_no_detector():
    params = replace(PRESETS["paper"], detector_weights=config.VISPR_ROOT / "nowhere.pth")
    assert person_boxes(params, load_anonymizer("downsample2x"), CPU) is None


def test_wrong_detector_weights_are_refused(run_stage, tmp_path):
    options = ("--anonymizer", "blacken", "--detector_weights")
    with pytest.raises(UserError, match="nowhere.pth"):
        run_stage(*options, tmp_path / "nowhere.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth"):
        run_stage(*options, tmp_path / "other.pth")
