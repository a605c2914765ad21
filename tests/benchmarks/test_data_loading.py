"""The data loading benchmark runs, its two readers agree, and it ends with one line of JSON."""

import json
from dataclasses import replace

from benchmarks import data_loading


def test_runs_and_reports(capsys, monkeypatch):
    small = {
        name: spec._replace(n_frames=40, height=48, width=64)
        for name, spec in data_loading.FORMATS.items()
    }
    monkeypatch.setattr(data_loading, "FORMATS", small)
    monkeypatch.setattr(
        data_loading, "PAPER", replace(data_loading.PAPER, batch_videos=2, batch_images=2, size=32)
    )
    assert data_loading.main(["--rounds", "1", "--minutes", "1", "--step_seconds", "2"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "data_loading"
    assert set(report["ratios"]) == set(small) and min(report["ratios"].values()) > 0
    figures = report["figures"]
    assert figures["workers_needed"] * 2 == figures["seconds_per_paper_step_per_worker"]
    assert (
        figures["seconds_per_paper_step_per_worker"] > figures["clip_batch_seconds_per_worker"] > 0
    )
