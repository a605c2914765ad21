"""The walk through folders as people have them, names that are unique, names in lists."""

import os
import time
import unicodedata

import pytest

from aux_code.datasets.media_files import (
    ListedFiles,
    media_below,
    name_choices,
    unique_names,
    walk,
)
from feature_extraction.video_inputs import list_inputs
from tests.datasets.media import write_lines


def below(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def test_links_are_followed_once_and_what_systems_leave_is_passed_over(tmp_path):
    own, disk = tmp_path / "own", tmp_path / "disk"
    for name in ("own/a.mp4", "own/sub/b.MP4", "disk/c.mp4", "disk/deep/d.mp4", "own/.trash/e.mp4"):
        write_lines(tmp_path / name)
    for name in ("._a.mp4", "__MACOSX/a.mp4", "@eaDir/a.mp4", "sub/._b.mp4", "Thumbs.db"):
        write_lines(own / name)
    (own / "cam2").symlink_to(disk)
    (own / "a_way").symlink_to(own / "sub")  # which is entered as itself
    (disk / "round").symlink_to(own)
    (own / "itself.mp4").symlink_to(own / "itself.mp4")
    (own / "gone.mp4").symlink_to(tmp_path / "unplugged.mp4")
    (own / "linked.mp4").symlink_to(disk / "c.mp4")
    os.mkfifo(own / "pipe.mp4")
    links = ["cam2/c.mp4", "cam2/deep/d.mp4", "gone.mp4", "itself.mp4", "linked.mp4"]
    assert below(own, walk(own)) == ["a.mp4", *links, "sub/b.MP4"]
    assert below(own, walk(own, deep=False)) == ["a.mp4", *links[2:]]
    again = [own / "a.mp4", *(own / link for link in links[2:]), own / "sub" / "b.MP4"]
    found = walk(own / "nowhere", disk, own)
    assert found == [disk / "c.mp4", disk / "deep" / "d.mp4"] + [
        disk / "round" / path.relative_to(own) for path in again
    ]


def test_media_below_a_folder_in_natural_order(tmp_path, caplog):
    names = "cam10.ts cam2.dav a/000.jpg a/001.TIF b/x.mp4 b/x.jpg c/preview.gif c/0.png top.jpg"
    for name in (*names.split(), "notes.txt", "more.txt", "x.braw"):
        write_lines(tmp_path / name)
    expected = ["a", "b/x.mp4", "c", "c/preview.gif", "cam2.dav", "cam10.ts"]
    assert below(tmp_path, media_below(tmp_path)) == expected
    (line,) = caplog.messages
    assert "5 files are no videos by their names" in line and "x.braw" in line
    assert line.count(" and 1 like it") == 2


def test_a_thousand_files_are_listed_in_a_fifth_of_a_second(tmp_path):
    for i in range(1000):
        write_lines(tmp_path / str(i // 100) / f"{i % 100}.mp4")
    seconds = []
    for _ in range(3):  # of the process, the fewest: others compute beside it
        started = time.process_time()
        assert len(list_inputs(str(tmp_path)).videos) == 1000
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.2


def test_unique_names():
    assert unique_names([["a_b"]] * 3 + [["a_b_2"]]) == ["a_b", "a_b_3", "a_b_4", "a_b_2"]
    long = "x" * 300
    assert unique_names([["v", long], ["v", long], ["w", "w"]]) == ["v", "v_2", "w"]


def test_names_of_files_anywhere(tmp_path):
    inside, outside = tmp_path / "a" / "b" / ".." / "x.mp4", tmp_path.parent / "y" / "x.mp4"
    assert name_choices(inside, tmp_path, "x") == ("x", "a__x", "a__x.mp4")
    names = name_choices(outside, tmp_path, "u\u0308")
    assert names[0] == "ü" and names[1] == "__".join([*outside.parent.parts[1:], "ü"])


NAMES = ["cam 1/Ü: 5.MP4", "cam 1/ü.mp4", "cam 1/back\\slash.mp4", "server/cam.mp4"]
LISTED = {
    "cam 1/Ü: 5.MP4": 0, "cam 1/U\u0308: 5.mp4": 0, r"Cam 1\Ü: 5.MP4": 0,
    r"E:\data\own\cam 1\ü.mp4": 1, "e:/cam 1/u\u0308.mp4": 1, r"\\nas\share\cam 1\ü.mp4": 1,
    "./cam 1/../cam 1/ü.mp4": 1, "cam 1/back\\slash.mp4": 2, r"\\nas\server\cam.mp4": None,
    "elsewhere/cam.mp4": None, "/elsewhere/server/cam.mp4": None,
}  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_listed_files_are_found_however_their_names_are_written(tmp_path, form):
    files = [write_lines(tmp_path / unicodedata.normalize(form, name)) for name in NAMES]
    for listed, place in LISTED.items():
        found = ListedFiles(tmp_path).find(listed)
        assert found is None if place is None else os.path.samefile(found, files[place]), listed
    moved = ListedFiles(tmp_path, moved=True)
    assert moved.find("/elsewhere/server/cam.mp4") == moved.find("x/server/cam.mp4") == files[3]
    assert ListedFiles(tmp_path).expected(r"x\y.mp4") == tmp_path / "x" / "y.mp4"
