"""Are the data sets complete? `python -m aux_code.datasets.check [NAME ...] [--decode]`

Compares what lies on disk with the official counts (with those of its own marker in a rendered miniature), names the
first missing paths, reports annotations that do not match, and with --decode files that do not decode.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from aux_code import config
from aux_code.checkpoints import read_json
from aux_code.datasets import shanghaitech, ucf101, ucf_crime, vispr, xd_violence
from aux_code.datasets.decode import UnreadableMedia, read_image
from aux_code.datasets.image_files import IMAGE_SUFFIXES, frame_files
from aux_code.datasets.lists import require_root
from aux_code.datasets.surveillance import SurveillanceVideo, load_surveillance
from aux_code.datasets.video_index import decoded_frames, open_video
from aux_code.errors import UserError
from aux_code.progress import progress
from aux_code.runs import run_script

EXIT_INCOMPLETE = 3
_MINIATURE_MARKER = "miniature.json"
_N_NAMED = 5


@dataclass
class Findings:
    """What was found of one data set. `media`: its files and folders of frames; `videos`: those that have events."""

    name: str
    root: Path
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    media: list[Path] = field(default_factory=list)
    videos: list[SurveillanceVideo] = field(default_factory=list)

    def missing(self, paths: Iterable[Path]) -> None:
        """Takes the media that are there, and notes those that are not."""
        paths = list(paths)
        self.media += [path for path in paths if path.exists()]
        self.name_some("files are missing", [path for path in paths if not path.exists()])

    def name_some(self, what: str, things: Iterable[object]) -> None:
        """One problem for many things of one kind: their number and the first of them."""
        things = list(map(str, things))
        if things:
            more = ["..."] if len(things) > _N_NAMED else []
            self.problems.append("\n    ".join([f"{len(things)} {what}:", *things[:_N_NAMED], *more]))

    def expect(self, official: dict[str, int]) -> None:
        """Compares the counts with the official ones, or with the marker's where the data are a miniature."""
        marker = self.root / _MINIATURE_MARKER
        if marker.exists():
            counts = read_json(marker)["counts"]
            official = {split: counts.get(split, counts.get(f"{split}2017", 0)) for split in official}
        for split, expected in official.items():
            if self.counts.get(split) != expected:
                self.problems.append(f"{split}: {self.counts.get(split, 0):,} found, {expected:,} expected")


def check_ucf101() -> Findings:
    """Split 1: 9,537 + 3,783 clips."""
    findings = Findings("ucf101", require_root(config.UCF101_ROOT, "UCF101_ROOT"))
    for split, train in (("train", True), ("test", False)):
        paths = [item.path for item in ucf101.read_split(findings.root, 1, train)[1]]
        findings.missing(paths)
        findings.counts[split] = sum(path.exists() for path in paths)
    findings.expect({"train": ucf101.OFFICIAL_COUNTS[1, True], "test": ucf101.OFFICIAL_COUNTS[1, False]})
    return findings


def check_vispr() -> Findings:
    """10,000 + 8,000 images with annotations."""
    findings = Findings("vispr", require_root(config.VISPR_ROOT, "VISPR_ROOT"))
    for split in vispr.OFFICIAL_COUNTS:
        try:
            findings.media += vispr.Vispr(findings.root, split, load_labels=False).paths
            labelled = vispr.Vispr(findings.root, split)
        except UserError as error:
            findings.problems.append(str(error))
            continue
        findings.counts[split] = len(labelled)
        findings.problems += [f"{split}: {line}" for line in labelled.report]
    findings.expect(vispr.OFFICIAL_COUNTS)
    return findings


def check_surveillance(name: str, official: tuple[int, int] | None) -> Findings:
    """Lists, labels and files of a surveillance data set, official counts where there are some."""
    data = load_surveillance(name)
    findings = Findings(data.name, data.root, problems=list(data.report), videos=data.test)
    findings.missing(video.path for video in data.videos)
    for split, videos in (("train", data.train), ("test", data.test)):
        findings.counts[split] = sum(video.path.exists() for video in videos)
    if official:
        findings.expect(dict(zip(("train", "test"), official, strict=True)))
    return findings


