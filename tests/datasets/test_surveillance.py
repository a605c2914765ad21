"""Lists, labels and events of the surveillance data sets in their real layouts; nothing decodes."""

import unicodedata

import numpy as np
import pytest

from aux_code import config
from aux_code.datasets.surveillance import (
    SurveillanceVideo,
    frame_labels,
    list_surveillance,
    load_surveillance,
)
from aux_code.errors import UserError
from tests.datasets.media import write_lines


def facts(videos):
    return [(v.name, v.label, v.category, v.events) for v in videos]


def refused(name, match):
    with pytest.raises(UserError, match=match):
        load_surveillance(name)


ANNOTATIONS = "Temporal_Anomaly_Annotation_for_Testing_Videos.txt"


@pytest.fixture
def ucf_crime(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "UCF_CRIME_ROOT", tmp_path)
    normal = "Training_Normal_Videos_Anomaly/Normal_Videos001_x264.mp4"
    write_lines(tmp_path / "Anomaly_Train.txt", "Abuse/Abuse001_x264.mp4 ", normal)
    normal = "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264.mp4  "
    test = ("Abuse/Abuse028_x264.mp4", "Arson/Arson010_x264.mp4", normal)
    write_lines(tmp_path / "Anomaly_Test.txt", *test, line_end="\r\n")
    abuse = "Abuse028_x264.mp4  Abuse  165  240  -1  -1  "
    arson = "Arson010_x264.mp4\tArson  1  20  31 40"
    normal = "Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1"
    write_lines(tmp_path / ANNOTATIONS, abuse, arson, normal, line_end="\r\n")
    return tmp_path


def test_ucf_crime(ucf_crime):
    """The release labels by line number; here a normal video may stand anywhere."""
    data = load_surveillance("ucf_crime")
    assert [v.split for v in data.videos] == ["train"] * 2 + ["test"] * 3
    assert facts(data.videos) == [
        ("Abuse001_x264", 1, "Abuse", ()), ("Normal_Videos001_x264", 0, "Normal", ()),
        ("Abuse028_x264", 1, "Abuse", ((164, 240),)),
        ("Arson010_x264", 1, "Arson", ((0, 20), (30, 40))),
        ("Normal_Videos_003_x264", 0, "Normal", ()),
    ]  # fmt: skip
    assert data.train[0].path == ucf_crime / "Videos" / "Abuse" / "Abuse001_x264.mp4"
    assert len(data.missing) == 5 and data.report == []


def test_ucf_crime_variants_of_the_archive(ucf_crime):
    """The lists in their folder, the annotations by their second name, videos in numbered parts."""
    before = load_surveillance("ucf_crime")
    split = ucf_crime / "UCF_Crimes-Train-Test-Split" / "Anomaly_Detection_splits"
    text = ucf_crime / "Temporal_Anomaly_Annotation_For_Testing_Videos" / "Txt_formate"
    for folder in (split, text):
        folder.mkdir(parents=True)
    for name in ("Anomaly_Train.txt", "Anomaly_Test.txt"):
        (ucf_crime / name).rename(split / name)
    (ucf_crime / ANNOTATIONS).rename(text / "Temporal_Anomaly_Annotation.txt")
    assert load_surveillance("ucf_crime").videos == before.videos
    deep = ucf_crime / "Anomaly-Videos-Part-1" / "Abuse" / "Abuse001_x264.mp4"
    copies = [ucf_crime / folder / deep.name for folder in ("A", "Zoo")]
    for path in (*copies, deep, deep.with_name(f"._{deep.name}")):
        write_lines(path)
    assert load_surveillance("ucf_crime").train[0].path == deep, "the one in its category's folder"
    deep.unlink()
    assert load_surveillance("ucf_crime").train[0].path == copies[0]
    write_lines(split / "Anomaly_Train.txt", "")
    refused("ucf_crime", "Anomaly_Train.txt is empty")


