#!/usr/bin/env bash
# An MP4 with B-frames at a varying rate states a length that ends before its last frame is shown.
#
# PyAV 18.1.0 (libavformat 62.12, libx264 as bundled). 50 frames, 25 at 40 ms and 25 at 200 ms, so that the last one is
# shown at 5.8 s and should last until 6.0 s. Seen: with libx264's own settings stream and container state 5.52 s, with
# `bf` 0 they state 5.84 s; all 50 frames decode, at the times that were written. The length is what decoding times add
# up to, and B-frames shift these against the times of display. Whoever divides frames by the stated length, or asks
# what lies after it, is wrong; times of frames are right.
#
# Exit status 0: as described; 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import sys
from fractions import Fraction

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
TIMES = [40 * i for i in range(25)] + [1000 + 200 * i for i in range(25)]


def stated_and_last(path: str, options: dict[str, str]) -> tuple[float, float, int]:
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", MILLISECOND
        for i, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * i, np.uint8))
            frame.pts, frame.time_base = time, MILLISECOND
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with av.open(path) as source:
        stream = source.streams.video[0]
        times = [frame.time for frame in source.decode(stream)]
        return float(stream.duration * stream.time_base), times[-1], len(times)


found = {name: stated_and_last(f"{name}.mp4", own) for name, own in (("usual", {}), ("bf0", {"bf": "0"}))}
for name, (stated, last, n_frames) in found.items():
    print(f"{name}: states {stated:.2f} s, last of {n_frames} frames at {last:.2f} s")
(usual, usual_last, n), (plain, plain_last, m) = found["usual"], found["bf0"]
shorter = usual < usual_last and plain > plain_last
sys.exit(not (shorter and n == m == 50 and abs(usual_last - 5.8) < 0.05))
END
