"""Frame indices on disk: later processes and epochs do not scan a video again, and damage never
shows."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from aux_code import config
from aux_code.datasets import index_cache, video_index
from aux_code.datasets.decode import count_frames, read_frames
from tests.datasets.media import painted_number, write_video

B_FRAMES = {"bf": "3", "g": "12"}

ANOTHER_PROCESS = """
import sys
from aux_code.datasets import video_index
from aux_code.datasets.decode import count_frames, read_frames
def scan(path):
    raise AssertionError(f"{path} is scanned again")
video_index._index_by_packets = video_index._index_by_decoding = scan
for path in sys.argv[1:]:
    print(count_frames(path), read_frames(path, [count_frames(path) - 1]).sum())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of indices, empty at first, also in memory; processes find it below the
    artefacts."""
    monkeypatch.setattr(config, "FRAME_INDEX_ROOT", tmp_path / "artifacts" / "frame_index")
    monkeypatch.setattr(video_index, "_cache", {})
    monkeypatch.setattr(index_cache, "_unwritable", set())
    return config.FRAME_INDEX_ROOT


@pytest.fixture
def videos(tmp_path):
    return [
        write_video(tmp_path / "a.mp4", 40, options=B_FRAMES),
        write_video(tmp_path / "b é #1.avi", 25, codec="mpeg4"),
    ]


def forget():
    """As a new process would begin."""
    video_index._cache.clear()


def scans(monkeypatch):
    """The videos that are scanned from now on."""
    scanned = []
    for name in ("_index_by_packets", "_index_by_decoding"):
        scan = getattr(video_index, name)
        monkeypatch.setattr(
            video_index, name, lambda path, scan=scan: scanned.append(path) or scan(path)
        )
    return scanned


def stored(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_process_scans_nothing_and_reads_the_same(tmp_path, folder, videos):
    expected = [
        (count_frames(path), read_frames(path, [count_frames(path) - 1]).sum()) for path in videos
    ]
    assert [n_frames for n_frames, _ in expected] == [40, 25]
    environment = {
        **os.environ,
        "TED_SPAD_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ANOTHER_PROCESS, *map(str, videos)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [f"{n_frames} {total}" for n_frames, total in expected]
    assert len(stored(folder)) == 2 and all(path.stat().st_size < 2000 for path in stored(folder))


@pytest.mark.parametrize("which", [0, 1])
def test_the_stored_index_is_the_one_that_was_made(folder, videos, which):
    made = video_index.video_index(videos[which])
    forget()
    loaded = video_index.video_index(videos[which])
    assert loaded is not made and (made.key_sums is None) == (which == 0)
    for name, value in vars(made).items():
        np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)


class _Counts(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return count_frames(self.paths[i])


def test_decoding_processes_of_the_next_epoch_scan_nothing(folder, videos, monkeypatch):
    loader = DataLoader(
        _Counts(videos), batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    assert list(loader) == [40, 25]
    assert not video_index._cache, "the first epoch's index went with its process"
    for name in ("_index_by_packets", "_index_by_decoding"):
        monkeypatch.setattr(video_index, name, lambda path: pytest.fail(f"{path} is scanned again"))
    assert list(loader) == [40, 25]


def test_a_changed_video_is_scanned_again_and_replaces_its_index(folder, videos, monkeypatch):
    assert count_frames(videos[0]) == 40
    write_video(videos[0], 31, options=B_FRAMES)
    forget()
    scanned = scans(monkeypatch)
    assert count_frames(videos[0]) == 31 and scanned == [videos[0]]
    assert len(stored(folder)) == 1
    status = videos[0].stat()
    os.utime(videos[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    forget()
    assert count_frames(videos[0]) == 31 and len(scanned) == 2


def make_index_often(paths, failures):
    """What one of the processes does: makes every index again and again, and finds a whole one each
    time."""
    for _ in range(20):
        for path, n_frames in zip(paths, (40, 25), strict=True):
            video_index.reindex_by_decoding(path)
            arrays = index_cache.load_index(video_index._file_key(path))
            if arrays is None or video_index.VideoIndex.from_arrays(arrays).n_frames != n_frames:
                failures.put(str(path))


def test_processes_write_the_same_index_at_once(folder, videos, caplog):
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [
        context.Process(target=make_index_often, args=(videos, failures)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0, 0] and failures.empty()
    assert len(stored(folder)) == 2, "no temporary file is left"
    assert [count_frames(path) for path in videos] == [40, 25] and "damaged" not in caplog.text


def damaged(content: bytes, how: str) -> bytes:
    """A stored index after an accident."""
    if how == "another version's":
        return content.replace(b"key.npy", b"kez.npy")
    if how == "flipped bits":
        return bytes(b ^ 0x10 if i % 97 == 60 else b for i, b in enumerate(content))
    return {"empty": b"", "cut": content[: len(content) // 2], "text": b"no archive"}[how]


@pytest.mark.parametrize("how", ["empty", "cut", "text", "flipped bits", "another version's"])
def test_a_damaged_index_is_made_again(folder, videos, monkeypatch, caplog, how):
    assert count_frames(videos[0]) == 40
    (path,) = stored(folder)
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, how))
    forget()
    scanned = scans(monkeypatch)
    assert painted_number(read_frames(videos[0], [39])[0]) == 39 and scanned == [videos[0]]
    assert "damaged" in caplog.text and "a.mp4" in caplog.text
    forget()
    assert count_frames(videos[0]) == 40 and len(scanned) == 1


def test_no_pickle_is_ever_loaded(folder, videos):
    assert count_frames(videos[0]) == 40
    (path,) = stored(folder)
    np.savez(path, key=np.array([{}], object))
    forget()
    assert count_frames(videos[0]) == 40


def test_the_index_of_another_decoder_does_not_count(folder, videos, monkeypatch):
    assert count_frames(videos[1]) == 25
    monkeypatch.setattr(index_cache, "_LAYOUT", "1, PyAV 0.0")
    forget()
    scanned = scans(monkeypatch)
    assert count_frames(videos[1]) == 25 and videos[1] in scanned


def test_an_index_that_did_not_hold_is_replaced(folder, videos, monkeypatch):
    for video, seeks in zip(videos, (True, False), strict=True):
        video_index.reindex_by_decoding(video, seeks)
    forget()
    scanned = scans(monkeypatch)
    assert video_index.video_index(videos[0]).key_sums is not None
    assert video_index.video_index(videos[1]).pts is None and scanned == []


def test_a_folder_that_cannot_be_written_is_worth_one_warning(folder, videos, caplog):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    assert [count_frames(path) for path in videos] == [40, 25]
    assert caplog.text.count("not kept for later runs") == 1