def test_an_anomalous_test_video_without_an_anomalous_frame_is_named(ucf_crime, caplog):
    text = (ucf_crime / ANNOTATIONS).read_text().replace("1  20  31 40", "-1  -1  -1  -1")
    (ucf_crime / ANNOTATIONS).write_text(text)
    assert load_surveillance("ucf_crime").test[1].label == 1
    assert "1 anomalous test videos have no anomalous frame in their annotation" in caplog.text


@pytest.mark.parametrize("line, match", [
    ("Abuse028_x264.mp4 Abuse 165 240 -1", r"line 2.*'Abuse028_x264.mp4 Abuse 165 240 -1'"),
    ("Abuse028_x264.mp4 Abuse 165 x -1 -1", "line 2"),
    ("Abuse028_x264.mp4 Abuse 240 165 -1 -1", "line 2"),
    ("Abuse028_x264.mp4 Abuse 0 165 -1 -1", "line 2"),
    ("Arson010_x264.mp4 Arson 1 20 -1 -1\nArson010_x264.mp4 Arson 1 20 -1 -1", "line 3.*once"),
    ("Normal_Videos_003_x264.mp4 Normal -1 -1 -1 -1", "Abuse028_x264.mp4 has no line.*Arson010"),
    ("Arson010_x264.mp4 Arson 1 2 -1 -1\nNormal_Videos_003_x264.mp4 Normal 5 9 -1 -1",
     "is normal, but has an event"),
])  # fmt: skip
def test_ucf_crime_broken_annotations(ucf_crime, line, match):
    first = "Abuse028_x264.mp4 Abuse 1 2 -1 -1" if "Arson" in line else ""
    write_lines(ucf_crime / ANNOTATIONS, first, line)
    refused("ucf_crime", match)


def test_ucf_crime_reports_and_errors(ucf_crime, caplog):
    with (ucf_crime / ANNOTATIONS).open("a") as file:
        file.write("Abuse099_x264.mp4 Abuse 1 2 -1 -1\n")
    assert "Abuse099_x264" in load_surveillance("ucf_crime").report[0]
    assert "Abuse099_x264" in caplog.text
    files = ("Abuse/cam_x264.mp4", "Arson/cam_x264.mp4", "Arson/other_x264.mp4")
    train = write_lines(ucf_crime / "Anomaly_Train.txt", *files)
    data = load_surveillance("ucf_crime")
    names = ["Videos__Abuse__cam_x264", "Videos__Arson__cam_x264", "other_x264"]
    assert [v.name for v in data.train] == names, "equal names get the folder in front"
    (note,) = data.notes
    assert note.startswith("2 videos share their file's name") and f"{names[0]} (cam_x264)" in note
    assert note in caplog.text
    write_lines(train, "Abuse001_x264.mp4")
    refused("ucf_crime", "line 1.*<Category>")
    write_lines(train, *["Abuse/Abuse001_x264.mp4"] * 2)
    refused("ucf_crime", "more than once in .*Anomaly_Train.txt.*Abuse/Abuse001_x264.mp4")
    train.unlink()
    refused("ucf_crime", "Anomaly_Train.txt not found")


ANOMALOUS = "Bad.Boys.1995__#01-33-51_01-34-37_label_B2-0-0"
FRENCH = "Amélie = été 2. Teil__#00-01-02_00-02-03_label_G-B1-0"
CALM = "v=8cTqh9tMz_I__#1_label_A"
XD_FOLDERS = [("train", "test"), ("1-1004", "videos"), ("train/deep", "test/deeper/still")]


@pytest.fixture(params=XD_FOLDERS)
def xd_violence(request, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "XD_VIOLENCE_ROOT", tmp_path)
    train, test = request.param
    for name in (f"{train}/A.Film__#1_label_B1-B6-0", f"{train}/Other__#1_label_A"):
        write_lines(tmp_path / f"{name}.mp4")
    for name in (ANOMALOUS, FRENCH, CALM):
        write_lines(tmp_path / test / f"{name}.mp4")
    lines = (f"{ANOMALOUS} 420 1848", f"{FRENCH} 0 10 20 30 ", "")
    write_lines(tmp_path / "annotations.txt", *lines, line_end="\r\n")
    return tmp_path


