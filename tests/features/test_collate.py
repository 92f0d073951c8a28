"""Batch plans contain every row once, and batches contain the states of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.features_case import make_store, random_clips
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.features.collate import (
    collate,
    cut_by_padded_size,
    plan_batches,
    shard_for_rank,
)

LENGTHS = st.lists(st.integers(1, 2000), max_size=300)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.one_of(st.none(), st.integers(0, 9)), st.integers(1, 5))
def test_every_row_is_in_exactly_one_batch_of_one_rank(
    lengths: list[int], size: int, seed: int | None, world: int
) -> None:
    batches = plan_batches(np.array(lengths), size, seed=seed, epoch=3)
    seen = [
        row
        for batch in batches
        for rank in range(world)
        for row in shard_for_rank(batch, rank, world)
    ]
    assert sorted(seen) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    assert len(batches) == -(-len(lengths) // size)


@given(st.integers(1, 64), st.integers(1, 9))
def test_ranks_share_a_batch_evenly(size: int, world: int) -> None:
    parts = [len(shard_for_rank(np.arange(size), rank, world)) for rank in range(world)]
    assert max(parts) - min(parts) <= 1


def test_the_plan_depends_on_seed_and_epoch_only() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 200)

    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(plan_batches(lengths, 8, seed=seed, epoch=epoch)).tolist()

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)


def test_without_a_seed_rows_keep_their_order() -> None:
    batches = plan_batches(np.array([9, 1, 5, 3, 2]), 2, seed=None)
    assert np.concatenate(batches).tolist() == [0, 1, 2, 3, 4]


def test_bucketing_pads_far_less_than_random_batches() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.7, 2000).astype(int) + 1

    def padded(batches: list[np.ndarray]) -> float:
        return sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum()

    assert padded(plan_batches(lengths, 32, seed=0)) < 1.25
    assert padded(plan_batches(lengths, 32, seed=None)) > 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), max_size=60),
    st.integers(0, 4000),
)
def test_cuts_cover_all_rows_and_are_as_long_as_the_limit_allows(
    lengths: list[tuple[int, int]], limit: int
) -> None:
    table = np.array(lengths, dtype=np.int64).reshape(-1, 2)
    cuts = list(cut_by_padded_size(limit, table[:, 0], table[:, 1]))
    assert [row for cut in cuts for row in range(len(table))[cut]] == list(range(len(table)))

    def padded(rows: np.ndarray) -> int:
        return len(rows) * int(rows.max(axis=0).sum())

    for cut in cuts:
        assert cut.stop > cut.start
        assert cut.stop - cut.start == 1 or padded(table[cut]) <= limit
        if cut.stop < len(table):
            assert padded(table[cut.start : cut.stop + 1]) > limit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_a_batch_holds_each_clip_and_zeros_in_padded_frames(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, random_clips(9), dtype)
    ids = ["u004", "u000", "u007"]
    batch = collate(store, ids)
    for row, name in enumerate(ids):
        for states, mask, stored in (
            (batch.audio[row], batch.audio_mask[row], store.audio(name)),
            (batch.text[row], batch.text_mask[row], store.text(name)),
        ):
            assert mask.sum() == len(stored)
            assert mask[: len(stored)].all()
            assert torch.equal(states[: len(stored)], torch.from_numpy(stored.astype(np.float32)))
            assert not states[len(stored) :].any()
    assert batch.audio.dtype == torch.float32
    assert batch.audio.shape[1] == store.audio_frames(ids).max()


def test_frames_beyond_max_frames_are_dropped(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(6), "int8")
    batch = collate(store, store.ids, max_frames=5)
    assert batch.audio.shape[1] <= 5
    assert batch.audio_mask.sum(1).tolist() == [min(5, n) for n in store.audio_frames(store.ids)]


def test_empty_transcripts_and_empty_ranks_make_valid_batches(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(12))
    without_text = [name for name in store.ids if store.text_tokens([name])[0] == 0]
    assert without_text
    batch = collate(store, without_text)
    assert batch.text.shape == (len(without_text), 1, store.text_dim)
    assert not batch.text_mask.any()
    empty = collate(store, [])
    assert empty.audio.shape == (0, 1, store.audio_dim)
    assert empty.to("cpu").text_mask.shape == (0, 1)
