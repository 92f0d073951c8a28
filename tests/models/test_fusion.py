"""Averaging of a sequence into the mixer's segments."""

from __future__ import annotations

import torch
from helpers.encoder_states import random_states

from multistill.models.fusion import segment_means


def test_segments_equal_adaptive_pooling_without_the_padding() -> None:
    lengths = [40, 16, 5, 1]
    values, mask = random_states(lengths, 3)
    pooled = segment_means(values.nan_to_num(0.0), mask, 6)
    for row, length in enumerate(lengths):
        expected = torch.nn.functional.adaptive_avg_pool1d(values[row, :length].T, 6).T
        torch.testing.assert_close(pooled[row], expected)
