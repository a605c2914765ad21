"""From the network to clip and frame scores, metrics and intervals, each video on its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_detection_mgfn.feature_bags import VideoFeatures
from anomaly_detection_mgfn.ground_truth import VideoTruth
from aux_code.devices import without_tf32
from aux_code.errors import UserError
from aux_code.metrics import RankingMetrics, ranking_metrics


class AlignmentError(UserError, ValueError):
    """A video's number of clips does not fit its number of frames."""


def align_clip_scores(
    clip_scores: np.ndarray, n_frames: int, frames_per_feature: int, name: str = ""
) -> np.ndarray:
    """Clip scores cut or completed to the ceil(n_frames / frames_per_feature) clips of a video: one
    surplus clip is dropped, one missing clip takes the last score.

    Raises:
        AlignmentError: the counts differ by more than one clip; the message names the video.
    """
    scores = np.asarray(clip_scores).reshape(-1)  # (n_clips,)
    expected = -(-n_frames // frames_per_feature)
    if n_frames < 1 or len(scores) == 0 or abs(len(scores) - expected) > 1:
        raise AlignmentError(
            f"video '{name}': {len(scores)} clip scores do not fit {n_frames} frames "
            f"({expected} clips of {frames_per_feature}); extract this video's features again"
        )
    return np.append(scores, scores[-1])[:expected]


def frame_scores(
    clip_scores: np.ndarray, n_frames: int, frames_per_feature: int, name: str = ""
) -> np.ndarray:
    """Scores (n_clips,) or (n_clips, 1) of clips that stand for `frames_per_feature` frames each,
    repeated and cut to the video's n_frames (paper 4): (n_frames,). `name` is for the message.

    Raises:
        AlignmentError: see `align_clip_scores`.
    """
    aligned = align_clip_scores(clip_scores, n_frames, frames_per_feature, name)
    return np.repeat(aligned, frames_per_feature)[:n_frames]


MAX_PADDING = 0.1
"""Videos share a pass where at most this share of the longest is padding (ours)."""


def group_by_length(lengths: np.ndarray, rows_per_pass: int) -> list[list[int]]:
    """Indices of the videos of `lengths` (V,) rows that share a pass, the longest first; at most
    `rows_per_pass` with the padding, but for a longer video, which has a pass of its own."""
    groups: list[list[int]] = []
    longest = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        fits = groups and (len(groups[-1]) + 1) * longest <= rows_per_pass
        if fits and lengths[index] >= (1 - MAX_PADDING) * longest:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = int(lengths[index])
    return groups


@contextmanager
def _scoring(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, in fp32 but for autocast; the network gets back the mode
    that it had."""
    mode = net.training
    net.eval()
    with torch.inference_mode(), without_tf32():
        yield
    net.train(mode)


def score_bags(net: nn.Module, bags: Tensor, clips_per_pass: int) -> Tensor:
    """Scores (V, S) float32, on the CPU, of bags (V, n_crops, S, F + 1) on the network's device;
    at most `clips_per_pass` segments (times crops) in one pass."""
    n_bags = max(1, clips_per_pass // (bags.shape[1] * bags.shape[2]))
    with _scoring(net):
        return torch.cat([net(part).scores.float() for part in bags.split(n_bags)]).cpu()


def score_videos(
    net: nn.Module, videos: VideoFeatures, device: torch.device, clips_per_pass: int
) -> list[np.ndarray]:
    """Clip scores of V whole videos by MGFN on `device`, several of similar length per pass: V
    arrays (n_clips,) float32 in [0, 1]. Padding changes no score.

    A pass takes at most `clips_per_pass` clips (times crops); one video is never split.
    """
    lengths, (n_crops, width) = videos.lengths(), videos.data.shape[1:]
    scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(videos.names)
    with _scoring(net):
        for group in group_by_length(lengths, clips_per_pass // n_crops):
            own = torch.from_numpy(lengths[group])
            bags = torch.zeros(len(group), n_crops, int(own.max()), width)
            for bag, index in zip(bags, group, strict=True):
                bag[:, : lengths[index]] = torch.from_numpy(videos.bag(index))
            padded = own.to(device) if len(own.unique()) > 1 else None
            rows = net(bags.to(device), padded).scores.float().cpu().numpy()
            for row, index in zip(rows, group, strict=True):
                scores[index] = row[: lengths[index]].copy()
    return scores


class WeightedScores(NamedTuple):
    """Clip scores of several videos, each with the frames it stands for."""

    scores: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def metrics(self) -> RankingMetrics:
        """Frame-level metrics over all videos; NaN where only one class occurs."""
        if self.positives.sum() == 0 or self.negatives.sum() == 0:
            return RankingMetrics(float("nan"), float("nan"), float("nan"))
        return ranking_metrics(self.scores, self.positives, self.negatives)


def weighted_scores(clip_scores: list[np.ndarray], truths: list[VideoTruth]) -> WeightedScores:
    """Clip scores with the positive and negative frames each stands for, aligned per video.

    Raises:
        AlignmentError: a video's clips do not fit its frames.
    """
    aligned = [
        align_clip_scores(scores, truth.n_frames, truth.frames_per_feature, truth.name)
        for scores, truth in zip(clip_scores, truths, strict=True)
    ]
    parts = aligned, [t.positives for t in truths], [t.negatives for t in truths]
    return WeightedScores(*(np.concatenate([np.empty(0), *part]) for part in parts))


def category_metrics(
    clip_scores: list[np.ndarray], truths: list[VideoTruth]
) -> dict[str, dict[str, float]]:
    """AUC of each anomaly category (Figs. 6 and 7) -> {"auc": its videos with all normal ones,
    "auc_within": its videos alone, "n_videos"}; an area that is not defined is left out."""
    result = {}
    for category in sorted({truth.category for truth in truths if truth.label}):
        own = [i for i, t in enumerate(truths) if t.label and t.category == category]
        with_normal = [i for i, t in enumerate(truths) if i in own or not t.label]
        areas = {}
        for key, members in (("auc", with_normal), ("auc_within", own)):
            area = _weighted_part(clip_scores, truths, members).metrics().roc_auc
            areas |= {key: area} if np.isfinite(area) else {}
        result[category] = {**areas, "n_videos": len(own)}
    return result


def _weighted_part(
    clip_scores: list[np.ndarray], truths: list[VideoTruth], members: list[int]
) -> WeightedScores:
    return weighted_scores([clip_scores[i] for i in members], [truths[i] for i in members])


def false_alarm_rate(
    clip_scores: list[np.ndarray], truths: list[VideoTruth], threshold: float
) -> float | None:
    """Share of normal videos' frames whose score reaches the threshold; None without such."""
    normal = [i for i, truth in enumerate(truths) if not truth.label]
    if not normal:
        return None
    items = _weighted_part(clip_scores, truths, normal)
    frames = items.positives + items.negatives
    return float(frames[items.scores >= threshold].sum() / frames.sum())


def video_score(clip_scores: np.ndarray, top_k: int) -> float:
    """Score of a whole video: the mean of its top_k highest clip scores."""
    return float(np.sort(clip_scores)[-top_k:].mean())


def anomalous_intervals(
    scores: np.ndarray, threshold: float, min_frames: int
) -> list[tuple[int, int]]:
    """Runs [start, end) of at least min_frames frames whose score reaches the threshold."""
    above = np.concatenate([[False], np.asarray(scores) >= threshold, [False]]).astype(np.int8)
    steps = np.diff(above)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [(int(s), int(e)) for s, e in zip(starts, ends, strict=True) if e - s >= min_frames]
