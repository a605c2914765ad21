"""Any other data set: a folder of videos with train.csv and test.csv.

    video,label,anomalies
    cam1/monday.mp4,normal,
    cam1/tuesday.mp4,anomalous,120-180;300-420

`video` is relative to the folder (a file, or a folder of frames); `label` is 0 or normal, 1 or
anomalous; `anomalies`, optional, are stretches of frames, 0-based, end exclusive. A column
`category`, optional, names the kind of anomaly. Spreadsheets may save it: with semicolons or tabs,
quotes, empty columns at the end and lines of nothing else.
"""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from aux_code.datasets import surveillance_types as st
from aux_code.datasets.lists import broken_line, read_text, refuse_all
from aux_code.datasets.media_files import ListedFiles
from aux_code.errors import UserError

_LABELS = {"0": 0, "normal": 0, "1": 1, "anomalous": 1, "anomaly": 1, "abnormal": 1}
_COLUMNS = {"video", "label", "anomalies", "category"}
_EXPECTED = "video,label[,anomalies]"


def load(root: Path) -> st.SurveillanceDataset:
    """Reads train.csv and test.csv; one of them will do, for users who only score or only train."""
    lists = [path for name in ("train", "test") if (path := root / f"{name}.csv").is_file()]
    if not lists:
        remedy = "write them with the header video,label,anomalies"
        raise UserError(f"{root} holds neither train.csv nor test.csv; {remedy}")
    videos = [video for path in lists for video in _read_csv(path, path.stem)]
    return st.assemble(root.resolve().name, root, videos, [], lists)


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(names of the columns, line number and fields of each row), without what is empty."""
    text = re.sub(r"\Asep=.(?=\r?\n)", "", read_text(path), flags=re.IGNORECASE)
    first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0].strip()
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        numbered = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}: no table ({error}); save it as comma-separated text") from error
    for _, fields in numbered:
        while fields and not fields[-1]:
            fields.pop()
    rows = [(number, fields) for number, fields in numbered if fields]
    columns = [name.lower() for name in rows[0][1]] if rows else []
    if not {"video", "label"} <= set(columns) <= _COLUMNS or len(set(columns)) < len(columns):
        raise broken_line(path, 1, first, "the header video,label[,anomalies][,category]")
    if not rows[1:]:
        raise UserError(f"{path}: no video is listed; write a line for each or remove the file")
    return columns, rows[1:]


def _read_csv(path: Path, split: str) -> list[st.SurveillanceVideo]:
    (columns, rows), files = _rows(path), ListedFiles(path.parent)
    videos, broken = [], []
    for number, fields in rows:
        text, n_columns = ",".join(fields), len(columns)
        if columns[-1] == "anomalies" and len(fields) > n_columns:  # they hold semicolons, too
            fields = [*fields[: n_columns - 1], ";".join(fields[n_columns - 1 :])]
        row = dict(zip(columns, [*fields, *[""] * n_columns]))
        problem = "more fields than the header has" * (len(fields) > n_columns)
        problem = problem or "the video's name is empty" * (not row["video"])
        if problem:
            broken.append(broken_line(path, number, text, f"{_EXPECTED} ({problem})"))
            continue
        file = files.expected(row["video"])
        # as listed, not as the disk spells it: features may be elsewhere
        name = file.name if file.name in text else PureWindowsPath(row["video"]).name
        video = st.SurveillanceVideo(st.video_stem(name), file, split, 0, st.NORMAL)
        try:
            videos.append(replace(video, **_annotation(row)))
        except ValueError as error:
            line = broken_line(path, number, text, f"{_EXPECTED} ({error})")
            videos.append(replace(video, problem=str(line)))
    refuse_all("lines cannot be understood", broken, "correct them")
    return videos


def _annotation(row: dict[str, str]) -> dict[str, Any]:
    """Label, category and events of a row; a ValueError says what is wrong."""
    label = _LABELS.get(row["label"].lower().removesuffix(".0"))
    if label is None:
        raise ValueError("label is 0, 1, normal or anomalous")
    events = _events(row.get("anomalies", ""))
    if events and not label:
        raise ValueError("a normal video has no anomalies")
    category = (row.get("category") or st.ANOMALY) if label else st.NORMAL
    return {"label": label, "category": category, "events": events}


def _events(text: str) -> st.Events:
    """ "start-end;start-end" -> ((start, end), ...)."""
    events = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        start, end = map(int, part.split("-"))
        if not 0 <= start < end:
            raise ValueError(f"anomaly {part}: start must come before end")
        events.append((start, end))
    return tuple(events)
