"""One tiny rendering that the tests of this folder share."""

import pytest

from aux_code.miniature.render import render_benchmark

SCALE = 0.05


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Root of a complete rendering with seed 0 and scale 0.05, made in this process."""
    root = tmp_path_factory.mktemp("miniature") / "data"
    render_benchmark(root, seed=0, scale=SCALE, workers=1)
    return root
