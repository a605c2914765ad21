"""Tiny media files for the tests: a frame carries its number as 3 x 4 blocks, black or white."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

from aux_code.datasets.decode import count_frames, iterate_frames, read_frames

BITS = np.arange(12)
B_FRAMES = {"bf": "3", "g": "12", "keyint_min": "12", "sc_threshold": "0"}


def painted_frame(number, height=48, width=64, colour=255):
    """uint8 (H,W,3): the bits of `number` as a grid of blocks, black or of the colour."""
    blocks = (number >> BITS & 1).reshape(3, 4)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return (blocks[rows][:, columns, None] * np.broadcast_to(colour, 3)).astype(np.uint8)


def painted_number(frame):
    """The number that `painted_frame` put there, through compression."""
    height, width, _ = frame.shape
    rows, columns = np.array([1, 3, 5]) * height // 6, np.array([1, 3, 5, 7]) * width // 8
    blocks = frame[rows][:, columns].mean(axis=-1) > 127
    return int((blocks.ravel() << BITS).sum())


def painted_numbers(frames):
    return [painted_number(frame) for frame in frames]


def write_lines(path, *lines, line_end="\n"):
    """A text file; an empty one without lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + line_end for line in lines).encode())
    return path


def write_pictures(folder, numbers, name="{:03d}.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(painted_frame(number)).save(folder / name.format(number), quality=95)
    return folder


def write_video(path, n_frames, codec="libx264", size=(48, 64), options=None, times=None, **how):
    """Writes painted frames; `times` are presentation times in 1/1000 s, else `rate` (25) fps."""
    paint, rate = how.pop("paint", painted_frame), how.pop("rate", 25)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_odd = size[0] % 2 or size[1] % 2
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv444p" if is_odd else "yuv420p"
    pixel_format = how.pop("pixel_format", pixel_format)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.codec_context.thread_count = 1
        if codec == "mpeg4":
            stream.bit_rate = 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(paint(number, *size, **how), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packets_of(path):
    """The packets of its first video."""
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                yield packet


def mux(output, stream, packets):
    for packet in packets:
        packet.stream = stream
        output.mux(packet)


def write_packets(path, template, packets, options=None):
    """Packets in a container of their own, without encoding again."""
    with av.open(str(template)) as like, av.open(str(path), "w", options=options or {}) as output:
        mux(output, output.add_stream_from_template(like.streams.video[0]), packets)
    return path


def several(path, *parts):
    """A file with a video stream for each (file, disposition), packets in the order of times."""
    with av.open(str(path), "w") as output:
        packets = []
        for source, disposition in parts:
            with av.open(str(source)) as like:
                stream = output.add_stream_from_template(like.streams.video[0])
            stream.disposition = disposition
            for packet in packets_of(source):
                packet.stream = stream
                packets.append((packet.dts * packet.time_base, len(packets), packet))
        for *_, packet in sorted(packets):
            output.mux(packet)
    return path


def rotate_mp4(path, matrix):
    """Writes a display matrix (a, b, c, d, in whole units) into an MP4 file in place."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    words = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    content[at : at + 36] = b"".join(word.to_bytes(4, "big", signed=True) for word in words)
    path.write_bytes(bytes(content))
    return path


def assert_exact(path, numbers):
    """Every frame alone, and several in any order, are those of sequential decoding."""
    every = list(iterate_frames(path))
    assert painted_numbers(every) == list(numbers)
    assert count_frames(path) == len(every)
    places = list(range(len(every)))
    orders = ([places[-1], 0, 0, 3], places[len(every) // 2 :][:3], places[1::2], places[::-1])
    for indices in (*orders, *([i] for i in places)):
        frames = read_frames(path, indices)
        assert frames.dtype == np.uint8
        expected = [every[i] for i in indices]
        np.testing.assert_array_equal(frames, expected, err_msg=f"{path.name}, {indices}")
