"""Videos damaged as recorders, disks and downloads damage them, and what comes out of them.

python tests/datasets/damaged_videos.py      writes the table of docs/formats.md anew
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

if str(Path(__file__).resolve().parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import av
import numpy as np

from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_stream import Decoding, open_video
from tests.datasets.media import B_FRAMES, packets_of, painted_frame, write_packets, write_video

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
N_FRAMES, LEAST_SHARE = 200, 0.9
_H264 = ("libx264", {**B_FRAMES, "g": "20", "x264-params": "repeat-headers=1"}, "yuv444p")
_HEVC = {"x265-params": "log-level=none:keyint=20:repeat-headers=1:pools=1"}
_VP9 = {"g": "20", "deadline": "realtime", "cpu-used": "8"}
FORMATS = {
    "mp4, H.264": ("a.mp4", *_H264), "mp4 with its table first": ("f.mp4", *_H264),
    "mkv, H.264": ("a.mkv", *_H264), "ts, H.264": ("a.ts", *_H264), "flv, H.264": ("a.flv", *_H264),
    "bare H.264": ("a.h264", *_H264), "mp4, HEVC": ("b.mp4", "libx265", _HEVC, "yuv444p"),
    "avi, MPEG-4": ("b.avi", "mpeg4", {"g": "20"}, ""),
    "avi, Motion JPEG": ("c.avi", "mjpeg", {}, "yuvj444p"),
    "ts, MPEG-2": ("d.ts", "mpeg2video", {"g": "20"}, ""),
    "webm, VP9": ("a.webm", "libvpx-vp9", _VP9, "yuv444p"),
}  # fmt: skip
"""Container and codec -> file name, encoder, its options, another pixel format that it has."""

Write = Callable[..., Path]
"""(path, number of frames, further options of `write_video`) -> the path."""


def cut_tail(path: Path, write: Write) -> None:
    """The last 6 % of the bytes are missing, as after a download that broke off."""
    content = write(path, N_FRAMES).read_bytes()
    path.write_bytes(content[: int(0.94 * len(content))])


def cut_head(path: Path, write: Write) -> None:
    """The first 6 % of the bytes are missing."""
    content = write(path, N_FRAMES).read_bytes()
    path.write_bytes(content[int(0.06 * len(content)) :])


def _with_packets(path: Path, write: Write, change: Callable[[list], Iterator]) -> None:
    whole = write(_beside(path, "whole"), N_FRAMES)
    _mux(path, whole, change(list(packets_of(whole))))
    whole.unlink()


def _mux(path: Path, source: Path, packets: Iterator[av.Packet]) -> None:
    options = {"movflags": "faststart"} if path.name == "f.mp4" else {}
    write_packets(path, source, packets, options)


def _beside(path: Path, name: str) -> Path:
    """Where a whole video is written; MP4 has both times of every packet."""
    return path.with_name(f"{name}{path.suffix if path.suffix in ('.avi', '.webm') else '.mp4'}")


def bit_errors(path: Path, write: Write) -> None:
    """Eight bits are wrong in 1 % of the packets, never in the first one."""

    def change(packets: list) -> Iterator[av.Packet]:
        rng = np.random.default_rng(1)
        hit = set(rng.choice(np.arange(1, len(packets)), len(packets) // 100, replace=False))
        for i, packet in enumerate(packets):
            yield _with_wrong_bits(packet, rng) if i in hit else packet

    _with_packets(path, write, change)


def _with_wrong_bits(packet: av.Packet, rng: np.random.Generator) -> av.Packet:
    data = bytearray(bytes(packet))
    for place in rng.integers(len(data) // 4, len(data), 8):
        data[place] ^= 1 << int(rng.integers(8))
    changed = av.Packet(bytes(data))
    changed.pts, changed.dts, changed.duration = packet.pts, packet.dts, packet.duration
    changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
    return changed


def no_key_frame(path: Path, write: Write) -> None:
    """The packet of the third key frame is missing."""

    def change(packets: list) -> Iterator[av.Packet]:
        third = [i for i, packet in enumerate(packets) if packet.is_keyframe][2]
        return iter(packets[:third] + packets[third + 1 :])

    _with_packets(path, write, change)


def _joined(path: Path, write: Write, **later) -> None:
    """100 frames, then 100 made in another way, their packets one after the other."""
    parts = [write(_beside(path, "first"), N_FRAMES // 2)]
    parts.append(write(_beside(path, "second"), N_FRAMES // 2, **later))
    first, second = (list(packets_of(part)) for part in parts)
    shift = round((first[-1].dts - first[0].dts) * len(first) / (len(first) - 1))
    for packet in second:
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    _mux(path, parts[0], chain(first, second))
    for part in parts:
        part.unlink()


def other_size(path: Path, write: Write) -> None:
    """Frames of 48 x 64 pixels are followed by frames of 96 x 128."""
    _joined(path, write, size=(96, 128))


def other_pixels(path: Path, write: Write) -> None:
    """Colours at half the resolution are followed by colours at the full one."""
    _joined(path, write, pixel_format=next(f[3] for f in FORMATS.values() if f[0] == path.name))


def no_bytes(path: Path, write: Write) -> None:
    """An empty file."""
    path.write_bytes(b"")


def one_frame(path: Path, write: Write) -> None:
    """A whole file of one frame."""
    write(path, 1)


DAMAGES = {
    "cut tail": cut_tail, "cut head": cut_head, "bit errors": bit_errors,
    "no key frame": no_key_frame, "other size": other_size, "other pixels": other_pixels,
    "no bytes": no_bytes, "one frame": one_frame,
}  # fmt: skip
CASES = [
    (kind, damage)
    for kind, (*_, pixels) in FORMATS.items()
    for damage in DAMAGES
    if pixels or damage != "other pixels"
]


def make(folder: Path, kind: str, damage: str = "") -> Path:
    """A damaged video of a kind of FORMATS, or a whole one, in `folder`."""
    name, codec, options, _ = FORMATS[kind]
    write, path = partial(_write, codec=codec, options=options), folder / name
    DAMAGES[damage](path, write) if damage else write(path, N_FRAMES)
    return path


def _grainy(number: int, height: int, width: int) -> np.ndarray:
    """A frame that is new everywhere, so that every packet holds something."""
    grain = np.random.default_rng(number).integers(0, 60, (height, width, 3), dtype=np.uint8)
    return painted_frame(number, height, width, 190) + grain


def _write(path: Path, n_frames: int, **how) -> Path:
    how |= {"paint": _grainy}
    if path.name not in ("a.h264", "f.mp4"):
        return write_video(path, n_frames, **how)
    source = write_video(_beside(path, "source"), n_frames, **how)
    _mux(path, source, packets_of(source))
    source.unlink()
    return path


def outcome(path: Path) -> str:
    """What comes out of a file: its frames; which share that is, where it is named damaged."""
    try:
        with open_video(path) as container:
            decoding = Decoding(container, path)
            n_frames = sum(1 for _ in decoding)
            n_announced, share = decoding.n_announced(), decoding.share()
    except UnreadableMedia:
        return "unreadable"
    if n_frames == 0:
        return "unreadable"
    if not decoding.problems:
        return str(n_frames)
    refused = ", refused" if n_frames < LEAST_SHARE * n_announced else ""
    return f"{n_frames} ({share:.1%}{refused})"


def row(folder: Path, kind: str) -> str:
    """A line of the table, in Markdown."""
    cells = [outcome(make(folder, kind))]
    for damage in DAMAGES:
        is_possible = (kind, damage) in CASES
        cells.append(outcome(make(folder, kind, damage)) if is_possible else "")
    return f"| {kind} | {' | '.join(cells)} |"


def table() -> str:
    """Container and codec by damage: what comes out."""
    head = f"| container, codec | whole | {' | '.join(DAMAGES)} |\n{'|---' * (2 + len(DAMAGES))}|"
    with tempfile.TemporaryDirectory() as name:
        return "\n".join([head, *(row(Path(name), kind) for kind in FORMATS)])


def written() -> str:
    """The table in docs/formats.md."""
    return re.search(r"^\| container.*?(?=\n\n)", DOCUMENT.read_text("utf-8"), re.M | re.S)[0]


def main() -> None:
    text, now = DOCUMENT.read_text("utf-8"), table()
    DOCUMENT.write_text(text.replace(written(), now), "utf-8")
    sys.stdout.write(now + "\n")


if __name__ == "__main__":
    main()
