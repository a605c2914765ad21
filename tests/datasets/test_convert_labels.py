"""Old label pickles: honest ones are read, any other content is refused before it runs."""

import io
import os
import pickle

import numpy as np
import pytest

from aux_code.datasets.convert_labels import main, read_labels
from aux_code.datasets.vispr import Vispr
from aux_code.errors import UserError
from tests.datasets.media import write_lines

VALUES = {"2017_1": [1, 1, 0, 0, 0, 0, 1], "2017_2": [0] * 7}


def dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_reads_honest_pickles(tmp_path, protocol):
    scalars = {key: [np.float32(value) for value in values] for key, values in VALUES.items()}
    arrays = ({key: np.array(VALUES[key], t) for key in VALUES} for t in (int, float, bool))
    for content in (VALUES, scalars, *arrays):
        labels = read_labels(dump(tmp_path / "old.pkl", content, protocol))
        assert {key: value.tolist() for key, value in labels.items()} == VALUES
        assert all(value.dtype == np.float32 for value in labels.values())
    # protocols up to 2 write module names as lines, so that these can be exchanged for NumPy 1's
    content = (tmp_path / "old.pkl").read_bytes()
    (tmp_path / "old.pkl").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    if protocol <= 2:
        assert b"numpy._core" in content and len(read_labels(tmp_path / "old.pkl")) == 2


def test_written_annotations_load_as_vispr(tmp_path):
    for name in VALUES:
        write_lines(tmp_path / "train2017" / f"{name}.jpg")
        write_lines(tmp_path / "test2017" / f"{name}.jpg")
    content = {f"{key}.jpg": np.array(values) for key, values in VALUES.items()}
    old = dump(tmp_path / "train_labels.pkl", content)
    folder = tmp_path / "annotations" / "train2017"
    assert main([str(old), str(folder)]) == 0
    with pytest.raises(UserError, match="already holds annotations"):
        main([str(old), str(folder)])
    # without a folder: beside the pickle, where the loader looks if the name tells
    assert main([str(dump(tmp_path / "test_labels.pkl", VALUES))]) == 0
    for split in ("train", "test"):
        np.testing.assert_array_equal(Vispr(tmp_path, split).labels, list(VALUES.values()))
    assert main([str(dump(tmp_path / "OLD.pkl", VALUES))]) == 0
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
        Attack(os.mkdir, str(mark)), Attack(getattr, (1, 2), "count"),
        Attack(io.open, str(mark), "w"), Attack(np.lib.npyio.NpzFile, str(mark)),
        np.array([None, 1, 2, 3, 4, 5, 6], object),
        np.zeros(7, "f4,O"), np.array(["2026-01-01"], "datetime64[D]"), {1, Attack},
    ]  # fmt: skip
    for attack in attacks:
        path = dump(tmp_path / "bad.pkl", {"2017_1": attack}, protocol)
        with pytest.raises(UserError, match="bad.pkl: refused"):
            read_labels(path)
        assert not mark.exists()
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.")
    with pytest.raises(UserError, match="refused"):
        read_labels(path)


@pytest.mark.parametrize("content", [
    [1, 2], {}, {3: [0] * 7}, {"2017_1": [0] * 6}, {"2017_1": [0.5] * 7},
    {"2017_1": [float("nan")] * 7}, {"2017_1": "abcdefg"}, {"2017_1": None},
    {"a/2017_1.jpg": [0] * 7, "b/2017_1.jpg": [1] * 7}, b"", b"text", pickle.dumps(VALUES)[:20],
])  # fmt: skip
def test_wrong_labels_and_broken_files_are_named(tmp_path, content):
    path = dump(tmp_path / "old.pkl", content)
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match="old.pkl"):
        read_labels(path)
    with pytest.raises(UserError, match="absent.pkl"):
        read_labels(tmp_path / "absent.pkl")
