"""An artefact is current if the parameters that matter and the content of its inputs are equal."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from aux_code import artefacts
from aux_code.artefacts import Recipe, differences, is_current, record_of, sha256
from aux_code.checkpoints import load_checkpoint, save_checkpoint, write_json
from aux_code.parameters import CommonParams, by_content


@dataclass(frozen=True, kw_only=True)
class Params(CommonParams):
    init_fa: Path | None = by_content(None)
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "fa.pth").write_bytes(b"weights")
    return tmp_path / "fa.pth"


def made(weights: Path, params: Params | None = None, **data: str) -> Recipe:
    inputs, data = {"init_fa": weights, "anonymizer": "raw"}, data or {"UCF101": "d1"}
    return artefacts.recipe(params or Params(), inputs, data, {"precision": "fp32"})


def test_meta_says_where_a_checkpoint_came_from_and_loads_safely(tmp_path: Path, weights: Path):
    architectures, params = {"fa": {"arch": "small", "arguments": {}}}, Params(seed=7)
    made_of = made(weights, params)
    meta = artefacts.build_meta("train", architectures, params, made_of, {"top1": 0.5}, 3.0)
    digest = hashlib.sha256(b"weights").hexdigest()
    expected = {
        "inputs": {
            "init_fa": {"path": str(weights), "sha256": digest},
            "anonymizer": {"path": "raw", "sha256": ""},
        },
        "architectures": architectures, "metrics": {"top1": 0.5}, "seed": 7, "seconds": 3,
        "stage": "train", "format_version": artefacts.FORMAT_VERSION,
    }  # fmt: skip
    assert expected.items() <= meta.items()
    assert meta["parameters"]["sizes"] == [1, 2] and isinstance(meta["git_commit"], str)
    save_checkpoint(tmp_path / "x.pth", {"meta": meta})
    assert load_checkpoint(tmp_path / "x.pth")["meta"] == json.loads(json.dumps(meta))
    assert is_current(tmp_path / "x.pth", made_of)
    assert not is_current(tmp_path / "y.pth", made_of)
    write_json(tmp_path / "results.json", {"auc": 0.5, **vars(made_of)})
    save_checkpoint(tmp_path / "state.pth", {"made_of": vars(made_of), "position": {}})
    for name in ("results.json", "state.pth"):
        assert differences(record_of(tmp_path / name), made_of) == [], name


def test_each_difference_is_named_and_what_changes_no_result_is_none(weights: Path):
    record = vars(made(weights))
    changed = differences(record, made(weights, Params(seed=1, sizes=(1, 3))))
    assert changed == ["seed: 0, now 1", "sizes: [1, 2], now [1, 3]"]
    assert differences(record, made(weights, UCF101="d2")) == ["UCF101: other lists or files"]
    names, fields = ("anonymizer", "init_fa", "UCF101"), ("seed", "sizes")
    unknown = [f"{name}: not recorded" for name in (*fields, *names)]
    unknown.append("precision in force: not recorded, now fp32")
    assert differences({}, made(weights)) == unknown
    assert differences(record, Recipe(record["parameters"])) == [f"{n}: none now" for n in names]
    free = {"device": "cpu", "n_threads": 3, "resume": True, "overwrite": True, "preset": "y"}
    other = Params(**free, run_id="x", init_fa=Path("elsewhere"))
    moved = weights.rename(weights.parent / "moved.pth")
    assert differences(record, made(moved, other)) == []
    moved.write_bytes(b"Weights")
    os.utime(moved, ns=(1, 1))
    assert differences(record, made(moved)) == ["init_fa: another file"]


def test_a_folder_of_weights_counts_by_its_files(tmp_path: Path):
    digests = []
    for name, content in (("weights", "1"), (".hidden", "1"), ("weights", "22")):
        (tmp_path / name).write_text(content)
        digests.append(sha256(tmp_path))
    assert digests[0] == digests[1] != digests[2]
    assert artefacts.describe_inputs({"w": ""}) == {"w": {"path": "", "sha256": ""}}
