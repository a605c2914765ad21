"""benchmarks/README.md is written from what the benchmarks say, and what people wrote in it is
kept."""

import json
from pathlib import Path

import pytest

from benchmarks import report


def write_benchmark(folder: Path, line: str, status: int = 0) -> None:
    (folder / "sums.py").write_text(
        '"""Adds numbers.\n\nThe plain version adds them one by one."""\n'
        "import sys\n\ndef main():\n    print('a processor, 2 cores, 1 threads')\n"
        f"    print({line!r})  # json_line(\n    return {status}\n\nsys.exit(main())\n"
    )


def test_a_section_has_machine_command_baseline_and_figures(tmp_path, capsys):
    line = json.dumps(
        {"benchmark": "sums", "ratios": {"all": 2.5}, "figures": {"seconds": 0.123456}}
    )
    write_benchmark(tmp_path, line)
    assert report.benchmark_names(tmp_path) == ["sums"]
    text = report.section(
        "sums", report.run_benchmark("sums", ["--rounds", "1"], tmp_path), tmp_path
    )
    assert "a processor, 2 cores" in text and "`python benchmarks/sums.py --rounds 1`" in text
    assert (
        "adds them one by one" in text
        and "| all | 2.50 |" in text
        and "| seconds | 0.1235 |" in text
    )
    assert line in capsys.readouterr().out
    assert "took 0:0" in text and " minutes." in text


@pytest.mark.parametrize(
    ("line", "status"), [("no json", 0), ('{"benchmark": "sums", "ratios": {}, "figures": {}}', 1)]
)
def test_a_failed_benchmark_writes_nothing(tmp_path, line, status):
    write_benchmark(tmp_path, line, status)
    with pytest.raises(SystemExit, match="sums"):
        report.run_benchmark("sums", [], tmp_path)


def test_only_the_own_section_changes():
    text = "# Benchmarks\n\nWritten by hand.\n"
    text = report.with_section(report.with_section(text, "a", "first \\1"), "b", "second")
    again = report.with_section(text.replace("## b", "Hand-written, too.\n\n## b"), "a", "third")
    assert "Written by hand." in again and "Hand-written, too." in again and "second" in again
    assert "third" in again and "first" not in again and again.count("## a") == 1


def test_every_benchmark_is_found_and_nothing_else():
    names = report.benchmark_names()
    assert {"data_loading", "inference", "mgfn"} <= set(names) and not {
        "machine",
        "report",
        "plain_mgfn",
    } & set(names)


def test_the_same_command_runs_again_and_the_time_of_all_is_stated(tmp_path, monkeypatch):
    line = json.dumps({"benchmark": "sums", "ratios": {"all": 2.5}, "figures": {}})
    write_benchmark(tmp_path, line)
    commands = []

    def run(name, options, folder=tmp_path):
        commands.append(options)
        return report.Measured(
            f"python benchmarks/{name}.py {' '.join(options)}".strip(), "2 cores", {}, {}, 61.0
        )

    monkeypatch.setattr(report, "benchmark_names", lambda: ["sums"])
    monkeypatch.setattr(report, "run_benchmark", run)
    section, output = report.section, tmp_path / "README.md"
    monkeypatch.setattr(report, "section", lambda name, measured: section(name, measured, tmp_path))
    for words in (["sums", "--", "--rounds", "2"], [], ["--defaults"]):
        report.main(["--output", str(output), *words])
        if not words:
            assert "`python benchmarks/sums.py --rounds 2`" in output.read_text()
    assert commands == [["--rounds", "2"], ["--rounds", "2"], []]
    text = output.read_text()
    assert (
        text.count("All of it took 1:01 minutes (1 of 1 sections") == 1
        and text.count("# Benchmarks") == 1
    )
