"""Boxes of people as a CSV file."""

import tracemalloc

import numpy as np
import pytest

from aux_code.datasets.person_box_files import read_boxes
from aux_code.errors import UserError


def test_read_boxes(tmp_path):
    path = tmp_path / "person_boxes.csv"
    rows = '"a,b/c.avi",3,1,2,5,6\n"a,b/c.avi",3,0.5,0,2,2\nä.jpg,0,1,1,2,2\n'
    path.write_text(f"file,frame,x0,y0,x1,y1\n{rows}", "utf-8")
    boxes = read_boxes(path)
    assert set(boxes) == {"a,b/c.avi", "ä.jpg"}
    np.testing.assert_array_equal(boxes["a,b/c.avi"][3], [[1, 2, 5, 6], [0.5, 0, 2, 2]])
    assert list(boxes["ä.jpg"]) == [0]
    with pytest.raises(UserError, match="nowhere.csv"):
        read_boxes(tmp_path / "nowhere.csv")


def test_many_boxes_are_read_in_little_memory_in_any_order(tmp_path):
    """As a detector's per-frame file of a whole data set: 100,000 rows."""
    path, expected = tmp_path / "person_boxes.csv", {}
    with open(path, "w") as file:
        file.write("file,frame,x0,y0,x1,y1\n")
        for i in range(100_000):
            name, frame, box = (
                f"video_{i // 500 % 50:03d}.mp4",
                i * 7919 % 500,
                (i % 90, 1, 99, 2.5),
            )
            file.write(f"{name},{frame},{','.join(map(str, box))}\n")
            expected.setdefault(name, {}).setdefault(frame, []).append(box)
    tracemalloc.start()
    boxes = read_boxes(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 100_000, f"{peak / 1e5:.0f} bytes a row; 200 MB for a million are allowed"
    assert boxes.keys() == expected.keys()
    for name in ("video_000.mp4", "video_049.mp4"):
        assert len(boxes[name]) == len(expected[name]) and 500 not in boxes[name]
        for frame, rows in boxes[name].items():
            assert rows.tolist() == [list(box) for box in expected[name][frame]]


@pytest.mark.parametrize("line, message", [
    ("a.avi,1,2,3,4", "3.*expected file,frame"), ("a.avi,x,1,2,3,4", "3.*expected file,frame"),
    ("a.avi,-1,1,2,3,4", "3.*expected file,frame"), ("a.avi,1,5,2,3,4", "3.*empty"),
    ("a.avi,1,1,2,nan,4", "3.*expected file,frame"), (None, "1: the header"),
])  # fmt: skip
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "person_boxes.csv"
    path.write_text(f"file,frame,x0,y0,x1,y1\nb.avi,0,1,1,2,2\n{line}\n" if line else "file,x0\n")
    with pytest.raises(UserError, match=f"person_boxes.csv, line {message}"):
        read_boxes(path)
