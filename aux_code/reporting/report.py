"""Writes summary.json, tables.md, the figures and report.html."""

from pathlib import Path

from aux_code import config
from aux_code.checkpoints import write_atomically, write_json
from aux_code.pipeline.tasks import Task
from aux_code.reporting.results import Results
from aux_code.reporting.summary import build_summary
from aux_code.reporting.tables import write_markdown


def write_all(results: Results, tasks: list[Task], ablations: tuple[str, ...] = ()) -> list[Path]:
    """Writes everything below RESULTS_ROOT and returns the files' paths."""
    summary = config.RESULTS_ROOT / "summary.json"
    write_json(summary, build_summary(results))
    tables = config.RESULTS_ROOT / "tables.md"
    write_atomically(tables, lambda file: file.write(write_markdown(results, ablations).encode()))
    return [summary, tables]
