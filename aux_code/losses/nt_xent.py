"""NT-Xent, the contrastive loss of the privacy (budget) network f_B (paper section 3; SimCLR)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy over two views.

    Row i of `a` and row i of `b` are a positive pair; every other row of both is a negative. The
    mean runs over all 2 N rows. Similarity is the dot product, so the rows should be unit vectors.

    Args:
        a: (N, D) unit embeddings of the first views.
        b: (N, D) unit embeddings of the second views.
        temperature: > 0; 0.1 in the paper.

    Returns:
        () loss >= 0, of float32 at least: half precision would overflow exp(1 / temperature) sums.

    Raises:
        ValueError: the shapes differ or are not (N, D), or the temperature is not positive.
    """
    if a.shape != b.shape or a.dim() != 2:
        raise ValueError(
            f"two views of equal shape (N, D) are needed, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    n_pairs = len(a)
    with torch.autocast(a.device.type, enabled=False):
        both = torch.cat([a, b])
        both = both.float() if both.dtype in (torch.float16, torch.bfloat16) else both
        similarity = both @ both.T / temperature
        itself = torch.eye(2 * n_pairs, dtype=torch.bool, device=both.device)
        partner = torch.arange(2 * n_pairs, device=both.device).roll(n_pairs)
        return F.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner)
