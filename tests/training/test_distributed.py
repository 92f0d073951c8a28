"""Data-parallel training: any number of ranks gives the losses of one process."""

from __future__ import annotations

import pytest
from helpers.training_corpus import ThreadGroup, losses, make_task, run


@pytest.mark.usefixtures("shared_initialisation")
@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_give_the_losses_and_metrics_of_one(corpus, tmp_path, workers):
    """72 rows in batches of 16: the last has 8; in batches of 71: the last has 1."""
    for batch_size in (16, 71):
        task = make_task(
            corpus, batch_size=batch_size, accumulation=2, average_epochs=1.5, label_smoothing=0.1
        )
        single = run(task, tmp_path / f"1-{batch_size}")
        ranks = ThreadGroup(workers).fit(task, tmp_path / f"{workers}-{batch_size}")
        for reports in ranks:
            assert losses(reports) == pytest.approx(losses(single), abs=1e-4)
            for name in ("valid_loss", "valid_macro_f1", "valid_uar"):
                assert losses(reports, name) == pytest.approx(losses(single, name), abs=1e-4)


def test_gradients_are_summed_once_per_step_for_any_accumulation(corpus, tmp_path):
    def collectives(**train: int) -> int:
        threads = ThreadGroup(2)
        threads.fit(make_task(corpus, epochs=1, **train), tmp_path / str(sorted(train.items())))
        return threads.collectives

    assert collectives(accumulation=4) == collectives(accumulation=1)
    # 72 rows: 5 steps of 16, 9 of 8.
    assert collectives(batch_size=8) - collectives(batch_size=16) == 9 - 5
