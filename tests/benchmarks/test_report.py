"""benchmarks/README.md is written from what the benchmarks say; what people wrote is kept."""

import json
from pathlib import Path

import pytest

from aux_code.checkpoints import read_json
from benchmarks import report

LINE = {"benchmark": "sums", "ratios": {"all": 2.5}, "figures": {"seconds": 0.123456}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks with one in it, whose figures are to be at least 2 and at most 0.1."""
    write_benchmark(tmp_path, json.dumps(LINE))
    aims = [
        {"label": "sums", "benchmark": "sums", "key": "all", "bound": 2},
        {"label": "time", "benchmark": "sums", "key": "seconds", "bound": 0.1, "at_most": True},
        {"label": "never run", "benchmark": "products", "key": "all", "bound": 1},
    ]
    (tmp_path / "aims.json").write_text(json.dumps(aims))
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return tmp_path


def write_benchmark(folder: Path, line: str, status: int = 0) -> None:
    (folder / "sums.py").write_text(
        "import sys\n\ndef main():\n    print('a processor, 2 cores, 1 threads; 3 rounds')\n"
        f"    print({line!r})  # json_line(\n    return {status}\n\nsys.exit(main())\n"
    )


def test_a_result_has_machine_command_and_figures_and_keeps_the_one_before(folder, capsys):
    measured = report.run_benchmark("sums", ["--rounds", "1"])
    assert measured["machine"] == "a processor, 2 cores, 1 threads; 3 rounds"
    assert measured["command"] == "python benchmarks/sums.py --rounds 1"
    assert measured["figures"] == LINE["figures"] and json.dumps(LINE) in capsys.readouterr().out
    path = folder / "results" / "sums.json"
    for ratio in (2.5, 3.5, 4.5):
        report.keep({**measured, "ratios": {"all": ratio}}, path)
    kept = read_json(path)
    assert kept["ratios"] == {"all": 4.5}
    assert [run["ratios"]["all"] for run in kept["earlier"]] == [2.5, 3.5]


@pytest.mark.parametrize(("line", "status"), [("no json", 0), (json.dumps(LINE), 1)])
def test_a_failed_benchmark_writes_nothing(folder, line, status):
    write_benchmark(folder, line, status)
    with pytest.raises(SystemExit, match="sums"):
        report.main(["sums", "--output", str(folder / "README.md")])
    assert not (folder / "README.md").exists() and not (folder / "results").exists()


def test_what_is_written_by_hand_is_kept(folder):
    text = report.with_part("# Benchmarks\n\nWritten by hand.\n", "first \\1")
    again = report.with_part(text + "\nBelow, too.\n", "second")
    assert "Written by hand." in again and "Below, too." in again
    assert "second" in again and "first" not in again and again.count(report.BEGIN) == 1


def test_every_benchmark_is_found_and_nothing_else():
    names = set(report.benchmark_names(report.FOLDER))
    assert {"data_loading", "inference", "mgfn", "privacy"} <= names
    assert not {"machine", "report", "plain_mgfn"} & names


def test_every_aim_is_about_something_that_was_measured():
    for aim in read_json(report.FOLDER / "aims.json"):
        result = read_json(report.FOLDER / "results" / f"{aim['benchmark']}.json")
        assert aim["key"] in {**result["ratios"], **result["figures"]}, aim


def test_the_document_and_the_same_command_again(folder):
    output = folder / "README.md"
    for words in (["sums", "--", "--rounds", "2"], [], ["--defaults"]):
        assert report.main(["--output", str(output), *words]) == 0
        command = read_json(folder / "results" / "sums.json")["command"]
        assert command.endswith("--rounds 2") == (words != ["--defaults"])
    text = output.read_text()
    assert "| sums | 2 | 2.5 |" in text and "| time | at most 0.1 | **0.123** |" in text
    assert "| never run | 1 | – |" in text
    assert text.count("`python benchmarks/sums.py`") == 1 == text.count("# Benchmarks")
    assert "Machine: a processor, 2 cores." in text
