"""Averaging of neighbouring frames."""

from __future__ import annotations

import torch
from helpers.encoder_states import random_states

from multistill.models.layers import join_frames


def test_joined_frames_are_means_of_unpadded_neighbours() -> None:
    values, mask = random_states([7, 3, 0], 2)
    joined, joined_mask = join_frames(values.nan_to_num(0.0), mask, 3)
    assert joined_mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    torch.testing.assert_close(joined[0, 2], values[0, 6])
    torch.testing.assert_close(joined[0, 1], values[0, 3:6].mean(dim=0))
    torch.testing.assert_close(joined[1, 0], values[1, :3].mean(dim=0))
    assert not joined[~joined_mask].any()
