"""Losses on the time structure of a video's clips: the paper's triplet and two to compare."""

import torch
from torch import Tensor
from torch.nn import functional as F

from aux_code.losses.nt_xent import nt_xent_loss


def temporally_distinct_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float
) -> Tensor:
    """The temporally-distinct triplet loss L_D = mean of max(d(anchor, positive) - d(anchor,
    negative) + margin, 0).

    d is the Euclidean distance (paper section 3.3). Anchor and positive show the same frames,
    augmented differently; the negative is another time of the same video.

    Args:
        anchor: (B, D) embeddings, unit vectors from f_T's head.
        positive: (B, D).
        negative: (B, D).
        margin: mu; 1 in the paper.

    Returns:
        () loss >= 0. Its gradient is finite also where two embeddings coincide.

    Raises:
        ValueError: the shapes differ or are not (B, D).
    """
    if not anchor.shape == positive.shape == negative.shape or anchor.dim() != 2:
        shapes = [tuple(x.shape) for x in (anchor, positive, negative)]
        raise ValueError(f"anchor, positive and negative must share one shape (B, D), got {shapes}")
    near = torch.linalg.vector_norm(anchor - positive, dim=1)
    far = torch.linalg.vector_norm(anchor - negative, dim=1)
    return F.relu(near - far + margin).mean()


def local_local_temporal_contrastive_loss(
    first_view: Tensor, second_view: Tensor, temperature: float
) -> Tensor:
    """LLTC of TCLR (paper table 3): NT-Xent among the clips of one video, averaged over the videos.

    The two views of clip t are the positive pair; the clips of the same video at other times, in
    both views, are the negatives. Other videos play no part.

    Args:
        first_view: (B, n_clips, D) unit embeddings; the paper takes 4 clips.
        second_view: (B, n_clips, D) of the same clips, augmented differently.
        temperature: > 0; 0.1.

    Raises:
        ValueError: the shapes differ or are not (B, n_clips, D), or a video has fewer than two
            clips.
    """
    if first_view.shape != second_view.shape or first_view.dim() != 3:
        raise ValueError(
            f"views (B, n_clips, D), got {tuple(first_view.shape)} and {tuple(second_view.shape)}"
        )
    if first_view.shape[1] < 2:
        raise ValueError("temporal contrast needs at least two clips of each video")
    videos = zip(first_view, second_view, strict=True)
    return torch.stack(
        [nt_xent_loss(first, second, temperature) for first, second in videos]
    ).mean()


def temporal_invariance_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """L_I (paper tables 2 and 9): NT-Xent with cosine similarity over two clips of one video
    against the other videos.

    Args:
        a: (B, D) embeddings of one clip of each video, of any length.
        b: (B, D) embeddings of another clip of the same videos.
        temperature: > 0; 0.1 in the paper.
    """
    return nt_xent_loss(F.normalize(a, dim=1), F.normalize(b, dim=1), temperature)
