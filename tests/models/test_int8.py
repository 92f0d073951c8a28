"""Weights in 8 bits: how far they are rounded, and what is left alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from multistill.models.int8 import LARGEST, SCALES, from_int8, to_int8


@given(
    st.sampled_from([(3, 5), (4, 1, 7), (2, 3, 3, 3)]),
    st.floats(1e-6, 1e6),
    st.integers(0, 2**31),
)
def test_no_weight_moves_by_more_than_half_a_step_of_its_channel(
    shape: tuple[int, ...], size: float, seed: int
) -> None:
    weights = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weights[0] = 0.0
    packed = to_int8({"weight": weights})
    assert packed["weight"].dtype == torch.int8
    moved = (from_int8(packed)["weight"] - weights).abs().flatten(1).amax(dim=1)
    step = weights.abs().flatten(1).amax(dim=1) / LARGEST
    assert (moved <= step * 0.501).all()


def test_biases_and_buffers_stay_as_they_are() -> None:
    state = {"bias": torch.randn(4), "centre": torch.randn(3), "steps": torch.ones(2, 2).long()}
    assert to_int8(state).keys() == state.keys()
    assert all(torch.equal(from_int8(to_int8(state))[name], state[name]) for name in state)
    assert not any(name.endswith(SCALES) for name in to_int8(state))
