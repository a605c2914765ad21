"""Old label pickles: honest ones are read, any other content is refused before it runs."""

import io
import os
import pickle

import numpy as np
import pytest

from aux_code.datasets import convert_labels
from aux_code.datasets.vispr import VISPR1, Vispr
from aux_code.errors import UserError

VALUES = {"2017_1": [1, 1, 0, 0, 0, 0, 1], "2017_2": [0] * 7}


def dump(path, content, protocol=4, rename=None):
    data = pickle.dumps(content, protocol=protocol)
    if rename:
        data = data.replace(*rename)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        lambda values: np.array(values, np.float64),
        lambda values: [np.float32(value) for value in values],
        lambda values: np.array(values, bool),
    ],
)
def test_reads_honest_pickles(tmp_path, protocol, convert):
    content = {key: convert(values) for key, values in VALUES.items()}
    path = dump(tmp_path / "old.pkl", content, protocol)
    labels = convert_labels.read_labels(path)
    assert {key: value.tolist() for key, value in labels.items()} == VALUES
    assert all(value.dtype == np.float32 for value in labels.values())


def test_reads_the_names_of_numpy_1(tmp_path):
    # Protocol 2 writes module names as lines, so that they can be exchanged for those of NumPy 1.
    arrays = {"2017_1": np.array(VALUES["2017_1"], np.float64)}
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    path = dump(tmp_path / "old.pkl", arrays, 2, names)
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert convert_labels.read_labels(path)["2017_1"].tolist() == VALUES["2017_1"]


def touch_images(folder):
    folder.mkdir()
    for name in VALUES:
        (folder / f"{name}.jpg").touch()


def test_written_annotations_load_as_vispr(tmp_path):
    touch_images(tmp_path / "train2017")
    content = {f"{key}.jpg": np.array(values) for key, values in VALUES.items()}
    old = dump(tmp_path / "train_labels.pkl", content)
    folder = tmp_path / "annotations" / "train2017"
    assert convert_labels.main([str(old), str(folder)]) == 0
    np.testing.assert_array_equal(Vispr(tmp_path, "train").labels, list(VALUES.values()))
    with pytest.raises(UserError, match="already holds annotations"):
        convert_labels.main([str(old), str(folder)])
    assert len(VISPR1) == 7


def test_the_name_tells_where_annotations_go(tmp_path):
    """`convert_labels OLD.pkl` alone: beside the pickle, where the loader looks."""
    touch_images(tmp_path / "test2017")
    assert convert_labels.main([str(dump(tmp_path / "test_labels.pkl", VALUES))]) == 0
    np.testing.assert_array_equal(Vispr(tmp_path, "test").labels, list(VALUES.values()))
    assert convert_labels.main([str(dump(tmp_path / "OLD.pkl", VALUES))]) == 0
    written = sorted(path.name for path in (tmp_path / "OLD").iterdir())
    assert written == ["2017_1.json", "2017_2.json"]


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refuses_everything_else(tmp_path, protocol):
    mark = tmp_path / "harmed"
    attacks = [
        Attack(os.mkdir, str(mark)),
        Attack(getattr, (1, 2), "count"),
        np.array([None, 1, 2, 3, 4, 5, 6], object),
        np.zeros(7, "f4,O"),
        np.array(["2026-01-01"], "datetime64[D]"),
        Attack(io.open, str(mark), "w"),
        Attack(np.lib.npyio.NpzFile, str(mark)),
        {1, Attack},
    ]
    for attack in attacks:
        path = dump(tmp_path / "bad.pkl", {"2017_1": attack}, protocol)
        with pytest.raises(UserError, match="bad.pkl: refused"):
            convert_labels.read_labels(path)
        assert not mark.exists()
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93."
    (tmp_path / "bad.pkl").write_bytes(dotted)
    with pytest.raises(UserError, match="refused"):
        convert_labels.read_labels(tmp_path / "bad.pkl")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2], {}, {3: [0] * 7}, {"2017_1": [0] * 6}, {"2017_1": [0.5] * 7},
        {"2017_1": [float("nan")] * 7}, {"2017_1": "abcdefg"}, {"2017_1": None},
        {"a/2017_1.jpg": [0] * 7, "b/2017_1.jpg": [1] * 7},
    ],
)  # fmt: skip
def test_wrong_labels_name_the_file(tmp_path, content):
    with pytest.raises(UserError, match="old.pkl"):
        convert_labels.read_labels(dump(tmp_path / "old.pkl", content))


def test_broken_files(tmp_path):
    whole = dump(tmp_path / "old.pkl", VALUES).read_bytes()
    for data in (b"", b"text", whole[:20]):
        (tmp_path / "old.pkl").write_bytes(data)
        with pytest.raises(UserError, match="old.pkl"):
            convert_labels.read_labels(tmp_path / "old.pkl")
    with pytest.raises(UserError, match="absent.pkl"):
        convert_labels.read_labels(tmp_path / "absent.pkl")
