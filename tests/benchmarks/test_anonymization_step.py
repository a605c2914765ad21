"""The benchmark of the anonymization step runs small and reports what it says; its plain version is the same step."""

import argparse
import json

import pytest

from benchmarks import anonymization_step
from benchmarks.anonymization_step import OurSteps, PlainSteps, batch_sizes, build_batches


def test_runs_and_reports(capsys):
    arguments = ["--sizes", "48", "--videos", "1", "--frames", "8", "--images", "2", "--rounds", "1", "--no-memory"]
    assert anonymization_step.main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "anonymization_step"
    assert report["ratios"]["pair_fp32"] > 0 and "memory_share" not in report["figures"]


def test_the_batch_that_fits_follows_from_two_peaks(monkeypatch, capsys):
    peaks = {2: 4e9, 4: 6e9}
    monkeypatch.setattr(anonymization_step, "peak_bytes", lambda kind, chunk, sizes: peaks[sizes[1]])
    options = argparse.Namespace(videos=2, frames=16, images=4)
    fits = anonymization_step.fitting_batches(112, options, "bf16")
    # a video adds 1 GB at 112 pixels, 4 GB at 224; two videos took 16 GB there, so that 8 GB are not theirs
    assert fits == {"gb_per_video": 4.0, "videos_in_24_gb": 3.0, "videos_in_141_gb": 29.0}


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