def test_xd_violence(xd_violence):
    data = load_surveillance("xd_violence")
    fight = ("A.Film__#1_label_B1-B6-0", 1, "Fighting", ())
    assert facts(data.train) == [fight, ("Other__#1_label_A", 0, "Normal", ())]
    found = [(FRENCH, 1, "Explosion", ((0, 10), (20, 30))), (CALM, 0, "Normal", ())]
    assert sorted(facts(data.test)) == sorted([(ANOMALOUS, 1, "Shooting", ((420, 1848),)), *found])
    assert data.missing == [] and data.report == []
    # names match whichever way their accents are stored
    lines = [f"{ANOMALOUS} 420 1848", f"{unicodedata.normalize('NFD', FRENCH)} 0 10"]
    write_lines(xd_violence / "annotations.txt", *lines)
    assert {v.name: v.events for v in load_surveillance("xd_violence").test}[FRENCH] == ((0, 10),)


def test_xd_violence_parts_that_are_links_are_read_once(xd_violence, caplog):
    """Two ways may lead to one part; a link to the whole would go round for ever."""
    other = xd_violence.parent / "other_disk"
    write_lines(other / "v=1__#1_label_A.mp4")
    (xd_violence / "train").mkdir(exist_ok=True)
    (xd_violence / "train" / "1-1004").symlink_to(other)
    (xd_violence / "1005-2004").symlink_to(other)
    (xd_violence / "train" / "all").symlink_to(xd_violence / "train")
    write_lines(other / "v=2__#1_label_A.zip")
    names = sorted(video.name for video in load_surveillance("xd_violence").train)
    assert "1 files are no videos by their names and left out: v=2__#1_label_A.zip" in caplog.text
    assert names == ["A.Film__#1_label_B1-B6-0", "Other__#1_label_A", "v=1__#1_label_A"]


@pytest.mark.parametrize("lines, match", [
    ([f"{ANOMALOUS} 420"], "line 1"),
    ([f"{ANOMALOUS} 420 1848", f"{FRENCH} 20 10"], f"line 2.*{FRENCH[:6]}"),
    ([f"{ANOMALOUS} 420 1848", f"{ANOMALOUS} 420 1848"], "line 2"), (["no_label 1 2"], "line 1"),
    ([f"{ANOMALOUS} 420 1848"], "anomalous by its name, but has no event"),
    ([f"{ANOMALOUS} 420 1848", f"{FRENCH} 1 2", f"{CALM} 1 2"], "normal by its name, but has"),
])  # fmt: skip
def test_xd_violence_broken_annotations(xd_violence, lines, match):
    write_lines(xd_violence / "annotations.txt", *lines)
    refused("xd_violence", match)


def test_xd_violence_reports_what_is_absent(xd_violence, caplog):
    write_lines(xd_violence / "train" / "holiday.mp4")
    refused("xd_violence", "_label_A.*holiday.mp4")
    (xd_violence / "train" / "holiday.mp4").unlink()
    (gone,) = xd_violence.rglob(f"{ANOMALOUS}.mp4")
    gone.rename(gone.with_name(f"._{gone.name}"))
    (line,) = load_surveillance("xd_violence").report
    assert line.startswith("1 annotated test videos are missing: ") and f"{ANOMALOUS}.mp4" in line
    assert line in caplog.text
    for path in xd_violence.rglob("*.mp4"):
        path.unlink()
    refused("xd_violence", "no XD-Violence videos")


@pytest.fixture
def shanghaitech(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "SHANGHAITECH_ROOT", tmp_path)
    masks = {"01_0014": [0, 0, 1, 1, 0, 1], "01_0015": [0, 0, 0], "02_0001": [1, 1]}
    for name, mask in masks.items():
        write_lines(tmp_path / "testing" / "frames" / name / "000.jpg")
        path = write_lines(tmp_path / "testing" / "test_frame_mask" / f"{name}.npy")
        np.save(path, np.array(mask, np.uint8 if name < "02" else bool))
    for name in ("01_001", "01_002"):
        write_lines(tmp_path / "training" / "videos" / f"{name}.avi")
    write_lines(tmp_path / "SH_Train.txt", "01_001,0", "02_0001 1", "", line_end="\r\n")
    write_lines(tmp_path / "SH_Test.txt", "01_002.avi", "01_0014,12,1", "01_0015")
    return tmp_path


