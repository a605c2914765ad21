"""What the benchmarks share does what it says; report.py writes what they say into the README."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from aux_code.checkpoints import read_json
from benchmarks import machine, report


def child_functions(answer: int) -> dict:
    own = {"pid": os.getpid, "peak": machine.peak_mib}
    return {**own, "answer": lambda: answer, "end": lambda: os._exit(1)}


def test_a_child_process_answers_for_itself_with_its_own_memory():
    ours = torch.ones(400 * 2**20, dtype=torch.uint8)
    with machine.ChildProcess(child_functions, 42) as child:
        assert child.call("answer") == 42 and child.call("pid") not in (os.getpid(), None)
        assert child.call("peak") < machine.peak_mib() - 300
        with pytest.raises(RuntimeError, match="end"):
            child.call("end")
    assert machine.peak_mib() > ours.numel() / 2**20


def test_options_are_typed_and_threads_are_set_at_once():
    options = {"size": (8, "pixels"), "formats": (("a", "b"), "which"), "threads": machine.THREADS}
    before = torch.get_num_threads()
    try:
        found = machine.parse_options("Text.", ["--size", "4", "--threads", "1"], options)
        assert (found.size, found.formats, torch.get_num_threads()) == (4, ["a", "b"], 1)
    finally:
        torch.set_num_threads(before)
    with pytest.raises(SystemExit):
        machine.parse_options("Text.", ["--formats", "c"], options)


def test_rounds_alternate_medians_are_medians_and_a_matrix_product_counts_its_work():
    order, durations = [], {"a": [3, 1, 2], "b": [5, 5, 9]}

    def measure(name):
        order.append(name)
        return durations[name].pop(0)

    seconds = machine.rounds_in_turns({name: partial(measure, name) for name in "ab"}, 3)
    assert order == [*"abbaab"] and machine.medians(seconds) == {"a": 2, "b": 5}
    product = machine.MatrixProduct(torch.float32, size=64)
    assert product.gflop == 2 * 64**3 / 1e9 and product() > 0
    torch.testing.assert_close(product.output, product.left @ product.right)


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


def test_a_failed_benchmark_writes_nothing(folder):
    for line, status in (("no json", 0), (json.dumps(LINE), 1)):
        write_benchmark(folder, line, status)
        with pytest.raises(SystemExit, match="sums"):
            report.main(["sums", "--output", str(folder / "README.md")])
        assert not (folder / "README.md").exists() and not (folder / "results").exists()


def test_what_is_written_by_hand_is_kept():
    text = report.with_part("# Benchmarks\n\nWritten by hand.\n", "first \\1")
    again = report.with_part(text + "\nBelow, too.\n", "second")
    assert "Written by hand." in again and "Below, too." in again
    assert "second" in again and "first" not in again and again.count(report.BEGIN) == 1


def test_every_benchmark_is_found_and_every_aim_is_about_something_that_was_measured():
    names = set(report.benchmark_names(report.FOLDER))
    assert {"data_loading", "inference", "mgfn", "privacy"} <= names
    assert not {"machine", "report", "plain_mgfn"} & names
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