def check_shanghaitech() -> Findings:
    """As the others, and one mask value per frame."""
    findings = check_surveillance("shanghaitech", shanghaitech.OFFICIAL_COUNTS)
    folder = findings.root / "testing" / "test_frame_mask"
    wrong = []
    for path in findings.media:
        if path.is_dir():
            n_values, n_frames = len(shanghaitech.read_mask(folder / f"{path.name}.npy")), len(frame_files(path))
            if n_values != n_frames:
                wrong.append(f"{path}: {n_frames} frames, {n_values} values in its mask")
    findings.name_some("masks do not fit their videos", wrong)
    return findings


CHECKS: dict[str, Callable[[], Findings]] = {
    "ucf101": check_ucf101,
    "vispr": check_vispr,
    "ucf_crime": lambda: check_surveillance("ucf_crime", ucf_crime.OFFICIAL_COUNTS),
    "xd_violence": lambda: check_surveillance("xd_violence", xd_violence.OFFICIAL_COUNTS),
    "shanghaitech": check_shanghaitech,
}


def decode_all(findings: Findings, n_workers: int) -> None:
    """Decodes every medium of a data set, in parallel, and notes what fails and events past the last frame."""
    n_frames: dict[Path, int] = {}
    unreadable = []
    with ThreadPoolExecutor(n_workers) as pool:
        results = pool.map(_decode, findings.media)
        for path, (n, problem) in zip(
            findings.media, progress(results, f"decode {findings.name}", len(findings.media)), strict=True
        ):
            n_frames[path] = n
            if problem:
                unreadable.append(f"{path}: {problem}")
    findings.name_some("files do not decode, or not wholly", unreadable)
    late = [
        f"{video.path}: {n_frames[video.path]} frames, event {start}-{end}"
        for video in findings.videos
        for start, end in video.events
        if end > n_frames.get(video.path, end)
    ]
    findings.name_some("events end past the last frame and are clipped", late)


def _decode(path: Path) -> tuple[int, str]:
    """(number of frames, problem or "")."""
    try:
        if path.is_dir():
            return sum(1 for _ in map(read_image, frame_files(path))), ""
        if path.suffix.lower() in IMAGE_SUFFIXES:
            read_image(path)
            return 1, ""
        problems: list[str] = []
        with open_video(path) as container:
            n_frames = sum(1 for _ in decoded_frames(container, path, problems))
        return n_frames, "; ".join(problems) if n_frames else "no frame decodes"
    except UnreadableMedia as error:
        return 0, error.reason


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _report(findings: Findings) -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in findings.counts.items())
    _say(f"{findings.name}: {findings.root}: {counts or 'nothing found'}")
    for problem in findings.problems:
        _say(f"  - {problem}")
    _say("  complete" if not findings.problems else "  not complete: unpack, replace or correct what is named above")


def check(name: str, decode: bool, n_workers: int) -> bool:
    """Checks one data set and writes its report to standard output; whether it is complete."""
    try:
        findings = CHECKS[name]() if name in CHECKS else check_surveillance(name, None)
    except UserError as error:
        _say(f"{name}:\n  - {error}\n  not complete")
        return False
    if decode:
        decode_all(findings, n_workers)
    _report(findings)
    return not findings.problems


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 0 if all is complete, 3 if not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m aux_code.datasets.check", description=__doc__.splitlines()[0])
    names = ", ".join(CHECKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{names}, or a folder with train.csv, test.csv")
    parser.add_argument("--decode", action="store_true", help="decode every file: takes as long as reading them all")
    parser.add_argument("--workers", type=int, default=4, help="files decoded at a time")
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
