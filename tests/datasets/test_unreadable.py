"""Unreadable files are counted, named, and stop a run when they are too many."""

import pytest

from aux_code.datasets.unreadable import UnreadableLog, UnreadableMedia
from aux_code.errors import UserError


def test_names_files_and_stops_past_the_share(tmp_path, caplog):
    log = UnreadableLog(tmp_path / "run", n_total=300, max_share=0.01)
    assert len(log) == 0 and not log.path.exists()
    for i in range(3):
        log.record(f"video {i} é.mp4", "moov atom\nnot found")
        log.record(f"video {i} é.mp4", "met again in the next epoch")
    assert len(log) == 3 and log.names == [f"video {i} é.mp4" for i in range(3)]
    assert log.path == tmp_path / "run" / "unreadable.txt"
    assert log.path.read_text("utf-8").splitlines() == [f"video {i} é.mp4\tmoov atom not found" for i in range(3)]
    assert "video 2 é.mp4" in caplog.text
    with pytest.raises(UserError, match=r"4 of 300 files.*1.0%.*unreadable.txt"):
        log.record("video 3.mp4")
    assert len(log.path.read_text("utf-8").splitlines()) == 4


def test_any_share_is_settable(tmp_path):
    with pytest.raises(UserError):
        UnreadableLog(tmp_path, n_total=50).record("a.mp4")
    lenient = UnreadableLog(tmp_path, n_total=2, max_share=1.0)
    lenient.record("a.mp4")
    lenient.record("b.mp4")
    assert len(lenient) == 2


def test_error_names_file_and_reason():
    error = UnreadableMedia("a/b.mp4", "cannot be opened")
    assert isinstance(error, UserError) and str(error).startswith("a/b.mp4: cannot be opened; ")
