#!/usr/bin/env bash
# DALI's video decoder on a CPU converts every file to RGB by BT.601, also one whose stream says BT.709.
#
# nvidia-dali-cuda130 2.4.0 against PyAV 18.1.0, which obeys the stream's tag. VP9 in WebM, flat colours, the same RGB
# source written once with each matrix and its tag. Seen: tagged BT.601 or untagged, both agree within 2 levels of 255;
# tagged BT.709, DALI's red (254, 0, 0) is (233, 0, 2), its orange (198, 149, 37) is (194, 153, 44). Nothing warns.
# HD cameras write BT.709, so a network that learned the colours of one decoder sees others by the other.
#
# Exit status 0: as described; 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-dali-cuda130==2.4.0 av==18.1.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import av
import numpy as np
from nvidia import dali
from nvidia.dali import fn, pipeline_def

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 40), (30, 160, 200), (128, 128, 128))
TAGS = {"itu709": 1, "itu601": 6, "untagged": None}
WIDTH = 64


def write(path: str, tag: str) -> None:
    image = np.repeat(np.array(COLOURS, np.uint8)[None], WIDTH, axis=1).repeat(128, axis=0)
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"crf": "4", "b": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH * len(COLOURS), 128, "yuv420p"
        if TAGS[tag]:
            stream.codec_context.colorspace = TAGS[tag]
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            matrix = tag if TAGS[tag] else "itu601"
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix)))
        container.mux(stream.encode(None))


def by_pyav(path: str) -> np.ndarray:
    with av.open(path) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def decoder(path: str):
    return fn.decoders.video(fn.readers.file(files=[path])[0], device="cpu")


def by_dali(path: str) -> np.ndarray:
    pipeline = decoder(path)
    pipeline.build()
    return np.asarray(pipeline.run()[0].at(0))[0]


print(f"DALI {dali.__version__}, PyAV {av.__version__}")
largest = {}
for tag in TAGS:
    write(f"{tag}.webm", tag)
    shown = [
        [frame[64, i * WIDTH + WIDTH // 2].astype(int) for i in range(len(COLOURS))]
        for frame in (by_pyav(f"{tag}.webm"), by_dali(f"{tag}.webm"))
    ]
    largest[tag] = int(np.abs(np.subtract(*shown)).max())
    print(f"{tag}: largest difference {largest[tag]} of 255; red {shown[0][0]} by PyAV, {shown[1][0]} by DALI")
raise SystemExit(not (largest["itu601"] <= 3 and largest["untagged"] <= 3 and largest["itu709"] >= 15))
END
