"""What the benchmarks share does what it says."""

import json
import os

import pytest
import torch

from benchmarks import machine


def child_functions(answer: int) -> dict:
    """Runs in the child."""
    return {
        "answer": lambda: answer,
        "pid": os.getpid,
        "variable": lambda: os.environ.get("TED_SPAD_OF_THE_CHILD"),
        "peak": machine.peak_mib,
        "end": lambda: os._exit(1),
    }


def test_a_child_process_answers_from_its_own_process_and_environment():
    environment = {"TED_SPAD_OF_THE_CHILD": "7"}
    with machine.ChildProcess(child_functions, 42, environment=environment) as child:
        assert child.call("answer") == 42 and child.call("pid") not in (os.getpid(), None)
        assert child.call("variable") == "7" and "TED_SPAD_OF_THE_CHILD" not in os.environ
        with pytest.raises(RuntimeError, match="end"):
            child.call("end")


def test_peak_memory_of_a_child_is_its_own():
    ours = torch.ones(400 * 2**20, dtype=torch.uint8)
    with machine.ChildProcess(child_functions, 42) as child:
        assert child.call("peak") < machine.peak_mib() - 300
    assert machine.peak_mib() > ours.numel() / 2**20


def test_rounds_alternate_and_medians_are_medians():
    order = []

    def measure(name, seconds):
        return lambda: order.append(name) or seconds.pop(0)

    seconds = machine.rounds_in_turns(
        {"a": measure("a", [3, 1, 2]), "b": measure("b", [5, 5, 9])}, 3
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert machine.medians(seconds) == {"a": 2, "b": 5}


def test_matrix_product_counts_its_work_and_takes_time():
    product = machine.MatrixProduct(torch.float32, size=64)
    assert product.gflop == 2 * 64**3 / 1e9 and product() > 0
    torch.testing.assert_close(product.output, product.left @ product.right)


def test_line_of_json_and_machine():
    assert json.loads(machine.json_line("x", {"a": 2.0}, {})) == {
        "benchmark": "x",
        "ratios": {"a": 2.0},
        "figures": {},
    }
    assert f"{torch.get_num_threads()} threads" in machine.describe_machine()
