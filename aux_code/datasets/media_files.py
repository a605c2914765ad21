"""Which files are videos or images, the one walk that finds them, and what is made of their names.

Data sets lie on several disks, come from Macs and NAS boxes, and their lists from Windows: links to
folders are followed, what systems leave behind is passed over, and a listed name is found however
slashes, accents and case are written.
"""

import logging
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path, PureWindowsPath

log = logging.getLogger(__name__)

_VIDEO_ENDINGS = (
    "mp4 avi mkv webm mov m4v mpg mpeg mpe wmv flv asf 3gp 3g2 ts mts m2ts m2t trp tp mod tod vob "
    "vro evo m1v m2v mp2v mpv ogv ogm rm rmvb ivr f4v qt mj2 psp ismv divx dav mxf gxf dv dif nut "
    "wtv dvr-ms ty amv nsv ivf ifv y4m h261 h263 h26l h264 264 avc h265 265 hevc h266 266 vvc evc "
    "apv obu vc1 rcv avs2 avs3 mjpeg mjpg mk3d kux viv gif apng fli flc roq xmv"
)
VIDEO_SUFFIXES = tuple(f".{ending}" for ending in _VIDEO_ENDINGS.split())
IMAGE_SUFFIXES = tuple(
    f".{ending}" for ending in "jpg jpeg jpe jfif png bmp webp tif tiff ppm pgm".split()
)
_OF_SYSTEMS = {
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db",
    "desktop.ini",
}  # fmt: skip
_MOST_KINDS, _LONGEST_NAME = 10, 200


def walk(*folders: Path, deep: bool = True) -> list[Path]:
    """The files in folders or, `deep`, below them, sorted, folder by folder; none of absent ones.

    Links are followed; a folder that several ways lead to is entered once, by one without links if
    there is one. Hidden files and what systems leave are passed over, a folder that cannot be read
    is named. A link to nothing counts as a file, so that whoever opens it says so.
    """
    found, entered = [], set()
    for top in folders:
        own, waiting, linked = [], deque([top]), deque()
        while waiting or linked:
            folder = (waiting or linked).popleft()
            real = os.path.realpath(folder)
            if real in entered:
                continue
            entered.add(real)
            for entry in _visible_entries(folder):
                if not _is_folder(entry):
                    own += [Path(entry.path)] if _is_file(entry) else []
                elif deep:
                    (linked if entry.is_symlink() else waiting).append(entry.path)
        found += sorted(own)
    return found


def _visible_entries(folder: Path | str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.name[0] != "." and e.name not in _OF_SYSTEMS]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("%s cannot be read (%s): left out", folder, error.strerror)
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry) -> bool:
    """No pipe or socket, which would make a reader wait for ever."""
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:
        return True


def files_of(*folders: Path, suffixes: Collection[str], deep: bool = False) -> list[Path]:
    """The files of `walk` that have one of these endings, in whatever case."""
    return [path for path in walk(*folders, deep=deep) if path.suffix.lower() in suffixes]


def media_below(folder: Path) -> list[Path]:
    """Videos and folders of images at any depth, in natural order; what is left out is named.

    A folder of nothing but images is one video; images beside a video are none of its frames (but
    for a GIF, which a picture may be).
    """
    videos, frames, others = [], {}, []
    for path in walk(folder):
        if (suffix := path.suffix.lower()) in VIDEO_SUFFIXES:
            videos.append(path)
        elif suffix in IMAGE_SUFFIXES:
            frames.setdefault(path.parent, []).append(path)
        else:
            others.append(path)
    beside = {path.parent for path in videos if path.suffix.lower() != ".gif"}
    for place in beside | {folder} if beside else ():
        others += frames.pop(place, [])
    name_left_out(folder, others)
    return sorted([*videos, *frames], key=lambda path: natural_key(str(path)))


