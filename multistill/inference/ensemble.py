"""Combine the logits of several models into the logits of their ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp

from multistill.typing import FloatArray


def combine(members: Sequence[npt.NDArray[np.floating]], *, raw: bool = False) -> FloatArray:
    """Logits [N, C] of the ensemble, from each member's logits [N, C].

    The mean of the members' probabilities (a mixture, Lakshminarayanan et al. 2017), as
    logarithms: softmax recovers the mean, and a temperature applies to it as to any logits. With
    a mean of logits, a member with larger logits would dominate. The logits of a single member
    are returned unchanged.

    Args:
        raw: the members were trained with `mse` on raw outputs, which are not logits; the mean
            of the outputs then estimates the shares.

    Examples:
        >>> members = [np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])]
        >>> np.exp(combine(members)).round(2)
        array([[0.7, 0.3]], dtype=float32)
    """
    stacked = np.stack([np.asarray(member, dtype=np.float64) for member in members])
    if len(stacked) == 1:
        return stacked[0].astype(np.float32)
    if raw:
        return stacked.mean(axis=0).astype(np.float32)
    mixture = logsumexp(log_softmax(stacked, axis=-1), axis=0) - np.log(len(stacked))
    return np.asarray(mixture, dtype=np.float32)
