"""The DALI reader: crop, resize and layout in a DALI graph, decoding too where DALI can.

On a GPU, DALI decodes (NVDEC) and everything stays there; on a CPU it knows VP8, VP9 and Motion
JPEG. PyAV feeds the same graph with other codecs, folders of frames, rotated videos and those in
which a detector looks for people, and reads on a video that DALI refuses half-way.

The video reader of `fn.experimental` runs on CPU and GPU, takes frames at irregular times and
repeats the last frame past the end, the rule for tails (`fn.readers.video` pads with zeros).
Importing DALI takes a second: only `readers.make_reader` imports this module.
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from aux_code.datasets.unreadable import UnreadableMedia
from aux_code.datasets.video_index import video_index
from aux_code.datasets.video_stream import decoded_frames, open_video, read_packets, video_stream
from aux_code.models.person_boxes import PersonBoxes
from feature_extraction.clip_views import Clip, ClipGeometry, Cut
from feature_extraction.readers import FrameStream, VideoEnd, clips_of, view_boxes
from feature_extraction.video_inputs import VideoInput

log = logging.getLogger(__name__)

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS = CPU_CODECS | {"h264", "hevc", "mpeg4", "av1"}
CLIPS_PER_RUN = 4
BYTES_PER_RUN = 64 * 2**20
_INT, _FLOAT = (np.int32, types.INT32), (np.float32, types.FLOAT)
_CUT_TYPES = {"anchor": _INT, "shape": _INT, "roi_start": _FLOAT, "roi_end": _FLOAT}


@dataclass(frozen=True)
class VideoFacts:
    """What must be known of a file before DALI decodes it, from its packets and first frame."""

    codec: str
    n_frames: int
    announced: float
    fps: float
    height: int
    width: int
    is_rotated: bool


@dataclass(eq=False)
class DaliReader:
    """Clips by way of a graph on `device`; one object per thread, to which pipelines belong."""

    geometry: ClipGeometry
    min_decoded_share: float
    box_source: PersonBoxes | None
    device: torch.device

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        """As `readers.Reader.read`."""
        n_done = 0
        facts = self._decodable(video.path)
        if facts is not None:
            try:
                for clip in self._decoded_by_dali(video, facts):
                    yield clip
                    n_done += 1
                if n_done == self.geometry.n_clips(facts.n_frames):
                    yield VideoEnd(facts.n_frames, round(facts.fps, 4))
                    return
                log.warning("%s: DALI finds another number of frames; read with PyAV", video.path)
            except RuntimeError as error:
                log.warning("%s: DALI gives up (%s); read with PyAV", video.path, _last_line(error))
        for item in self._fed_by_pyav(video):
            if isinstance(item, VideoEnd) or item.index >= n_done:
                yield item

    def _decodable(self, path: Path) -> VideoFacts | None:
        """The facts of a file that DALI can decode whole and upright here, else None."""
        if not path.is_file() or (self.box_source is not None and self.box_source.needs_frames):
            return None
        codecs = GPU_CODECS if self.device.type == "cuda" else CPU_CODECS
        try:
            facts = video_facts(path, codecs)
        except UnreadableMedia:
            return None
        is_whole = facts is not None and abs(facts.announced - facts.n_frames) <= 2
        return facts if is_whole and not facts.is_rotated else None

    def _decoded_by_dali(self, video: VideoInput, facts: VideoFacts) -> Iterator[Clip]:
        pipeline = self._decoding_graph(video.path, facts)
        pipeline.build()
        for index in range(pipeline.epoch_size("video")):
            (views,) = pipeline.run()
            numbers, boxes = self.geometry.frame_indices(index, facts.n_frames), None
            if self.box_source is not None:
                found = self.box_source.of_frames(video.path, numbers)
                boxes = self.geometry.boxes(found, (facts.height, facts.width))
            yield Clip(index, self._tensors(views)[0], boxes, numbers)

    def _fed_by_pyav(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        stream = FrameStream(video.path, self.min_decoded_share)
        for group in _groups(clips_of(iter(stream), self.geometry)):
            inputs: dict[str, list[np.ndarray]] = {"frames": [clip.frames for clip in group]}
            geometry = self.geometry.for_copy(stream.view, video.path)
            for v, cut in enumerate(geometry.cuts(*group[0].frames.shape[1:3])):
                arrays = _arrays(cut).items()
                inputs |= {f"{name}{v}": [part] * len(group) for name, part in arrays}
            (views,) = self._fed_graph.run(**inputs)
            for clip, clip_views in zip(group, self._tensors(views), strict=True):
                boxes = view_boxes(video, clip, self.geometry, self.box_source)
                yield Clip(clip.index, clip_views, boxes, clip.frame_indices)
        yield stream.end()

    def _decoding_graph(self, path: Path, facts: VideoFacts) -> Pipeline:
        """A graph for one file: DALI decodes clip after clip. Only `build` needs the GPU."""
        geometry = self.geometry
        device = "gpu" if self.device.type == "cuda" else "cpu"
        files = {"device": device, "filenames": [str(path.resolve())], "labels": [0]}
        places = {"stride": geometry.stride, "step": geometry.frames_per_feature}
        places |= {"sequence_length": geometry.frames_per_clip, "pad_mode": "edge"}
        pipeline = self._pipeline(batch_size=1)
        with pipeline:
            frames, _ = fn.experimental.readers.video(name="video", **files, **places)
            cuts = list(map(_arrays, geometry.cuts(facts.height, facts.width)))
            pipeline.set_outputs(self._views(frames, cuts))
        return pipeline

    @cached_property
    def _fed_graph(self) -> Pipeline:
        graph = self._feeding_graph()
        graph.build()
        return graph

    def _feeding_graph(self) -> Pipeline:
        """One graph for everything that PyAV decodes, whatever its size."""
        pipeline = self._pipeline(batch_size=CLIPS_PER_RUN)
        with pipeline:
            source = fn.external_source
            frames = source(name="frames", layout="FHWC", dtype=types.UINT8, ndim=4)
            cuts = [
                {k: source(name=f"{k}{v}", dtype=t, ndim=1) for k, (_, t) in _CUT_TYPES.items()}
                for v in range(len(self.geometry.windows))
            ]
            frames = frames.gpu() if self.device.type == "cuda" else frames
            pipeline.set_outputs(self._views(frames, cuts))
        return pipeline

    def _views(self, frames, cuts: list[dict]):
        """What all graphs share: uint8 (T,H,W,C) -> float32 (n_crops,T,C,size,size) in [0,1]."""
        options = {"interp_type": types.INTERP_LINEAR, "antialias": True, "dtype": types.FLOAT}
        views = []
        for cut in cuts:
            touched = fn.slice(frames, cut["anchor"], cut["shape"], axis_names="HW")
            options |= {"roi_start": cut["roi_start"], "roi_end": cut["roi_end"]}
            view = fn.resize(touched, size=[self.geometry.size] * 2, **options)
            view = view * np.float32(1 / 255)
            views.append(fn.transpose(view, perm=[0, 3, 1, 2], output_layout="FCHW"))
        return fn.stack(*views)

    def _pipeline(self, batch_size: int) -> Pipeline:
        device_id = (self.device.index or 0) if self.device.type == "cuda" else None
        options = {"num_threads": 1, "exec_dynamic": True, "prefetch_queue_depth": 1}
        return Pipeline(batch_size=batch_size, device_id=device_id, **options)

    def _tensors(self, outputs) -> Tensor:
        """A copy of a batch as (B,n_crops,T,C,size,size): DALI uses its buffers again."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.array(outputs.as_array()))
        with torch.cuda.stream(self._copying):
            copy = torch.from_dlpack(outputs.as_tensor()).clone()
        self._copying.synchronize()  # DALI may write again; networks at work do not delay it
        copy.record_stream(torch.cuda.default_stream(self.device))  # where the networks read it
        return copy

    @cached_property
    def _copying(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)


