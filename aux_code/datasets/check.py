"""Are the data sets complete? `python -m aux_code.datasets.check [NAME ...] [--decode]`

Compares what lies on disk with the official counts (of a rendered miniature: with its own), names
the first missing paths, annotations that do not match, and with --decode files that do not decode.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.datasets import shanghaitech, ucf101, ucf_crime, vispr, xd_violence
from aux_code.datasets.decode import UnreadableMedia, iterate_frames, read_image
from aux_code.datasets.lists import require_root, some_and_file
from aux_code.datasets.media_files import IMAGE_SUFFIXES, files_of
from aux_code.datasets.surveillance import SurveillanceVideo, read_surveillance
from aux_code.datasets.surveillance_types import misfit, past_the_end
from aux_code.datasets.video_stream import Decoding, open_video
from aux_code.errors import UserError
from aux_code.progress import progress
from aux_code.runs import run_script

EXIT_INCOMPLETE = 3
_MINIATURE_MARKER = "miniature.json"
_WHAT_TO_DO = "unpack, download again or correct what is named above, and check again"


@dataclass
class Findings:
    """What was found of one data set.

    Attributes:
        official: split -> number of videos or images of the whole; empty for own videos.
        counts: split -> how many are there; a split that could not be counted is absent.
        problems: what makes it incomplete; `notes`: what is only worth knowing.
        media: its files and folders of frames; `videos`: those that have events.
    """

    name: str
    root: Path
    official: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    media: list[Path] = field(default_factory=list)
    videos: list[SurveillanceVideo] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A rendered miniature is compared with the counts of its own marker."""
        marker = self.root / _MINIATURE_MARKER
        if self.official and marker.exists():
            found = read_json(marker)["counts"]
            self.official = {s: found.get(s, found.get(f"{s}2017", 0)) for s in self.official}

    def take(self, split: str, paths: Iterable[Path]) -> None:
        """Counts the media of a split that are there, and notes those that are not."""
        exists = {path: path.exists() for path in paths}
        self.media += (path for path in exists if exists[path])
        self.counts[split] = sum(exists.values())
        self.name_some(f"{split} files are missing", [path for path in exists if not exists[path]])

    def name_some(self, what: str, things: Iterable[object]) -> None:
        """One problem for many things of one kind: their number, the first, a file with all."""
        self.problems += some_and_file(what, list(things), "\n    ")

    @property
    def is_complete(self) -> bool:
        """Nothing is missing or wrong, and every split has its official number."""
        return not self.problems and all(
            self.counts.get(split) == n for split, n in self.official.items()
        )


def check_ucf101(findings: Findings) -> None:
    """Split 1: 9,537 + 3,783 clips."""
    root = require_root(findings.root, "UCF101_ROOT")
    for split, train in (("train", True), ("test", False)):
        try:
            findings.take(split, [item.path for item in ucf101.read_split(root, 1, train)[1]])
        except UserError as error:
            if str(error) not in findings.problems:
                findings.problems.append(str(error))


def check_vispr(findings: Findings) -> None:
    """10,000 + 8,000 images with annotations; val2017 need not be there."""
    root = require_root(findings.root, "VISPR_ROOT")
    own_validation = vispr.has_validation(root)
    for split in [*findings.official, *["val"] * own_validation]:
        findings.counts[split] = 0
        try:
            images = vispr.Vispr(root, split, load_labels=False, hold_out=False).paths
            findings.media += images
            findings.counts[split] = len(images)
            labelled = vispr.Vispr(root, split, hold_out=False)
            findings.counts[split] = len(labelled)
            findings.problems += [f"{split}: {line}" for line in labelled.report]
        except UserError as error:
            findings.problems.append(str(error))
    tenth = "no labelled images in val2017: a tenth of train stands for it"
    findings.notes.append(f"val: {findings.counts['val']:,} found" if own_validation else tenth)


def check_surveillance(findings: Findings) -> None:
    """Lists, labels and files of a surveillance data set, annotations against folders of frames."""
    data = read_surveillance(findings.name, findings.root)
    findings.problems += data.report
    findings.notes += data.notes
    findings.name_some("annotations cannot be used", data.problems.values())
    findings.videos = data.test
    for split, videos in (("train", data.train), ("test", data.test)):
        findings.take(split, (video.path for video in videos))
    folders = [path for path in findings.media if path.is_dir()]
    n_frames = {path: len(files_of(path, suffixes=IMAGE_SUFFIXES)) for path in folders}
    findings.name_some("folders hold no images", [path for path, n in n_frames.items() if not n])
    compare_lengths(findings, n_frames)


