"""Sequences of states before they are pooled, at a rate that models of one clip share.

Models of a clip may have a state per frame, per few frames, or a fixed number. What they have in
common is the clip: `segment_means` averages a sequence into segments that cover it evenly, of
audio one per `SEGMENT_FRAMES` of the feature store's frames, of text one per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multistill.typing import IntArray

SEGMENT_FRAMES = 10
"""A fifth of a second at 50 frames a second."""


class RaggedStates(NamedTuple):
    """Sequences of several utterances, one after another.

    Attributes:
        states: float16 [S, D].
        lengths: int64 [N], whose sum is S.
    """

    states: npt.NDArray[np.float16]
    lengths: IntArray


def segment_counts(modality: str, lengths: IntArray) -> IntArray:
    """Number of segments [N] of clips with so many frames (`audio`) or tokens (`text`) [N]."""
    return -(-lengths // SEGMENT_FRAMES) if modality == "audio" else lengths


def segment_means(states: Tensor, mask: Tensor, segments: Tensor, width: int) -> Tensor:
    """Average pooling of the unpadded positions into a number of segments.

    states [B, T, W], mask [B, T] (padding last), segments int64 [B] -> [B, width, W]. Equals
    `F.adaptive_avg_pool1d` of each sequence without its padding; zeros for an empty sequence, and
    behind the segments of the row.

    Args:
        width: at least the largest number of segments.
    """
    length, count = mask.sum(dim=1)[:, None], segments[:, None].clamp(min=1)
    index = torch.arange(width, device=states.device)[None, :]
    start = (index * length) // count
    end = ((index + 1) * length + count - 1) // count
    position = torch.arange(states.shape[1], device=states.device)
    inside = (position >= start[:, :, None]) & (position < end[:, :, None])
    weights = inside.to(states.dtype)
    return (weights @ states) / weights.sum(dim=2, keepdim=True).clamp(min=1.0)


def side_by_side(members: Sequence[Mapping[str, RaggedStates]]) -> dict[str, RaggedStates]:
    """The sequences of several models of the same clips on the axis of their values.

    A modality is that of the models that read it.
    """
    names = dict.fromkeys(name for member in members for name in member)
    of_name = {name: [member[name] for member in members if name in member] for name in names}
    return {
        name: RaggedStates(np.concatenate([each.states for each in own], axis=1), own[0].lengths)
        for name, own in of_name.items()
    }


def chosen_rows(
    sequences: Mapping[str, RaggedStates], rows: npt.NDArray[np.bool_]
) -> dict[str, RaggedStates]:
    """The sequences of some of the clips [N]."""
    return {
        name: RaggedStates(states[np.repeat(rows, lengths)], lengths[rows])
        for name, (states, lengths) in sequences.items()
    }
