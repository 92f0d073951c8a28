"""Which epoch is the result of a training, from the validation metrics of its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean


def epoch_score(history: Sequence[Mapping[str, float]], metric: str, window: int) -> list[float]:
    """Sort key of the newest epoch: the highest is the best, the earlier one among equals.

    It is the mean of the validation metric over the newest `window` epochs (fewer at the start),
    then, as ties occur on small sets, the negative mean validation loss. One epoch of a small
    validation set can be lucky; several in a row are so less often. Without validation, the
    newest epoch is the best.

    Args:
        history: metrics of all epochs so far, in order.
        metric: `loss`, or a metric of which more is better.

    Examples:
        >>> lucky = {"valid_macro_f1": 0.75, "valid_loss": 1.0}
        >>> steady = {"valid_macro_f1": 0.5, "valid_loss": 1.0}
        >>> epoch_score([steady, lucky], "macro_f1", window=1)
        [0.75, -1.0]
        >>> epoch_score([steady, lucky], "macro_f1", window=2)
        [0.625, -1.0]
    """
    if "valid_loss" not in history[-1]:
        return [float(len(history))]
    loss = -recent_mean([epoch["valid_loss"] for epoch in history], window)
    if metric == "loss":
        return [loss]
    return [recent_mean([epoch[f"valid_{metric}"] for epoch in history], window), loss]


def recent_mean(values: Sequence[float], window: int) -> float:
    """Mean of the last `window` values, of all of them if there are fewer."""
    return fmean(values[-window:])
