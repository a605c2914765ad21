"""What is drawn agrees with the plan: people well inside, faces, figures, events."""

from dataclasses import replace

import numpy as np
import pytest

from aux_code.miniature import plan
from aux_code.miniature.drawing import draw_frames
from aux_code.miniature.events import clip_story, surveillance_story
from aux_code.miniature.looks import PARTIAL_FACES, draw_look
from aux_code.miniature.motions import MOTIONS
from aux_code.miniature.people import Placement, skeleton
from aux_code.miniature.stills import arrange, choose_faces, render_still


@pytest.mark.parametrize("complete", (False, True))
@pytest.mark.parametrize("partial", (False, True))
def test_faces_show_what_is_planned_and_nothing_else(complete, partial):
    rng = np.random.default_rng(0)
    for n in range(1 + (complete and partial), 5):
        for _ in range(20):
            faces = choose_faces(rng, n, complete, partial)
            assert len(faces) == n
            assert ("front" in faces) == complete
            assert any(face in PARTIAL_FACES for face in faces) == partial


@pytest.mark.parametrize("pair", (False, True))
@pytest.mark.parametrize("group", (False, True))
def test_figures_hold_hands_and_gather_as_planned(pair, group):
    rng = np.random.default_rng(1)
    for _ in range(30):
        figures = arrange(rng, (True, False, False, False, False, pair, group))
        assert sum(abs(figure.hold) for figure in figures) == (2 if pair else 0)
        if group:
            assert len(figures) in (3, 4)
        if pair or group:
            assert np.diff([f.x for f in figures]).max() < 0.25
        elif len(figures) > 1:
            assert np.diff([f.x for f in figures]).min() > 0.14


def test_skin_classes_do_not_overlap_before_lighting_and_women_show_a_cue():
    rng = np.random.default_rng(2)
    for _ in range(200):
        look = draw_look(rng, False, True, False, "front")
        assert look.long_hair or look.bottom_kind in ("skirt", "dress")


def test_people_of_stills_lie_inside_the_evaluation_crop():
    """The middle of every head-to-foot box lies well inside the central 0.8 of the picture."""
    for still in plan.plan_vispr(0)[:60]:
        w, h = still.size
        for x0, y0, x1, y1 in render_still(still, 0).boxes:
            assert 0.12 * w < (x0 + x1) / 2 < 0.88 * w
            assert 0.04 * h < y0 < y1 < 0.97 * h


@pytest.mark.parametrize("motion", sorted(MOTIONS))
def test_no_motion_sinks_below_the_floor(motion):
    for t in range(60):
        bones = skeleton(MOTIONS[motion](t, 0.7), Placement(0.0, 0.0, 100.0, 1, "side"), 1.0)
        lowest = max(p[1] for limb in bones.legs + bones.arms for p in limb)
        assert lowest < 30  # a lying arm may reach below the line of the feet
        assert np.isfinite(lowest)


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
    assert still < 0.01
    assert change.pop("Wave") > 1.2 * still  # one arm only
    assert min(change.values()) > 4 * still, change


@pytest.mark.parametrize("kind", plan.ANOMALIES)
def test_an_event_fills_its_annotated_interval(kind):
    """During the event somebody does what nobody does before and after it."""
    unusual = {"fight", "kick", "fall", "rise", "run", "strike", "grab"}
    videos = [v for v in plan.plan_ucf_crime(0) if v.events and v.events[0][2] == kind]
    for video in videos[:8]:
        story = surveillance_story(video, np.random.default_rng(video.index))
        for actor in story.actors:
            assert actor.track[0].start == pytest.approx(0)
            assert actor.track[-1].end >= video.n_frames
            for one, other in zip(actor.track, actor.track[1:]):
                assert other.start == pytest.approx(one.end)
                assert other.x0 == pytest.approx(one.x1, abs=3)
            for segment in actor.track:
                if segment.motion in unusual:
                    middle = (segment.start + segment.end) / 2
                    assert any(start <= middle < end + 1 for start, end, _ in video.events), segment
        for start, end, _ in video.events:
            segments = [s for actor in story.actors for s in actor.track if s.motion in unusual]
            assert any(s.start < end and s.end > start for s in segments)


def test_normal_videos_show_ordinary_life_only():
    for video in [v for v in plan.plan_ucf_crime(0) if not v.events][:20]:
        story = surveillance_story(video, np.random.default_rng(video.index))
        assert not story.blasts
        motions = {s.motion for a in story.actors for s in a.track}
        assert motions <= {"walk", "stand", "wave", "crouch"}


def test_appearance_does_not_change_the_motion():
    """The same plan with other people gives the same tracks of the main figure in most respects."""
    clip = next(v for v in plan.plan_ucf101(0) if v.action == "Fight")
    others = tuple(replace(p, coloured=not p.coloured) for p in clip.people)
    clips = (clip, replace(clip, people=others))
    one, other = (clip_story(c, np.random.default_rng(4)).actors for c in clips)
    assert [[s.motion for s in a.track] for a in one] == [
        [s.motion for s in a.track] for a in other
    ]
