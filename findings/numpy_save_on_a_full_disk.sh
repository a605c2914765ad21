#!/usr/bin/env bash
# numpy.save loses the end of a small array on a full disk and raises nothing.
#
# NumPy 2.4.6, CPython 3.11, Linux. Into a real file numpy.save writes through a C stream of its own; for arrays
# below that stream's buffer the failing write happens when the stream is closed, and its result is not looked at.
# Seen: with room for 1,000 bytes, arrays of 300 and 1,000 float32 leave 1,000 bytes of 1,328 and of 4,128 and no
# error, by path, by a buffered and by an unbuffered file; 100,000 values raise OSError. The file shows its damage
# only when it is read. Writing to any object that is no real file (io.BytesIO, a wrapper with `write`) raises.
#
# RLIMIT_FSIZE stands for the full disk: write(2) is cut short and fails in the same way.
# Exit status 0: as described; 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END' | cat  # a pipe, since the limit holds for a file behind stdout, too
import resource
import signal
from pathlib import Path

import numpy as np

LIMIT = 1000
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))


class OnlyWrite:
    """No real file for NumPy: it calls `write`."""

    def __init__(self, file):
        self.write = file.write


def save(how: str, path: Path, array: np.ndarray) -> str:
    try:
        if how == "path":
            np.save(path, array)
        else:
            with open(path, "wb", buffering=0 if how == "unbuffered" else -1) as file:
                np.save(OnlyWrite(file) if how == "wrapped" else file, array)
                file.flush()
    except OSError as error:
        return f"OSError: {error.strerror or error}"
    return "no error"


print(f"numpy {np.__version__}, room for {LIMIT} bytes")
silent = set()
for n_values in (100, 300, 1000, 100_000):
    for how in ("path", "buffered", "unbuffered", "wrapped"):
        path = Path(f"{n_values}_{how}.npy")
        outcome = save(how, path, np.ones(n_values, np.float32))
        written, whole = path.stat().st_size, 128 + 4 * n_values
        print(f"{n_values:6d} values, {how:10s}: {written} of {whole} bytes, {outcome}")
        if written < whole and outcome == "no error":
            silent.add((n_values, how))
expected = {(n, how) for n in (300, 1000) for how in ("path", "buffered", "unbuffered")}
raise SystemExit(silent != expected)
END
