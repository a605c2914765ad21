"""One progress bar for all long work."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(
    iterable: Iterable | None = None, description: str = "", total: int | None = None, **kwargs
) -> tqdm:
    """A tqdm bar on stderr; without a terminal at most one line in ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    options = {"desc": description, "mininterval": interval, "dynamic_ncols": True, **kwargs}
    return tqdm(iterable, total=total, **options)
