"""The extraction benchmark runs small, agrees with the plain loop and ends with one line of
JSON."""

import json

from benchmarks import extraction

PARTS = ("decode", "wait", "copy", "f_A", "f_T", "write", "start")


def test_runs_and_reports(capsys):
    sizes = "--videos 1 --clips 2 --size 32 --rounds 1 --product 128 --threads 1"
    assert extraction.main(sizes.split()) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "extraction"
    assert set(report["ratios"]) == {"fp32", "bf16"} and min(report["ratios"].values()) > 0
    figures = report["figures"]
    for precision, least in (("fp32", 0.999), ("bf16", 0.99)):
        assert figures[f"lowest_cosine_{precision}"] > least
        assert all(figures[f"seconds_{part}_{precision}"] >= 0 for part in PARTS)
        assert (
            figures[f"seconds_f_A_{precision}"] > 0 and figures[f"seconds_decode_{precision}"] > 0
        )
        assert figures[f"ceiling_share_{precision}"] > 0
    assert figures["ceiling_share"] == figures["ceiling_share_bf16"]
