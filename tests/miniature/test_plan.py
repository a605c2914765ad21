"""The plan at full size: attributes, cameras, motions are drawn independently."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from aux_code.miniature import plan

SPLITS = ("train2017", "val2017", "test2017")


def association(a, b) -> tuple[float, float]:
    """Chi-square of two discrete sequences in units of its standard deviation, and Cramer's V."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    strength = (chi2 / (table.sum() * min(a.max(), b.max()))) ** 0.5
    return (chi2 - freedom) / (2 * freedom) ** 0.5, float(strength)


def assert_independent(columns: dict[str, list]) -> None:
    """No pair is further than 5 standard deviations from independence."""
    for one, other in combinations(columns, 2):
        deviation, strength = association(columns[one], columns[other])
        assert deviation < 5, f"{one} depends on {other}: {deviation:.1f} sigma, V {strength:.2f}"


def main_person_columns(videos) -> dict[str, list]:
    """Appearance of the one who acts, and the camera, of each video."""
    names = ("coloured", "feminine", "semi_nude", "face")
    columns = {name: [getattr(v.people[0], name) for v in videos] for name in names}
    return {**columns, "camera": [v.camera for v in videos]}


def test_association_notices_a_weak_dependence():
    rng = np.random.default_rng(3)
    a = rng.random(1000) < 0.5
    b = np.where(rng.random(1000) < 0.3, a, rng.random(1000) < 0.5)
    assert association(a, b)[0] > 5
    assert association(a, rng.random(1000) < 0.5)[0] < 5


@pytest.mark.parametrize("split", SPLITS)
def test_attributes_of_stills_depend_on_nothing(split):
    stills = [s for s in plan.plan_vispr(0) if s.split == split]
    columns = {name: [s.attributes[i] for s in stills] for i, name in enumerate(plan.ATTRIBUTES)}
    portrait = [s.size[0] < s.size[1] for s in stills]
    assert_independent({**columns, "camera": [s.camera for s in stills], "portrait": portrait})


def test_attribute_rates_are_the_same_in_all_splits():
    stills = plan.plan_vispr(0)
    assert Counter(s.split for s in stills) == {"train2017": 1500, "val2017": 500, "test2017": 700}
    for split in SPLITS:
        rates = np.mean([s.attributes for s in stills if s.split == split], axis=0)
        np.testing.assert_allclose(rates, plan.ATTRIBUTE_RATES, atol=0.08)


@pytest.mark.parametrize("split", ("train", "test"))
def test_actions_do_not_depend_on_appearance_or_scene(split):
    clips = [v for v in plan.plan_ucf101(0) if v.split == split]
    assert len(clips) == {"train": 960, "test": 240}[split]
    assert_independent({**main_person_columns(clips), "action": [v.action for v in clips]})


@pytest.mark.parametrize("split", ("train", "test"))
def test_anomalies_do_not_depend_on_appearance_or_scene(split):
    videos = [v for seed in range(4) for v in plan.plan_ucf_crime(seed) if v.split == split]
    columns = main_person_columns(videos)
    assert_independent({**columns, "anomalous": [bool(v.events) for v in videos]})
    assert_independent({**columns, "kind": [v.events[0][2] if v.events else "" for v in videos]})


SURVEILLANCE = (plan.plan_ucf_crime, plan.plan_xd_violence, plan.plan_shanghaitech)


@pytest.mark.parametrize("make", SURVEILLANCE)
@pytest.mark.parametrize("scale", (0.05, 1.0))
def test_surveillance_videos_have_both_kinds_and_odd_lengths(make, scale):
    videos = make(0, scale)
    for split in ("train", "test"):
        labels = [bool(v.events) for v in videos if v.split == split]
        assert sum(labels) >= 2 and labels.count(False) >= 2
    assert all(v.n_frames % 16 for v in videos)
    assert len({v.file for v in videos}) == len(videos)


@pytest.mark.parametrize("make", SURVEILLANCE)
def test_events_lie_apart_inside_the_video(make):
    for video in make(1):
        ends = [0]
        for start, end, _ in video.events:
            assert 20 <= end - start <= 120
            assert start >= ends[-1] + (50 if len(ends) > 1 else 12)
            ends.append(end)
        assert ends[-1] < video.n_frames


def test_every_anomaly_kind_is_in_training_and_test():
    videos = plan.plan_ucf_crime(0)
    for split in ("train", "test"):
        kinds = Counter(v.events[0][2] for v in videos if v.split == split and v.events)
        assert set(kinds) == set(plan.ANOMALIES)
        assert max(kinds.values()) - min(kinds.values()) <= 1


def test_a_small_vispr_has_every_attribute_in_each_split():
    stills = plan.plan_vispr(5, 0.005)
    for split in SPLITS:
        rows = np.array([s.attributes for s in stills if s.split == split])
        assert (rows.sum(axis=0) >= 2).all() and ((~rows).sum(axis=0) >= 2).all()


def test_groups_do_not_cross_the_split():
    groups = {"train": set(), "test": set()}
    for video in plan.plan_ucf101(0):
        groups[video.split].add(video.file.split("_")[-2])
    assert not groups["train"] & groups["test"]


def test_another_seed_is_another_benchmark():
    assert plan.plan_vispr(0) == plan.plan_vispr(0)
    assert [s.attributes for s in plan.plan_vispr(0)] != [s.attributes for s in plan.plan_vispr(1)]
