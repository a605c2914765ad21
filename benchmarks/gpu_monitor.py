"""How busy a GPU is while something runs, as nvidia-smi says."""

import statistics
import subprocess

COUNTERS = ("utilization.gpu", "utilization.decoder")
"""Percent of the time in which kernels run, and in which NVDEC decodes."""


class GpuMonitor:
    """Samples the counters five times a second between entering and leaving; then `means` has them.

    Args:
        index: number of the GPU.
        command: what prints a line of COUNTERS five times a second; None: nvidia-smi.
    """

    def __init__(self, index: int = 0, command: list[str] | None = None):
        query = f"--query-gpu={','.join(COUNTERS)} --format=csv,noheader,nounits --loop-ms=200"
        self.command = command or ["nvidia-smi", f"--id={index}", *query.split()]
        self.means: dict[str, float] = {}

    def __enter__(self) -> "GpuMonitor":
        self._process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self.means = mean_utilisation(self._process.communicate()[0])


def mean_utilisation(lines: str) -> dict[str, float]:
    """Lines of percents, a column per counter -> counter -> mean share in [0, 1], if known."""
    rows = [line.split(",") for line in lines.splitlines() if line.count(",") == len(COUNTERS) - 1]
    means = {}
    for name, column in zip(COUNTERS, zip(*rows)):
        if values := [float(text) / 100 for text in column if text.strip().isdecimal()]:
            means[name] = statistics.fmean(values)
    return means
