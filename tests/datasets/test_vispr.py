"""VISPR's three annotation layouts, labels in the fixed order, and reports."""

import json

import numpy as np
import pytest

from aux_code import config
from aux_code.datasets.vispr import VISPR1, Vispr
from aux_code.errors import UserError
from tests.datasets.media import write_lines

LABELS = {
    "2017_1": ["a4_gender", "a17_color", "a6_hair_color"], "2017_2": ["a0_safe"],
    "2017_3": ["a65_rel_social", "a12_semi_nudity"], "2017_4": list(VISPR1),
}  # fmt: skip
LAYOUTS = ["train2017", "annotations/train2017", "train2017_annotation"]


def make_vispr(root, annotations="train2017", labels=LABELS, images="train2017"):
    for stem, names in labels.items():
        write_lines(root / images / f"{stem}.jpg")
        content = {"image_path": f"{stem}.jpg", "labels": names, "safe": False}
        write_lines(root / annotations / f"{stem}.json", json.dumps(content))
    return root


@pytest.mark.parametrize("annotations", LAYOUTS)
def test_labels_in_the_fixed_order_and_by_name(tmp_path, annotations):
    data = Vispr(make_vispr(tmp_path, annotations), "train")
    assert data.attributes == VISPR1
    assert [path.name for path in data] == [f"2017_{i}.jpg" for i in (1, 2, 3, 4)]
    expected = [[1, 1, 0, 0, 0, 0, 0], [0] * 7, [0, 0, 0, 0, 1, 0, 1], [1] * 7]
    np.testing.assert_array_equal(data.labels, expected)
    assert data.labels.dtype == np.float32 and data.report == []
    labels = Vispr(tmp_path, attributes=["a6_hair_color", "a65_rel_soci"]).labels
    np.testing.assert_array_equal(labels, [[1, 0], [0, 0], [0, 1], [0, 1]])


def test_an_attribute_of_another_split_is_reported_as_absent(tmp_path):
    root = make_vispr(tmp_path)
    make_vispr(root, "val2017", {"2017_5": ["a4_gender"]}, "val2017")
    data = Vispr(root, "val", attributes=["a4_gender", "a6_hair_color"])
    np.testing.assert_array_equal(data.labels, [[1, 0]])
    (line,) = data.report
    assert line == "1 attributes have no positive image, so no average precision: a6_hair_color"
    with pytest.raises(UserError, match="unknown VISPR attributes a99_wings; .*a0_safe.*a6_hair_"):
        Vispr(root, "val", attributes=["a4_gender", "a99_wings"])


def test_missing_and_broken_annotations_are_named(tmp_path):
    root = make_vispr(tmp_path)
    for content in ("{", "[]", '{"labels": "a4_gender"}', '{"label": []}', '{"labels": [3]}'):
        (root / "train2017" / "2017_3.json").write_text(content)
        with pytest.raises(UserError, match="2017_3.json"):
            Vispr(tmp_path)
    (root / "train2017" / "2017_1.json").unlink()
    with pytest.raises(UserError, match=r"1 of 4 VISPR annotations are missing.*2017_1.json"):
        Vispr(root)
    for path in (root / "train2017").glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match="no VISPR annotations"):
        Vispr(root)
    data = Vispr(root, load_labels=False)
    assert len(data) == 4 and data.labels is None


def test_all_broken_annotations_are_named_at_once(tmp_path, monkeypatch):
    """The first ten in the message, all of them in a file."""
    monkeypatch.setattr(config, "LOGS_ROOT", tmp_path / "logs")
    root = make_vispr(tmp_path, labels={f"2017_{i:02d}": ["a4_gender"] for i in range(40)})
    for i in range(12):
        (root / "train2017" / f"2017_{i:02d}.json").write_text("{")
    with pytest.raises(
        UserError, match="12 VISPR annotations are broken: .*2017_09.json.*"
    ) as caught:
        Vispr(root, hold_out=False)
    whole = tmp_path / "logs" / "VISPR_annotations_are_broken.txt"
    assert "2017_10.json" not in str(caught.value) and str(whole) in str(caught.value)
    assert [f"2017_{i:02d}.json" in line for i, line in enumerate(whole.open())] == [True] * 12


def test_without_labelled_images_of_its_own_val_is_a_tenth_of_train(tmp_path):
    """The labels that circulate are of train and test; val2017 may lie there without any."""
    root = make_vispr(tmp_path, labels={f"2017_{i}": [VISPR1[i % 7]] for i in range(40)})
    whole = Vispr(root, hold_out=False)
    splits = {split: Vispr(root, split) for split in ("train", "val")}
    assert [len(data) for data in splits.values()] == [36, 4]
    assert sorted([*splits["train"], *splits["val"]]) == whole.paths
    for data in splits.values():
        numbers = [int(path.stem.split("_")[1]) for path in data]
        np.testing.assert_array_equal(data.labels.argmax(1), np.array(numbers) % 7)
    (root / "val2017").mkdir()
    (root / "val2017" / "2017_99.jpg").touch()
    assert Vispr(root, "val").paths == splits["val"].paths
    unlabelled = Vispr(root, load_labels=False)
    assert unlabelled.paths == splits["train"].paths, "nobody trains on what is held out"
    (root / "val2017" / "2017_99.json").write_text(json.dumps({"labels": ["a4_gender"]}))
    assert Vispr(root).paths == whole.paths and len(Vispr(root, "val")) == 1


def test_mismatches_are_reported_and_wrong_roots_and_splits_refused(tmp_path, caplog):
    labels = {f"2017_{i}": ["a4_gender"] for i in range(200)}
    root = make_vispr(tmp_path, labels=labels)
    (root / "train2017" / "2017_7.json").unlink()
    (root / "train2017" / "2017_9.jpg").unlink()
    (root / "train2017" / "._2017_8.jpg").touch()
    data = Vispr(root, hold_out=False)
    assert len(data) == len(data.labels) == 198
    text = " | ".join(data.report)
    assert "1 images have no annotation and are left out: 2017_7" in text
    assert f"1 annotations have no image: {root / 'train2017' / '2017_9.jpg'}" in text
    assert "6 attributes have no positive image" in text and "a17_color" in text
    assert "2017_7" in caplog.text
    with pytest.raises(UserError, match="VISPR_ROOT"):
        Vispr(tmp_path / "absent")
    (root / "train2017" / "2017_1.png").touch()
    for split in ("dev", "test", "train"):
        with pytest.raises(UserError):
            Vispr(root, split)
