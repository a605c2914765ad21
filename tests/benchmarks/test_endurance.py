"""The endurance benchmark runs small and ends with one line of JSON."""

import json

from benchmarks import endurance


def test_runs_and_reports(capsys):
    assert endurance.main(["--frames", "7200", "--videos", "30"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = report["figures"]
    assert report["benchmark"] == "endurance" and report["ratios"] == {}
    assert figures["short_frames"] == 3600 and figures["long_frames"] == 7200
    # the features of the second half take 32 KiB; a frame kept would be 9 KiB, all of them 30 MiB
    # more
    assert figures["long_extra_mib"] < 25
    assert figures["many_there_when_killed"] >= 1 and figures["many_repeated_after_kill"] <= 1
    done_by_the_second = 60 - 2 * (
        figures["many_there_when_killed"] - figures["many_repeated_after_kill"]
    )
    assert figures["many_n_clips"] == done_by_the_second
    assert all(figures[f"many_{name}_seconds"] > 0 for name in ("merge", "scan", "nothing_left"))
