"""Parts of a pass and their seconds."""

import time

import pytest
import torch

from feature_extraction.pass_timer import PassTimer


def test_parts_add_up_and_may_come_again():
    start = time.perf_counter()
    timer = PassTimer(torch.device("cpu"))
    for part, seconds in [("a", 0.02), ("b", 0.01), ("a", 0.02)]:
        time.sleep(seconds)
        timer.mark(part)
    parts = timer.seconds()
    assert list(parts) == ["a", "b"] and parts["a"] >= 0.04 and parts["b"] >= 0.01
    assert sum(parts.values()) == pytest.approx(time.perf_counter() - start, abs=0.05)
