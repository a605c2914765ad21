"""Renders the miniature benchmark: python -m aux_code.miniature ROOT."""

import argparse
import logging
import signal
import sys
from pathlib import Path

from aux_code.errors import UserError
from aux_code.miniature.contact_sheet import write_contact_sheet
from aux_code.miniature.render import DATA_SETS, render_benchmark

log = logging.getLogger("aux_code.miniature")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    text = "Render the embedded miniature benchmark."
    parser = argparse.ArgumentParser(prog="python -m aux_code.miniature", description=text)
    add = parser.add_argument
    add("root", type=Path, help="folder that gets UCF101, VISPR, UCF_Crime and the others")
    add("--seed", type=int, default=0, help="of the drawing; reproduce.py's --render_seed")
    add("--scale", type=float, default=1.0, help="share of the full size, e.g. 0.05 for tests")
    add("--only", nargs="+", choices=list(DATA_SETS), metavar="SET", help="some of the data sets")
    add("--force", action="store_true", help="render again (never replaces anything else)")
    add("--workers", type=int, default=None, help="processes; the output does not depend on it")
    add("--contact_sheet", type=Path, metavar="PNG", help="also draw a sheet of stills and events")
    return parser.parse_args(argv)


def _terminate(*_) -> None:
    """SIGTERM takes the way of Ctrl-C, so that the workers end too."""
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 2 wrong usage or input, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _arguments(argv)
    try:
        words = (options.seed, options.scale, options.only, options.force, options.workers)
        record = render_benchmark(options.root, *words)
        if options.contact_sheet:
            write_contact_sheet(options.contact_sheet, options.seed)
    except (UserError, OSError) as error:
        log.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on with the sets that are not complete")
        return 130
    for name, data_set in record["sets"].items():
        counts = ", ".join(f"{count} {split}" for split, count in data_set["counts"].items())
        folder = options.root / DATA_SETS[name].folder
        log.info("%s: %s (%.1f s)", folder, counts, data_set["seconds"])
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
