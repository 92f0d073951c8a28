"""Averaging of a sequence into the mixer's segments."""

from __future__ import annotations

import torch
from helpers.encoder_states import random_states

from multistill.models.sequences import segment_means


def test_segments_equal_adaptive_pooling_without_the_padding() -> None:
    lengths = [40, 16, 5, 1]
    values, mask = random_states(lengths, 3)
    segments = torch.tensor([6, 6, 9, 1])
    pooled = segment_means(values.nan_to_num(0.0), mask, segments, 9)
    for row, (length, count) in enumerate(zip(lengths, segments.tolist(), strict=True)):
        expected = torch.nn.functional.adaptive_avg_pool1d(values[row, :length].T, count).T
        torch.testing.assert_close(pooled[row, :count], expected)
        assert not pooled[row, count:].any()
