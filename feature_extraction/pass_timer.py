"""Seconds of the parts of a pass through the networks, on the CPU's or on the GPU's own clock."""

import time

import torch


class PassTimer:
    """Marks what has just ended; a GPU is not made to wait for it.

    Args:
        device: where the pass is computed.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """Everything since the last mark belongs to `part`; parts may come again."""
        self._marks.append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """Part -> its seconds; on a GPU to be called after the pass has finished."""
        total: dict[str, float] = {}
        for (_, start), (part, end) in zip(self._marks, self._marks[1:]):
            total[part] = total.get(part, 0.0) + (
                start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            )
        return total

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