def test_shanghaitech(shanghaitech):
    """The release labels by line number and halves masks in time; here whole masks decide."""
    data = load_surveillance("shanghaitech")
    assert [(v.name, v.label, v.split, v.events) for v in data.videos] == [
        ("01_001", 0, "train", ()), ("02_0001", 1, "train", ()), ("01_002", 0, "test", ()),
        ("01_0014", 1, "test", ((2, 4), (5, 6))), ("01_0015", 0, "test", ()),
    ]  # fmt: skip
    assert data.missing == [] and data.report == []
    np.testing.assert_array_equal(frame_labels(data.test[1], 6), [0, 0, 1, 1, 0, 1])
    write_lines(shanghaitech / "SH_Test.txt", "01_002", "camera one")
    refused("shanghaitech", r"SH_Test.txt, line 2.*'camera one'")


def test_shanghaitech_training_frames_that_are_extracted_already(shanghaitech):
    training = shanghaitech / "training"
    (training / "videos" / "01_001.avi").rename(training / "videos" / "01_001.mp4")
    (training / "videos" / "01_002.avi").unlink()
    frames = write_lines(training / "frames" / "01_002" / "000.jpg").parent
    write_lines(shanghaitech / "testing" / "test_frame_mask" / "._01_0014.npy")
    data = load_surveillance("shanghaitech")
    assert data.train[0].path == training / "videos" / "01_001.mp4"
    assert data.test[0].path == frames and data.missing == data.report == []
    inner = shanghaitech / "shanghaitech"  # as the archive unpacks
    inner.mkdir()
    for name in ("training", "testing"):
        (shanghaitech / name).rename(inner / name)
    again = load_surveillance("shanghaitech")
    assert facts(again.videos) == facts(data.videos) and again.missing == []


def test_who_needs_no_annotation_goes_on_without_it(shanghaitech):
    masks = shanghaitech / "testing" / "test_frame_mask"
    for name in ("01_0014", "02_0001"):
        (masks / f"{name}.npy").write_bytes(b"no array")
    refused("shanghaitech", "2 annotations of .*02_0001.npy.*01_0014.npy")
    data = list_surveillance("shanghaitech")
    assert data.problems.keys() == {"01_0014", "02_0001"} and len(data.videos) == 5


def test_shanghaitech_masks_missing_broken_or_unlisted(shanghaitech):
    masks = shanghaitech / "testing" / "test_frame_mask"
    np.save(masks / "05_0001.npy", np.zeros(3, np.uint8))
    assert "05_0001" in load_surveillance("shanghaitech").report[0]
    wrong = (np.zeros((2, 2), np.uint8), np.array([0, 2]), np.zeros(0, np.uint8))
    for broken in (*wrong, np.array([{}], object)):
        np.save(masks / "01_0014.npy", broken)
        refused("shanghaitech", "01_0014.npy")
    with open(masks / "01_0014.npy", "wb") as file:
        np.savez(file, mask=np.zeros(6))
    refused("shanghaitech", "01_0014.npy: an archive")
    for name in ("01_0014", "01_0015"):
        (masks / f"{name}.npy").unlink()
    missing = r"2 annotations of shanghaitech.*01_0014.npy: its mask is missing.*01_0015.npy"
    refused("shanghaitech", missing)
    (shanghaitech / "testing/frames").rename(shanghaitech / "elsewhere")
    refused("shanghaitech", missing)


def test_a_mask_may_be_a_feature_too_long(caplog):
    video = SurveillanceVideo("v", None, "test", 0, "Normal", (), 140)
    assert frame_labels(video, 108).tolist() == [0] * 108
    assert "v: 108 frames, 140 values in its mask" in caplog.text
    with pytest.raises(UserError, match="v: a mask of 140 values, a video of 107 frames"):
        frame_labels(video, 107)


