"""When an attacker has learned all it can, judged on the validation pictures alone."""

from collections.abc import Sequence


def recent_gain(
    epochs: Sequence[int], validation_cmap: Sequence[float], window: float
) -> float | None:
    """What the last `window` epochs added to the best validation cMAP.

    Args:
        epochs: 1-based numbers of the epochs that were evaluated, ascending.
        validation_cmap: their scores, in [0, 1].
        window: in epochs.

    Returns:
        Best score of the window less the best before it; None if the training is no longer than the
        window.
    """
    border = epochs[-1] - window if len(epochs) else 0
    early = [score for epoch, score in zip(epochs, validation_cmap, strict=True) if epoch <= border]
    late = [score for epoch, score in zip(epochs, validation_cmap, strict=True) if epoch > border]
    return float(max(late) - max(early)) if early else None