def compare_lengths(findings: Findings, n_frames: dict[Path, int]) -> None:
    """Notes annotations that end a little past these videos' ends; more is a problem."""
    wrong, late = [], []
    for video in (video for video in findings.videos if n_frames.get(video.path)):
        if problem := misfit(video, n_frames[video.path]):
            wrong.append(problem)
        else:
            late += past_the_end(video, n_frames[video.path])
    findings.name_some("annotations do not fit their videos", wrong)
    what = "annotations end past the last frame and are clipped"
    findings.notes += some_and_file(what, late, "\n    ")


CHECKS: dict[str, tuple[Callable[[Findings], None], ModuleType]] = {
    "ucf101": (check_ucf101, ucf101), "vispr": (check_vispr, vispr),
    "ucf_crime": (check_surveillance, ucf_crime), "xd_violence": (check_surveillance, xd_violence),
    "shanghaitech": (check_surveillance, shanghaitech),
}  # fmt: skip
"""Name of a data set -> its check, the module with its OFFICIAL_COUNTS."""


def _nothing_found_yet(name: str) -> Findings:
    if name not in CHECKS:
        return Findings(name, Path(name))
    root = Path(getattr(config, f"{name.upper()}_ROOT"))
    official = dict(CHECKS[name][1].OFFICIAL_COUNTS)
    is_empty = not root.is_dir() or not any(root.iterdir())
    return Findings(name, root, official, counts=dict.fromkeys(official, 0) if is_empty else {})


def decode_all(findings: Findings, n_workers: int) -> None:
    """Decodes every medium of a data set, in parallel; notes what fails and events past the end."""
    pool = ThreadPoolExecutor(n_workers)
    try:
        results = pool.map(_decode, findings.media)
        results = progress(results, f"decode {findings.name}", len(findings.media))
        decoded = dict(zip(findings.media, results, strict=True))
    finally:
        # Ctrl-C would otherwise wait for every file that is still in line.
        pool.shutdown(cancel_futures=True)
    unreadable = [f"{path}: {problem}" for path, (_, problem) in decoded.items() if problem]
    findings.name_some("files do not decode, or not wholly", unreadable)
    compare_lengths(findings, {path: n for path, (n, _) in decoded.items() if not path.is_dir()})


def _decode(path: Path) -> tuple[int, str]:
    """(number of frames, problem or "")."""
    try:
        if path.is_dir():
            return sum(1 for _ in iterate_frames(path)), ""
        if path.suffix.lower() in IMAGE_SUFFIXES:
            read_image(path)
            return 1, ""
        return _decode_video(path)
    except UnreadableMedia as error:
        return 0, error.reason if error.path == path else f"{error.path.name}: {error.reason}"


def _decode_video(path: Path) -> tuple[int, str]:
    """(number of frames, problem or "") of a video file."""
    with open_video(path) as container:
        decoding = Decoding(container, path)
        n_frames = sum(1 for _ in decoding)
    return n_frames, "; ".join(decoding.problems) if n_frames else "no frame decodes"


def _report(findings: Findings) -> None:
    lines = [f"{findings.name}: {findings.root}"]
    for split in findings.official or findings.counts:
        found = f"{findings.counts[split]:,} found" if split in findings.counts else "not counted"
        expected = f", {findings.official[split]:,} expected" if findings.official else ""
        lines.append(f"  {split}: {found}{expected}")
    lines += [f"  - {problem}" for problem in findings.problems]
    lines += [f"  note: {note}" for note in findings.notes]
    constant = f"{findings.name.upper()}_ROOT in aux_code/config.py"
    place = f" ({constant} says where it lies)" if findings.official else ""
    whole = "complete" if findings.is_complete else f"not complete: {_WHAT_TO_DO}{place}"
    sys.stdout.write("\n".join([*lines, f"  {whole}\n"]))


def find(name: str) -> Findings:
    """What there is of a data set, a key of CHECKS or a folder of own videos; decodes nothing."""
    findings = _nothing_found_yet(name)
    try:
        CHECKS.get(name, (check_surveillance,))[0](findings)
    except UserError as error:
        findings.problems.append(str(error))
    return findings


def check(name: str, decode: bool, n_workers: int) -> bool:
    """Checks one data set and writes its report to standard output; whether it is complete."""
    findings = find(name)
    if decode:
        decode_all(findings, n_workers)
    _report(findings)
    return findings.is_complete


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 0 if all is complete, 3 if not, 2 for wrong usage."""
    names, program = ", ".join(CHECKS), "python -m aux_code.datasets.check"
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{names}, or a folder with train.csv, test.csv")
    add("--decode", action="store_true", help="decode every file: as long as reading them all")
    add("--workers", type=int, default=4, help="files decoded at a time")
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    for name in options.names:
        if name not in CHECKS and not Path(name).is_dir():
            parser.error(f"unknown data set {name!r}; choose from {names}, or give a folder")
    complete = [check(name, options.decode, options.workers) for name in options.names or CHECKS]
    return 0 if all(complete) else EXIT_INCOMPLETE


if __name__ == "__main__":
    run_script(main)