def video_facts(path: Path, codecs: Collection[str]) -> VideoFacts | None:
    """None where DALI does not know the codec or might see other frames than PyAV: it does not
    choose among several pictures, knows no edit list, and conceals damage in its own way.

    Raises UnreadableMedia: it does not open, holds no video, or none of its frames decodes.
    """
    with open_video(path) as container:
        codec = video_stream(container).codec_context.name
        if codec not in codecs or len(container.streams.video) > 1:
            return None
        first = next(decoded_frames(container, path, []), None)
    packets, index = read_packets(path), video_index(path)
    is_plain = packets.n_shown == index.n_frames and not packets.n_hidden and not packets.problems
    if first is None or not is_plain:
        return None
    size, is_rotated = (index.height, index.width), bool(first.rotation % 360)
    fps = float(packets.rate)
    return VideoFacts(codec, index.n_frames, packets.n_announced, fps, *size, is_rotated)


def _groups(clips: Iterator) -> Iterator[list]:
    """As many `SourceClip`s as one run of the graph takes, fewer of large frames."""
    for first in clips:
        fitting = max(1, min(CLIPS_PER_RUN, -(-BYTES_PER_RUN // first.frames.nbytes)))
        yield [first, *islice(clips, fitting - 1)]


def _arrays(cut: Cut) -> dict[str, np.ndarray]:
    return {k: np.array(getattr(cut, k), dtype) for k, (dtype, _) in _CUT_TYPES.items()}


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    telling = (line for line in lines if "failed" in line or "rror" in line)
    return next(telling, type(error).__name__)[:200]
