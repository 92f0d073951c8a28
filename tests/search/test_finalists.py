"""Retraining of the best trials: seeds, the winner by its mean, the winner's control."""

from __future__ import annotations

import pytest
from helpers.search_case import TASK
from helpers.search_models import COLD, HOT, StoreWithScores, retrained


def test_the_winner_has_the_best_mean_not_the_best_seed(tmp_path):
    scores = {
        f"{TASK.name}-search-1-seed0": 0.7, f"{TASK.name}-search-1-seed1": 0.3,
        f"{TASK.name}-search-2-seed0": 0.6, f"{TASK.name}-search-2-seed1": 0.5,
    }  # fmt: skip
    store = StoreWithScores(tmp_path, scores)
    trained = retrained(store, [HOT, COLD], seeds=2)
    assert trained["winner"] == f"{TASK.name}-search-2"
    first, second = trained["finalists"]
    assert second["mean"] == pytest.approx(0.55) and second["sd"] == pytest.approx(0.1 / 2**0.5)
    assert first["values"] == [0.7, 0.3] and first["params"] == HOT
    assert first["seeds"] == second["seeds"] == trained["control"]["seeds"]
    assert first["seeds"] == [TASK.seed + 1, TASK.seed + 2], "the seed of the trials is optimistic"


def test_a_control_has_the_winners_settings_and_seeds_and_no_teacher(tmp_path):
    faster = {**HOT, "train.learning_rate": 2e-3}
    store = StoreWithScores(tmp_path, {f"{TASK.name}-search-2": 0.9})
    trained = retrained(store, [COLD, faster], seeds=1)
    assert len(store.calls) == 2, "the control depends on the winner"
    control = store.tasks[f"{TASK.name}-search-control"]
    assert control.seed == store.tasks[trained["winner"]].seed == TASK.seed + 1
    assert control.distillation is None and control.soft_targets is None
    assert control.role == "control"
    assert control.train == store.tasks[trained["winner"]].train
    assert control.train.learning_rate == 2e-3


def test_controls_train_with_the_finalists_if_only_the_teacher_was_searched(tmp_path):
    store = StoreWithScores(tmp_path, {})
    retrained(store, [HOT, COLD], seeds=2)
    assert len(store.calls) == 1, "one worker group for all"
    assert len(store.calls[0]) == 6


def test_the_lowest_loss_wins(tmp_path):
    store = StoreWithScores(tmp_path, {f"{TASK.name}-search-1": 0.9, f"{TASK.name}-search-2": 0.8})
    trained = retrained(store, [HOT, COLD], seeds=1, metric="loss")
    assert trained["winner"] == f"{TASK.name}-search-1"
    assert trained["finalists"][0]["values"] == [pytest.approx(1.1)], "of the kept epoch"
