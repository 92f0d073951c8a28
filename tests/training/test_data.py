"""The data of a task: which rows it holds, what is refused, and how batches are split."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.training_corpus import make_task, run, with_states, with_teacher
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.distillation.targets import read_states, write_soft_targets, write_states
from multistill.errors import MultistillError
from multistill.training.data import TrainingData, split_micro_batches
from multistill.training.task import fold_tasks


def test_a_left_out_fold_is_not_trained_on_and_validation_rows_stay(corpus):
    base = make_task(corpus)
    complete = TrainingData.open(base)
    left_out_ids: list[str] = []
    for task in fold_tasks(base, range(4)):
        data = TrainingData.open(task)
        assert data.valid.ids == complete.valid.ids
        left_out = set(complete.train.ids) - set(data.train.ids)
        assert left_out
        left_out_ids += sorted(left_out)
    assert sorted(left_out_ids) == sorted(complete.train.ids)


def test_quarantined_clips_are_counted_and_test_rows_never_read(corpus):
    data = TrainingData.open(make_task(corpus))
    # Two clips have no features: one in the validation split, one in test.
    assert data.without_features == 1
    assert not any(int(name[-1]) == 9 for name in (*data.train.ids, *data.valid.ids))


def test_soft_targets_that_lack_rows_are_refused(corpus, tmp_path):
    task = make_task(corpus)
    path = tmp_path / "soft.parquet"
    student = with_teacher(task, path, 0.5)
    ids = TrainingData.open(task).train.ids[1:]
    write_soft_targets(path, ids, np.zeros((len(ids), 7)), "t", np.zeros(len(ids)))
    with pytest.raises(MultistillError, match="lack 1 of 72 training utterances"):
        run(student, tmp_path / "state")


def test_states_that_lack_a_row_are_refused(corpus, tmp_path):
    path = tmp_path / "soft.parquet"
    student = with_states(make_task(corpus), path, hint_weight=1.0)
    stored = read_states(path)
    write_states(path, stored.rows[1:], stored.teacher[1:], stored.pooled[1:])
    with pytest.raises(MultistillError, match="lack 1 of 72 training utterances"):
        run(student, tmp_path / "state")
    (tmp_path / "states.safetensors").unlink()
    with pytest.raises(MultistillError, match=r"states\.safetensors is missing"):
        run(student, tmp_path / "state")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 50), max_size=30),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_micro_batches_hold_every_row_once_within_the_frame_limit(lengths, count, max_frames):
    rows = np.arange(len(lengths))[::-1].copy()
    table = np.asarray(lengths, dtype=np.int64)
    parts = list(split_micro_batches(rows, table, count, max_frames))
    assert sorted(np.concatenate(parts).tolist() if parts else []) == list(range(len(lengths)))
    assert all(len(part) for part in parts)
    assert len(parts) >= min(count, len(lengths))
    if max_frames is not None:
        for part in parts:
            assert len(part) == 1 or len(part) * table[part].max() <= max_frames
