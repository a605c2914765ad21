"""The benchmark of the anonymization step runs small and reports what it says; its plain version is the same step."""

import argparse
import json

import pytest

from benchmarks import anonymization_step
from benchmarks.anonymization_step import OurSteps, PlainSteps, batch_sizes, build_batches


def test_runs_and_reports(capsys):
    arguments = ["--sizes", "48", "--videos", "1", "--frames", "8", "--images", "2", "--rounds", "1"]
    assert anonymization_step.main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "anonymization_step"
    assert report["ratios"]["pair_fp32"] > 0 and 0 < report["figures"]["memory_share"]
    assert report["figures"]["videos_in_141_gb"] >= report["figures"]["videos_in_24_gb"]


def test_both_versions_start_from_the_same_losses():
    clips, images = build_batches(48, 2, 8, 2)
    plain, ours = PlainSteps(clips, images), OurSteps(clips, images, "fp32", 0)
    utility, budget = plain.losses()
    named = anonymization_step.step_anonymizer(ours.networks, ours.clips, ours.images, ours.objective, ours.updaters.fa)
    assert named["step1/utility"] == pytest.approx(utility.item(), rel=1e-3)
    assert named["step1/budget"] == pytest.approx(budget.item(), rel=1e-3)


def test_further_sizes_get_a_batch_of_about_as_many_pixels():
    options = argparse.Namespace(sizes=[112, 224], videos=2, frames=16, images=4)
    assert batch_sizes(112, options) == (112, 2, 16, 4)
    assert batch_sizes(224, options) == (224, 1, 8, 2)
