"""The endurance benchmark runs small and ends with one line of JSON."""

import json

from benchmarks import endurance


def test_runs_and_reports(capsys):
    assert endurance.main(["--frames", "7200", "--videos", "30"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = report["figures"]
    assert report["benchmark"] == "endurance" and report["ratios"] == {}
    assert figures["short_frames"] == 3600 and figures["long_frames"] == 7200
    # the features of the second half take 32 KiB; a frame kept would be 9 KiB, all of them 30 MiB more
    assert figures["long_extra_mib"] < 25
    assert figures["many_n_clips"] == 60 and figures["many_mean_seconds_late"] > 0 and figures["many_merge_seconds"] > 0
