"""Determinism, what is kept, what is made again and what is refused."""

import hashlib
import json
import subprocess
import sys

import pytest

from aux_code import config
from aux_code.errors import UserError
from aux_code.miniature import render
from aux_code.miniature.__main__ import main
from aux_code.miniature.render import MARKER, PARTIAL_FOLDER, render_benchmark

from .conftest import SCALE


def digests(root) -> dict[str, str]:
    """Hash of every file but the markers, which hold times."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name != MARKER)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_workers_give_the_same_bytes_as_one(tiny, tmp_path):
    sets = ["vispr", "xd_violence", "shanghaitech"]
    render_benchmark(tmp_path, seed=0, scale=SCALE, only=sets, workers=2)
    for name in sets:
        folder = render.DATA_SETS[name].folder
        assert digests(tmp_path / folder) == digests(tiny / folder)


def test_a_complete_rendering_is_kept(tiny):
    before = (tiny / MARKER).stat().st_mtime_ns
    record = render_benchmark(tiny, seed=0, scale=SCALE, workers=1)
    assert (tiny / MARKER).stat().st_mtime_ns == before
    assert set(record["sets"]) == {"ucf101", "vispr", "ucf_crime", "xd_violence", "shanghaitech"}


def test_another_seed_is_refused_without_force(tmp_path):
    render_benchmark(tmp_path, seed=0, scale=0.005, only=["vispr"], workers=1)
    first = digests(tmp_path)
    with pytest.raises(UserError, match="--force"):
        render_benchmark(tmp_path, seed=1, scale=0.005, only=["vispr"], workers=1)
    assert digests(tmp_path) == first
    render_benchmark(tmp_path, seed=1, scale=0.005, only=["vispr"], force=True, workers=1)
    assert digests(tmp_path) != first


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, capsys, caplog):
    (tmp_path / "UCF101").mkdir()
    (tmp_path / "UCF101" / "mine.txt").write_text("real data")
    assert main([str(tmp_path), "--scale", "0.005", "--force"]) == 2
    assert "UCF101 exists and is not a miniature rendering" in caplog.text
    assert [p.name for p in tmp_path.rglob("*")] == ["UCF101", "mine.txt"]


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        render_benchmark(tmp_path, scale=0.005, workers=1)
    with pytest.raises(UserError, match="not a folder"):
        render_benchmark(tmp_path / "thesis.tex", scale=0.005, workers=1)


def test_an_interrupted_rendering_is_done_again(tmp_path, monkeypatch):
    options = {"scale": 0.005, "only": ["vispr"], "workers": 1}
    whole = tmp_path / "whole"
    render_benchmark(whole, **options)
    real, calls = render.render_image, []

    def dies_at_the_tenth(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(render, "render_image", dies_at_the_tenth)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        render_benchmark(cut, **options)
    assert not (cut / MARKER).exists() and not (cut / "VISPR").exists()
    assert any((cut / PARTIAL_FOLDER).rglob("*.jpg"))
    monkeypatch.undo()
    render_benchmark(cut, **options)
    assert digests(cut) == digests(whole) and not (cut / PARTIAL_FOLDER).exists()


def test_a_set_that_is_missing_is_added_and_the_others_kept(tmp_path):
    render_benchmark(tmp_path, scale=0.005, only=["vispr"], workers=1)
    before = (tmp_path / "VISPR" / MARKER).stat().st_mtime_ns
    record = render_benchmark(tmp_path, scale=0.005, only=["vispr", "xd_violence"], workers=1)
    assert (tmp_path / "VISPR" / MARKER).stat().st_mtime_ns == before
    written = json.loads((tmp_path / MARKER).read_text())
    assert set(record["sets"]) == set(written["sets"]) == {"vispr", "xd_violence"}


@pytest.mark.parametrize("options", (["--scale", "0"], ["--seed", "-1"]))
def test_senseless_options_are_refused(tmp_path, options):
    assert main([str(tmp_path / "x"), *options]) == 2
    assert not (tmp_path / "x").exists()


def test_rendering_does_not_import_torch():
    code = "import sys, aux_code.miniature.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=config.REPOSITORY_ROOT, check=True)
