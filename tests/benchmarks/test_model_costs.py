"""The costs that the paper's networks are known to have, and the benchmark's line of JSON."""

import pytest
import torch
from torch import nn

from benchmarks import model_costs
from benchmarks.model_costs import CASES, Case, gflop, n_parameters, peak_memory


@pytest.mark.parametrize(
    ("name", "parameters", "expected", "training"),
    [("fa_unet++", 13.90e6, 24.6, False), ("ft_i3d", None, 32.8, False),
     ("fb_r50", None, 8.2, False), ("mgfn", 28.65e6, 175.5, True)],
)  # fmt: skip
def test_known_costs(name, parameters, expected, training):
    assert gflop(CASES[name], training) == pytest.approx(expected, rel=0.01)
    assert parameters is None or n_parameters(CASES[name]) == pytest.approx(parameters, rel=0.01)


def test_peak_memory_is_what_a_pass_holds_at_once():
    """ReLUs that free what they read: two maps at a time without gradient, else all of them."""
    n_bytes = 4 * 1000 * 1000
    case = Case(lambda: nn.Sequential(*[nn.ReLU() for _ in range(4)]), (1000, 1000))
    assert peak_memory(case, training=False) == pytest.approx(2 * n_bytes, rel=0.01)
    assert peak_memory(case, training=True) >= 4 * n_bytes


def test_training_of_one_unit_with_a_head():
    """A batch norm over vectors has no statistics in a batch of one clip."""

    def build() -> nn.Module:
        pool = (nn.AdaptiveAvgPool1d(1), nn.Flatten())
        return nn.Sequential(nn.Conv1d(3, 8, 1), *pool, nn.BatchNorm1d(8))

    case = Case(build, (1, 3, 50))
    assert peak_memory(case, training=True) > peak_memory(case, training=False) > 0


def test_runs_and_reports(report_of, monkeypatch):
    monkeypatch.setitem(model_costs.CASES, "mgfn", Case(lambda: nn.Linear(8, 4), (5, 8)))
    figures = report_of(model_costs, "--networks mgfn")[1]
    assert figures["mgfn_parameters_million"] == 36e-6
    assert figures["mgfn_gflop"] == 2 * 5 * 8 * 4 / 1e9
    assert figures["mgfn_training_gflop"] == pytest.approx(3 * figures["mgfn_gflop"])
    assert 0 < figures["mgfn_peak_mib"] < figures["mgfn_training_peak_mib"]
    assert torch.is_grad_enabled()
