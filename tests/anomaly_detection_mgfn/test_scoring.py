"""Alignment of clips and frames, metrics against scikit-learn, several videos per pass."""

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from anomaly_detection_mgfn import scoring
from anomaly_detection_mgfn.feature_bags import VideoFeatures, append_magnitude
from anomaly_detection_mgfn.ground_truth import truth_from_labels
from anomaly_detection_mgfn.mgfn import MGFN
from anomaly_detection_mgfn.scoring import anomalous_intervals, frame_scores


def random_videos(n_videos, seed=0):
    """Truths, clip scores (with ties, now and then a clip too many or few), frame labels."""
    rng = np.random.default_rng(seed)
    truths, scores, labels = [], [], []
    for i in range(n_videos):
        n_frames = int(rng.integers(33, 400))
        own = np.zeros(n_frames, np.uint8)
        if i % 2:
            start = int(rng.integers(0, n_frames - 10))
            own[start : start + int(rng.integers(1, 200))] = 1
        n_clips = -(-n_frames // 32) + (0, 0, 1, -1)[i % 4]
        scores.append(rng.random(max(1, n_clips)).round(2).astype(np.float32))
        labels.append(own)
        category = "abc"[i % 3] if i % 2 else "normal"
        truths.append(truth_from_labels(f"video{i}", category, i % 2, own, 32))
    return truths, scores, labels


@pytest.mark.parametrize("n_clips, n_frames", [(2, 64), (2, 33), (3, 64), (1, 20), (1, 40)])
def test_frame_scores(n_clips, n_frames):
    expected = [min(i // 32, n_clips - 1) for i in range(n_frames)]
    for scores in (np.arange(n_clips), np.arange(n_clips)[:, None]):
        np.testing.assert_array_equal(frame_scores(scores, n_frames, 32), expected)


@pytest.mark.parametrize("n_clips, n_frames", [(4, 64), (1, 70), (0, 10), (1, 0)])
def test_more_than_one_clip_apart_names_the_video(n_clips, n_frames):
    """The release stretches scores over a mismatch of any size, without a word."""
    with pytest.raises(scoring.AlignmentError, match="Abuse028"):
        frame_scores(np.zeros(n_clips), n_frames, 32, "Abuse028")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_equal_those_of_scikit_learn_on_frames(seed):
    truths, scores, labels = random_videos(30, seed)
    flat = np.concatenate([frame_scores(s, t.n_frames, 32, t.name) for s, t in zip(scores, truths)])
    truth = np.concatenate(labels)
    metrics = scoring.weighted_scores(scores, truths).metrics()
    precision, recall, _ = precision_recall_curve(truth, flat)
    assert metrics.roc_auc == pytest.approx(roc_auc_score(truth, flat), abs=1e-12)
    assert metrics.pr_auc == pytest.approx(auc(recall, precision), abs=1e-12)
    stepwise = average_precision_score(truth, flat)
    assert metrics.average_precision == pytest.approx(stepwise, abs=1e-12)


def test_category_areas_and_false_alarms():
    truths, scores, labels = random_videos(24)
    frames = [frame_scores(s, t.n_frames, 32) for s, t in zip(scores, truths)]
    found = scoring.category_metrics(scores, truths)
    assert set(found) == {t.category for t in truths if t.label}
    for category, areas in found.items():
        own = [i for i, t in enumerate(truths) if t.label and t.category == category]
        both = [i for i, t in enumerate(truths) if i in own or not t.label]
        for key, members in (("auc_within", own), ("auc", both)):
            flat = (np.concatenate([part[i] for i in members]) for part in (labels, frames))
            assert areas[key] == pytest.approx(roc_auc_score(*flat), abs=1e-12)
        assert areas["n_videos"] == len(own)
    normal = np.concatenate([f for f, t in zip(frames, truths) if not t.label]) >= 0.5
    assert scoring.false_alarm_rate(scores, truths, 0.5) == pytest.approx(normal.mean(), abs=1e-12)
    assert scoring.false_alarm_rate(scores[1::2], truths[1::2], 0.5) is None


@pytest.mark.parametrize("in_bf16", [False, True])
def test_several_videos_per_pass_score_as_one_by_one(in_bf16):
    torch.manual_seed(0)
    net = MGFN(feature_dim=12, dims=(16, 24, 32), depths=(1, 1, 1), dropout=0.5).train()
    rng = np.random.default_rng(0)
    lengths = [1, 29, 3, 30, 28, 1, 7, 30]
    arrays = [append_magnitude(rng.normal(size=(n, 2, 12))) for n in lengths]
    names, offsets = [f"v{i}" for i in range(8)], np.cumsum([0, *lengths])
    videos = VideoFeatures(names, np.concatenate(arrays), offsets)
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        together = scoring.score_videos(net, videos, torch.device("cpu"), clips_per_pass=190)
    assert net.training, "the mode of the network must be as before"
    net.eval()
    for array, scores in zip(arrays, together):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            alone = net(torch.from_numpy(array.swapaxes(0, 1)[None].copy())).scores[0].numpy()
        np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_passes_are_full_and_hardly_padded():
    lengths = np.random.default_rng(0).lognormal(np.log(70), 1, 300).astype(int).clip(1, 4000)
    lengths[7] = 4000
    groups = scoring.group_by_length(lengths, 1024)
    assert sorted(index for group in groups for index in group) == list(range(300))
    for group in groups:
        assert len(group) == 1 or lengths[group].max() * len(group) <= 1024
        assert lengths[group].min() >= 0.9 * lengths[group].max()
    assert len(groups) < 100 and [7] in groups


def test_intervals_and_score_of_a_video():
    scores = np.array([0.9, 0.2, 0.5, 0.8, 0.7, 0.1, 0.6])
    assert anomalous_intervals(scores, 0.5, 1) == [(0, 1), (2, 5), (6, 7)]
    assert anomalous_intervals(scores, 0.5, 2) == [(2, 5)]
    assert anomalous_intervals(scores, 0.95, 1) == []
    assert anomalous_intervals(np.ones(4), 0.5, 1) == [(0, 4)]
    assert scoring.video_score(scores, 3) == pytest.approx(0.8), "the mean of its highest"
    assert scoring.video_score(scores[:1], 3) == pytest.approx(0.9)
