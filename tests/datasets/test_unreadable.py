"""Unreadable files are counted, named, and stop a run when they are too many."""

import pytest

from aux_code.datasets.unreadable import UnreadableLog, write_unreadable
from aux_code.errors import UserError


def test_names_files_and_stops_past_the_share(tmp_path, caplog):
    log = UnreadableLog(tmp_path / "run", n_total=300)
    names = [f"video {i} é.mp4" for i in range(3)]
    assert len(log) == 0 and not log.path.exists()
    for name in names:
        log.record(name, "moov atom\nnot found")
        log.record(name, "met again in the next epoch")
    assert len(log) == 3 and log.names == names and names[2] in caplog.text
    assert log.path == tmp_path / "run" / "unreadable.txt"
    lines = [f"{name}\tmoov atom not found" for name in names]
    assert log.path.read_text("utf-8").splitlines() == lines
    log.stop_if_too_many()
    log.record("video 3.mp4")
    with pytest.raises(UserError, match=r"4 of 300 files.*1.0%: video 0.*unreadable.txt"):
        log.stop_if_too_many()
    assert len(log.path.read_text("utf-8").splitlines()) == 4


def test_data_sets_of_a_run_share_its_file_and_a_whole_list_replaces_it(tmp_path):
    """Stage 1 reads clips and images in turns; neither overwrites what the other has named."""
    clips = UnreadableLog(tmp_path, n_total=2, max_share=1.0)
    images = UnreadableLog(tmp_path, n_total=100)
    clips.record("a.avi", "no frame of its video decodes")
    images.record("b.jpg", "truncated")
    clips.record("c.avi", "cannot be opened")
    assert (len(clips), len(images)) == (2, 1)
    UnreadableLog(tmp_path, n_total=100).record("a.avi", "met again by the resumed run")
    lines = images.path.read_text("utf-8").splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == ["a.avi", "b.jpg", "c.avi"]
    assert "a.avi\tmet again by the resumed run" in lines
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    UnreadableLog(tmp_path, n_total=100).record(name)
    UnreadableLog(tmp_path, n_total=100).record("d.avi")
    assert b"caf\xe9.mp4\tdoes not decode\n" in images.path.read_bytes(), "a name that is no UTF-8"
    reasons = {"a.mp4": "cannot\nbe opened", "b.mp4": "holds no video stream"}
    path = write_unreadable(tmp_path / "run", reasons)
    assert path.read_text("utf-8") == "a.mp4\tcannot be opened\nb.mp4\tholds no video stream\n"
    assert write_unreadable(tmp_path / "run", {}) == path and not path.exists()