def name_left_out(folder: Path, files: list[Path]) -> None:
    """Warns, once, of files below a folder that are no videos by their endings."""
    kinds: dict[str, list[str]] = {}
    for path in files:
        kinds.setdefault(path.suffix.lower(), []).append(path.name)
    most = sorted(kinds.values(), key=len)[::-1]
    parts = [f"{own[0]}{f' and {len(own) - 1} like it' * (len(own) > 1)}" for own in most]
    if len(parts) > _MOST_KINDS:
        parts = [*parts[:_MOST_KINDS], "..."]
    if files:
        what = f"{len(files)} files are no videos by their names and left out"
        _warn_once(f"{folder}: {what}: {', '.join(parts)}")


@cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key in which digits compare as numbers."""
    parts = filter(None, re.split(r"(\d+)", name))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def name_choices(path: Path, root: Path, stem: str) -> tuple[str, str, str]:
    """Names for what is made of a file: its stem; that with the folders below `root` (elsewhere,
    all) in front, `__` for slashes; that with its ending. Accents come out composed (NFC)."""
    full, top = os.path.abspath(path), os.path.join(os.path.abspath(root), "")
    folders = [] if path == root else full.removeprefix(top).strip("/").split("/")[:-1]
    below = "__".join([*folders, stem])
    return tuple(unicodedata.normalize("NFC", name) for name in (stem, below, below + path.suffix))


def unique_names(choices: Sequence[Sequence[str]]) -> list[str]:
    """Of each thing's possible names, as many for each, the first that no other thing could have in
    its place; else its last, numbered from the second thing on. Too long ones are passed over."""
    counts = [Counter(names) for names in zip(*choices, strict=True)]
    wanted = []
    for own in choices:
        short = [len(os.fsencode(os.path.basename(name))) <= _LONGEST_NAME for name in own]
        alone = (n for n, count, fits in zip(own, counts, short) if count[n] == 1 and fits)
        last = next((n for n, fits in zip(own[::-1], short[::-1]) if fits), own[0])
        wanted.append(next(alone, last))
    numbers, names = dict.fromkeys(wanted, 0), []
    for name in wanted:
        numbers[name] += 1
        own = name
        while numbers[name] > 1 and (own := f"{name}_{numbers[name]}") in numbers:
            numbers[name] += 1
        names.append(own)
    return names


class ListedFiles:
    """Finds what a list names below some folders, one after the other.

    Slashes may lean either way, accents be composed or not, letters be of another case. Of a path
    with a drive letter or a network share, and of any with `moved`, the longest end counts that is
    there. What a folder holds is read once.
    """

    def __init__(self, *folders: Path, moved: bool = False):
        self.folders, self.moved = folders, moved
        self._spellings: dict[str, dict[str, str]] = {}

    def find(self, listed: str) -> Path | None:
        """The file or folder, None if it is nowhere."""
        for folder in self.folders:
            if os.path.lexists(path := os.path.join(folder, listed)):
                return Path(path)
        found = (self._spelled(f, parts) for f in self.folders for parts in self._ends(listed))
        return next(filter(None, found), None)

    def expected(self, listed: str) -> Path:
        """As `find`; where it should be if it is nowhere."""
        return self.find(listed) or self.folders[0] / PureWindowsPath(listed).as_posix()

    def _ends(self, listed: str) -> Iterable[tuple[str, ...]]:
        path = PureWindowsPath(listed)
        parts = path.parts[1:] if path.anchor else path.parts
        if not path.drive and path.root:  # absolute, of a system like this one
            yield ("/", *parts)
        elif not path.drive:
            yield parts
        if path.drive or self.moved:
            yield from (parts[i:] for i in range(0 if path.anchor else 1, len(parts)))

    def _spelled(self, folder: Path, parts: Sequence[str]) -> Path | None:
        place = os.fspath(folder)
        for part in parts:
            if not os.path.lexists(below := os.path.join(place, part)):
                spellings = self._spellings.get(place)
                if spellings is None:
                    spellings = self._spellings[place] = _spellings_in(place)
                if (own := spellings.get(spelling_key(part))) is None:
                    return None
                below = os.path.join(place, own)
            place = below
        return Path(place)


def spelling_key(name: str) -> str:
    """Equal for names that differ in case or in how accents are stored."""
    return unicodedata.normalize("NFC", name).casefold()


def _spellings_in(folder: str) -> dict[str, str]:
    try:
        return {spelling_key(name): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}
