"""The inference benchmark runs small, agrees with the plain version and ends with one line of
JSON."""

import json

from aux_code.devices import supports_bf16
from benchmarks import inference


def test_runs_and_reports(capsys):
    assert inference.main(["--size", "32", "--rounds", "1", "--product", "128"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "inference"
    keys = {"fa_fp32", "fa_bf16", "i3d_fp32", "i3d_bf16"}
    assert set(report["ratios"]) == keys and min(report["ratios"].values()) > 0
    figures = report["figures"]
    assert all(figures[f"ceiling_share_{key}"] > 0 and figures[f"gflops_{key}"] > 0 for key in keys)
    assert figures["relative_error_fp32"] < 1e-5
    # frames of 32 pixels with random weights: 0.011 was measured; the bound of 0.01 is for full
    # size
    assert (figures["relative_error_bf16"] > 1e-5) == supports_bf16("cpu") and figures[
        "relative_error_bf16"
    ] < 0.03
