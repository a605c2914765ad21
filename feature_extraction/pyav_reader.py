"""The reader `pyav`: decodes with PyAV and transforms with PyTorch."""

from collections.abc import Iterator

from torch import Tensor

from aux_code.models.person_boxes import PersonBoxes
from feature_extraction.clip_views import Clip, ClipGeometry
from feature_extraction.frame_stream import FrameStream, SourceClip, VideoEnd, clips_of
from feature_extraction.video_inputs import VideoInput


class PyavReader:
    """Decodes with PyAV and transforms with PyTorch, on the CPU."""

    name = "pyav"

    def __init__(
        self,
        geometry: ClipGeometry,
        min_decoded_share: float = 0.9,
        box_source: PersonBoxes | None = None,
    ):
        self.geometry = geometry
        self.min_decoded_share = min_decoded_share
        self.box_source = box_source

    def read(self, video: VideoInput) -> Iterator[Clip | VideoEnd]:
        stream = FrameStream(video.path, self.min_decoded_share)
        for clip in clips_of(iter(stream), self.geometry):
            boxes = view_boxes(video, clip, self.geometry, self.box_source)
            yield Clip(clip.index, self.geometry.views(clip.frames), boxes)
        yield stream.end()


def view_boxes(
    video: VideoInput, clip: SourceClip, geometry: ClipGeometry, source: PersonBoxes | None
) -> list[list[Tensor]] | None:
    """The boxes of a decoded clip in pixels of its views."""
    if source is None:
        return None
    boxes = source.of_frames(video.path, clip.frame_indices, clip.frames)
    return geometry.boxes(boxes, clip.frames.shape[1:3])
