"""A way to run a benchmark in this process."""

import json

import pytest


@pytest.fixture
def report_of(capsys):
    """report_of(module, options) runs a benchmark -> (ratios, figures) of its line of JSON."""

    def run(module, options: str) -> tuple[dict, dict]:
        assert module.main(options.split()) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["benchmark"] == module.__name__.split(".")[-1]
        assert all(ratio > 0 for ratio in report["ratios"].values())
        return report["ratios"], report["figures"]

    return run
