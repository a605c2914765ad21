"""Any other data set: a folder of videos with train.csv and test.csv.

    video,label,anomalies
    cam1/monday.mp4,normal,
    cam1/tuesday.mp4,anomalous,120-180;300-420

`video` is relative to the folder (a file, or a folder of frames); `label` is 0 or normal, 1 or
anomalous; `anomalies`, optional, are stretches of frames, 0-based, end exclusive. A column
`category`, optional, names the kind of anomaly.
"""

import csv
import io
from pathlib import Path

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, some_of
from aux_code.errors import UserError

_LABELS = {"0": 0, "normal": 0, "1": 1, "anomalous": 1, "anomaly": 1, "abnormal": 1}
_COLUMNS = {"video", "label", "anomalies", "category"}


def load(root: Path) -> st.SurveillanceDataset:
    """Reads train.csv and test.csv; one of them will do, for users who only score or only train."""
    lists = [path for name in ("train", "test") if (path := root / f"{name}.csv").is_file()]
    if not lists:
        remedy = "write them with the header video,label,anomalies"
        raise UserError(f"{root} holds neither train.csv nor test.csv; {remedy}")
    videos = [video for path in lists for video in _read_csv(path, path.stem)]
    without = [v.name for v in videos if v.split == "test" and v.label and not v.events]
    report = some_of("anomalous test videos without anomalies", without)
    return st.assemble(root.resolve().name, root, videos, report, lists)


def _read_csv(path: Path, split: str) -> list[st.SurveillanceVideo]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "save it as comma-separated UTF-8 text"
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = {(name or "").strip() for name in reader.fieldnames or []}
    if not {"video", "label"} <= header <= _COLUMNS:
        found = ",".join(reader.fieldnames or [])
        raise broken_line(path, 1, found, "the header video,label[,anomalies][,category]")
    reader.fieldnames = [name.strip() for name in reader.fieldnames]
    videos = []
    for row in reader:
        try:
            videos.append(_video(row, path.parent, split))
        except (ValueError, AttributeError) as error:
            text, expected = ",".join(map(str, row.values())), f"video,label[,anomalies] ({error})"
            raise broken_line(path, reader.line_num, text, expected) from error
    return videos


def _video(row: dict[str, str], root: Path, split: str) -> st.SurveillanceVideo:
    if None in row:
        raise ValueError("more fields than the header has")
    file, label = row["video"].strip(), _LABELS.get(row["label"].strip().lower())
    if not file:
        raise ValueError("the video's name is empty")
    if label is None:
        raise ValueError("label is 0, 1, normal or anomalous")
    events = _events((row.get("anomalies") or "").strip())
    if events and not label:
        raise ValueError("a normal video has no anomalies")
    category = ((row.get("category") or "").strip() or st.ANOMALY) if label else st.NORMAL
    return st.SurveillanceVideo(st.video_stem(file), root / file, split, label, category, events)


def _events(text: str) -> st.Events:
    """ "start-end;start-end" -> ((start, end), ...)."""
    events = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        start, end = map(int, part.split("-"))
        if not 0 <= start < end:
            raise ValueError(f"anomaly {part}: start must come before end")
        events.append((start, end))
    return tuple(events)