def test_own_videos(tmp_path):
    lines = ("video,label", "a/day.1.mp4,0", "b/day.1.mp4,Anomalous", "frames/cam 3,normal")
    write_lines(tmp_path / "train.csv", *lines, line_end="\r\n")
    lines = ("\ufeffvideo, label, anomalies, category", '"é,1.avi",1,0-5; 7-9,Fall', "z.mkv,0,,")
    write_lines(tmp_path / "test.csv", *lines)
    data = load_surveillance(str(tmp_path))
    assert facts(data.videos) == [
        ("a__day.1", 0, "Normal", ()), ("b__day.1", 1, "Anomaly", ()), ("cam 3", 0, "Normal", ()),
        ("é,1", 1, "Fall", ((0, 5), (7, 9))), ("z", 0, "Normal", ()),
    ]  # fmt: skip
    assert data.test[0].path == tmp_path / "é,1.avi" and data.name == tmp_path.name
    overlapping = SurveillanceVideo("v", None, "test", 1, "Abuse", ((1, 3), (2, 4)))
    assert frame_labels(overlapping, 5).tolist() == [0, 1, 1, 1, 0]


SPREADSHEETS = {
    "semicolons": ("\r\n", [
        "video;label;anomalies;;", r'cam 1\Ü.mp4;1;"0-5;7-9";;', "b.mp4;normal", ";;;",
    ]),
    "no quotes": ("\r\n", ["sep=;", "Video;Label;Anomalies", "cam 1/Ü.mp4;1;0-5;7-9", "b.mp4;0;"]),
    "tabs": ("\r", [
        "video\tlabel\tanomalies", "C:\\x\\CAM 1\\U\u0308.mp4\t1.0\t0-5;7-9", "b.MP4\t0",
    ]),
    "quotes": ("\n", [
        '"video","label","anomalies"', '"cam 1/Ü.mp4","1","0-5;7-9"', '"b.mp4","0",""', "", ",,",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("form", SPREADSHEETS)
def test_lists_as_spreadsheets_save_them(tmp_path, form, encoding):
    for name in ("cam 1/Ü.mp4", "b.mp4"):
        write_lines(tmp_path / name)
    line_end, lines = SPREADSHEETS[form]
    text = "".join(line + line_end for line in lines)
    text = unicodedata.normalize("NFC", text) if encoding == "cp1252" else text
    (tmp_path / "test.csv").write_bytes(text.encode(encoding))
    data = load_surveillance(str(tmp_path))
    found = [("Ü", 1, "Anomaly", ((0, 5), (7, 9))), ("b", 0, "Normal", ())]
    assert facts(data.videos) == found and data.missing == []


@pytest.mark.parametrize("header, lines, match", [
    ("name,label", ["a.mp4,0"], "line 1.*header"), ("", [], "line 1"),
    ("video,label", ["a.mp4,0", "b.mp4,maybe"], r"line 3.*'b.mp4,maybe'"),
    ("video,label", [], "no video is listed"), ("video,label", ["a.mp4"], "line 2"),
    ("video,label", [",1"], "line 2.*empty"),
    ("video,label", ["a.mp4,0,1-2"], "line 2"),
    ("video,label", ["a.mp4,0", "a.mp4,1"], "more than once"),
    ("video,label,anomalies", ["a.mp4,1,5-2"], "line 2"),
    ("video,label,anomalies", ["a.mp4,1,5"], "line 2"),
    ("video,label,anomalies", ["a.mp4,0,1-5"], "line 2.*normal video"),
])  # fmt: skip
def test_own_videos_broken_lists(tmp_path, header, lines, match):
    refused("ucf-crime", "ucf_crime, xd_violence, shanghaitech")
    refused(tmp_path, "neither train.csv nor test.csv")
    write_lines(tmp_path / "test.csv", header, *lines)
    refused(tmp_path, match)
