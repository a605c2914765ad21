"""The plan draws everything independently, and what is drawn agrees with it."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image, ImageDraw

from aux_code.miniature import plan
from aux_code.miniature.drawing import draw_frames
from aux_code.miniature.events import clip_story, surveillance_story
from aux_code.miniature.looks import PARTIAL_FACES, draw_look
from aux_code.miniature.motions import MOTIONS
from aux_code.miniature.people import Placement, paint_person, skeleton
from aux_code.miniature.render import DATA_SETS
from aux_code.miniature.stills import arrange, choose_faces, render_still


def association(a, b) -> float:
    """How far chi-square of two discrete sequences is from that of independent ones, as standard
    deviations of a normal variable (Wilson and Hilferty's transformation)."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    variance = 2 / (9 * freedom)
    return ((chi2 / freedom) ** (1 / 3) - 1 + variance) / variance**0.5


def assert_independent(columns: dict[str, list]) -> None:
    """No pair is further than 4 standard deviations from independence."""
    for one, other in combinations(columns, 2):
        deviation = association(columns[one], columns[other])
        assert deviation < 4, f"{one} depends on {other}: {deviation:.1f} sigma"


def main_person_columns(videos) -> dict[str, list]:
    """Appearance of the one who acts, and the camera, of each video."""
    names = ("coloured", "feminine", "semi_nude", "face", "sporty")
    columns = {name: [getattr(v.people[0], name) for v in videos] for name in names}
    return {**columns, "camera": [v.camera for v in videos]}


def test_association_notices_a_weak_dependence():
    rng = np.random.default_rng(3)
    a = rng.random(1000) < 0.5
    b = np.where(rng.random(1000) < 0.3, a, rng.random(1000) < 0.5)
    assert association(a, b) > 4 > association(a, rng.random(1000) < 0.5)


@pytest.mark.parametrize(("split", "n"), (("train2017", 1500), ("val2017", 500), ("test2017", 700)))
def test_attributes_of_stills_depend_on_nothing_and_are_as_frequent_in_all_splits(split, n):
    stills, again, others, few = (
        [s for s in plan.plan_vispr(seed, scale) if s.split == split]
        for seed, scale in ((0, 1.0), (0, 1.0), (1, 1.0), (5, 0.005))
    )
    rows = np.array([s.attributes for s in stills])
    columns = dict(zip(plan.ATTRIBUTES, rows.T))
    portrait = [s.size[0] < s.size[1] for s in stills]
    assert_independent({**columns, "camera": [s.camera for s in stills], "portrait": portrait})
    np.testing.assert_allclose(rows.mean(axis=0), plan.ATTRIBUTE_RATES, atol=0.08)
    assert len(stills) == n and stills == again
    assert not np.array_equal(rows, [s.attributes for s in others])
    rows = np.array([s.attributes for s in few])
    assert (rows.sum(axis=0) >= 2).all() and ((~rows).sum(axis=0) >= 2).all(), "however few"


@pytest.mark.parametrize("split", ("train", "test"))
def test_actions_and_anomalies_do_not_depend_on_appearance_or_scene(split):
    clips = [v for v in plan.plan_ucf101(0) if v.split == split]
    assert len(clips) == {"train": 960, "test": 240}[split]
    assert_independent({**main_person_columns(clips), "action": [v.action for v in clips]})
    videos = [v for seed in range(4) for v in plan.plan_ucf_crime(seed) if v.split == split]
    columns = main_person_columns(videos)
    assert_independent({**columns, "anomalous": [bool(v.events) for v in videos]})
    assert_independent({**columns, "kind": [v.events[0][2] if v.events else "" for v in videos]})


@pytest.mark.parametrize("name", ("ucf_crime", "xd_violence", "shanghaitech"))
def test_surveillance_videos_have_both_kinds_odd_lengths_and_events_apart(name):
    make = DATA_SETS[name].plan
    for videos in (make(0, 0.05), make(0)):
        for split in ("train", "test"):
            labels = [bool(v.events) for v in videos if v.split == split]
            assert sum(labels) >= 2 and labels.count(False) >= 2
        assert all(v.n_frames % 16 for v in videos)
        assert len({v.file for v in videos}) == len(videos)
    for video in make(1):
        ends = [0]
        for start, end, _ in video.events:
            assert 20 <= end - start <= 120
            assert start >= ends[-1] + (50 if len(ends) > 1 else 12)
            ends.append(end)
        assert ends[-1] < video.n_frames


def test_every_anomaly_kind_is_on_both_sides_of_the_split_and_no_group_is():
    for split in ("train", "test"):
        videos = [v for v in plan.plan_ucf_crime(0) if v.split == split and v.events]
        kinds = Counter(v.events[0][2] for v in videos)
        assert set(kinds) == set(plan.ANOMALIES)
        assert max(kinds.values()) - min(kinds.values()) <= 1
    groups = {(video.file.split("_")[-2], video.split) for video in plan.plan_ucf101(0)}
    assert len(groups) == len(dict(groups))


@pytest.mark.parametrize(("first", "second"), product((False, True), repeat=2))
def test_faces_and_figures_are_those_that_are_planned(first, second):
    rng = np.random.default_rng(0)
    for n in [n for n in range(1 + (first and second), 5) for _ in range(20)]:
        faces = choose_faces(rng, n, first, second)
        assert len(faces) == n and ("front" in faces) == first
        assert any(face in PARTIAL_FACES for face in faces) == second
    for _ in range(30):  # a pair that holds hands, a group that gathers
        figures = arrange(rng, (True, False, False, False, False, first, second))
        gaps = np.diff([f.x for f in figures])
        assert sum(abs(figure.hold) for figure in figures) == (2 if first else 0)
        assert not second or len(figures) in (3, 4)
        assert gaps.max() < 0.25 if first or second else (gaps > 0.14).all()


def test_women_show_a_cue():
    rng = np.random.default_rng(2)
    looks = [draw_look(rng, False, True, False, "front", False) for _ in range(200)]
    assert all(look.long_hair or look.bottom_kind in ("skirt", "dress") for look in looks)


def test_a_ball_shows_in_every_view_and_is_the_only_difference():
    for view, motion in product(("front", "side", "back"), ("stand", "run", "wave")):
        drawn = []
        for sporty in (False, True):
            look = draw_look(np.random.default_rng(5), False, False, False, "front", sporty)
            canvas = Image.new("RGB", (128, 128))
            place, pose = Placement(64.0, 120.0, 80.0, 1, view), MOTIONS[motion](3, 0.7)
            paint_person(ImageDraw.Draw(canvas), look, place, pose)
            drawn.append(np.asarray(canvas).astype(int))
        changed = (drawn[0] != drawn[1]).any(axis=2)
        y, x = skeleton(pose, place, look.build).arms[1][2][::-1]
        rows, columns = np.nonzero(changed)
        assert changed.sum() > 60 and np.hypot(rows - y, columns - x).max() < 0.085 * 80 + 2


def test_people_of_stills_lie_inside_the_evaluation_crop():
    for still in plan.plan_vispr(0)[:60]:
        w, h = still.size
        for x0, y0, x1, y1 in render_still(still, 0).boxes:  # a raised hand may touch the edge
            assert 0.12 * w < (x0 + x1) / 2 < 0.88 * w and 0 < y0 < y1 < 0.97 * h


@pytest.mark.parametrize("motion", sorted(MOTIONS))
def test_no_motion_sinks_below_the_floor(motion):
    for t in range(60):
        bones = skeleton(MOTIONS[motion](t, 0.7), Placement(0.0, 0.0, 100.0, 1, "side"), 1.0)
        lowest = max(p[1] for limb in bones.legs + bones.arms for p in limb)
        assert np.isfinite(lowest) and lowest < 30, "a lying arm may reach below the feet's line"


def _largest_change(clip) -> float:
    """Share of pixels in which some frame differs from the first, without by-standers and lamps."""
    rng = np.random.default_rng(clip.index)
    story = clip_story(clip, rng)
    story.actors, story.lamps = story.actors[: 2 if clip.action == "Fight" else 1], []
    drawn = draw_frames(story, clip.n_frames, clip.camera, 0, rng)
    frames = np.stack([frame.pixels for frame in drawn]).astype(int)
    return float((np.abs(frames - frames[0]).mean(axis=3) > 16).any(axis=0).mean())


def test_every_action_moves_more_than_standing():
    clips = plan.plan_ucf101(0)
    some = {action: [v for v in clips if v.action == action][:8] for action in plan.ACTIONS}
    change = {action: np.mean([_largest_change(v) for v in own]) for action, own in some.items()}
    still = change.pop("Stand")
    assert still < 0.01 and change.pop("Wave") > 1.2 * still, "one arm only"
    assert min(change.values()) > 4 * still, change


@pytest.mark.parametrize("kind", plan.ANOMALIES)
def test_an_event_fills_its_annotated_interval(kind):
    """During the event somebody does what nobody does before and after it."""
    unusual = {"fight", "kick", "fall", "rise", "run", "strike", "grab"}
    videos = [v for v in plan.plan_ucf_crime(0) if v.events and v.events[0][2] == kind]
    for video in videos[:8]:
        story = surveillance_story(video, np.random.default_rng(video.index))
        for track in (actor.track for actor in story.actors):
            assert track[0].start == pytest.approx(0) and track[-1].end >= video.n_frames
            for one, other in zip(track, track[1:]):
                assert other.start == pytest.approx(one.end)
                assert other.x0 == pytest.approx(one.x1, abs=3)
        segments = [s for actor in story.actors for s in actor.track if s.motion in unusual]
        for middle in ((segment.start + segment.end) / 2 for segment in segments):
            assert any(start <= middle < end + 1 for start, end, _ in video.events)
        for start, end, _ in video.events:
            assert any(s.start < end and s.end > start for s in segments)


def test_normal_videos_show_ordinary_life_only():
    for video in [v for v in plan.plan_ucf_crime(0) if not v.events][:20]:
        story = surveillance_story(video, np.random.default_rng(video.index))
        motions = {s.motion for a in story.actors for s in a.track}
        assert not story.blasts and motions <= {"walk", "stand", "wave", "crouch"}


def test_appearance_does_not_change_the_motion():
    clip = next(v for v in plan.plan_ucf101(0) if v.action == "Fight")
    others = tuple(replace(p, coloured=not p.coloured) for p in clip.people)
    clips = (clip, replace(clip, people=others))
    one, other = (clip_story(c, np.random.default_rng(4)).actors for c in clips)
    for first, second in zip(one, other, strict=True):
        assert [s.motion for s in first.track] == [s.motion for s in second.track]
