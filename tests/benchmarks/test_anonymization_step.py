"""The benchmark of the anonymization step runs small; its plain version is the same step."""

import argparse

import pytest
import torch

from benchmarks import anonymization_step
from benchmarks.anonymization_step import OurSteps, PlainSteps, batch_sizes, build_batches


def test_runs_and_reports(report_of):
    small = "--sizes 48 --videos 1 --frames 8 --images 2 --rounds 1 --no-memory"
    ratios, figures = report_of(anonymization_step, small)
    assert ratios["pair_fp32"] == ratios["pair_fp32_48"]
    assert figures["pair_fp32_48_against_no_grad"] > 0 and "memory_share" not in figures


def test_memory_is_a_share_of_the_plain_versions_on_whole_clips(monkeypatch):
    peaks = {"plain": 8e9, "fp32": 4e9, "bf16": 3e9}

    def measured(kind, chunk, sizes):
        return peaks[kind] * sizes[2] / 16

    monkeypatch.setattr(anonymization_step, "peak_bytes", measured)
    sizes = {"sizes": [112, 224], "videos": 2, "frames": 16, "images": 4}
    options = argparse.Namespace(**sizes, recompute_chunk=16)
    expected = {"memory_share_fp32_224": 0.5, "memory_share_bf16_224": 0.375, "plain_gb_224": 8.0}
    assert anonymization_step.compare_memory(224, options, list(peaks)) == expected


def test_the_batch_that_fits_follows_from_two_peaks(monkeypatch):
    seen = []

    def peak(kind: str, chunk: int, sizes: tuple[int, int, int, int]) -> float:
        seen.append((kind, chunk, sizes))
        return {1: 4e9, 2: 4.5e9}[sizes[1]]

    monkeypatch.setattr(anonymization_step, "peak_bytes", peak)
    fits = anonymization_step.fitting_batches("bf16")
    assert seen == [("bf16", 16, (224, n_videos, 16, 12)) for n_videos in (1, 2)]
    # of 21.6 and 126.9 GB, 3.5 are taken without a video
    expected = {"videos_in_24_gb": 36, "videos_in_141_gb": 246}
    assert fits == expected | {"gb_per_video": 0.5, "gb_without_videos": 3.5}


def test_the_corner_leaves_the_batch_as_it_was():
    clips, images = build_batches((96, 1, 8, 2))
    ours, before = OurSteps(clips, images, "fp32", 16), clips.clips.clone()
    anonymization_step.take_on_corner(ours)
    assert ours.clips is clips and ours.images is images and torch.equal(clips.clips, before)
    assert all(updater.n_updates == 1 for updater in ours.updaters[:3])


def test_both_versions_start_from_the_same_losses():
    clips, images = build_batches((48, 2, 8, 2))
    plain, ours = PlainSteps(clips, images), OurSteps(clips, images, "fp32", 0)
    utility, budget = plain.losses()
    named = ours.step_1()
    assert named["step1/utility"] == pytest.approx(utility.item(), rel=1e-3)
    assert named["step1/budget"] == pytest.approx(budget.item(), rel=1e-3)


def test_further_sizes_get_a_batch_of_about_as_many_pixels():
    options = argparse.Namespace(sizes=[112, 224], videos=2, frames=16, images=4)
    assert batch_sizes(112, options, whole_clips=False) == (112, 2, 16, 4)
    assert batch_sizes(224, options, whole_clips=False) == (224, 1, 8, 2)
    assert batch_sizes(224, options, whole_clips=True) == (224, 1, 16, 2)
