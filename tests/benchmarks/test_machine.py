"""What the benchmarks share does what it says."""

import json
import os

import pytest
import torch

from benchmarks import machine


def child_functions(answer: int) -> dict:
    """Runs in the child."""
    functions = {"answer": lambda: answer, "pid": os.getpid, "peak": machine.peak_mib}
    return {**functions, "end": lambda: os._exit(1)}


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


def test_rounds_alternate_and_medians_are_medians():
    order = []

    def measure(name, seconds):
        return lambda: order.append(name) or seconds.pop(0)

    measures = {"a": measure("a", [3, 1, 2]), "b": measure("b", [5, 5, 9])}
    seconds = machine.rounds_in_turns(measures, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert machine.medians(seconds) == {"a": 2, "b": 5}


def test_matrix_product_counts_its_work_and_takes_time():
    product = machine.MatrixProduct(torch.float32, size=64)
    assert product.gflop == 2 * 64**3 / 1e9 and product() > 0
    torch.testing.assert_close(product.output, product.left @ product.right)


def test_line_of_json_and_machine():
    line = json.loads(machine.json_line("x", {"a": 2.0}, {}))
    assert line == {"benchmark": "x", "ratios": {"a": 2.0}, "figures": {}}
    assert f"{torch.get_num_threads()} threads" in machine.describe_machine()
