"""Trials of several workers, without starting any."""

from __future__ import annotations

from helpers.search_case import TASK

from multistill.search.multi_worker import fit
from multistill.training import launcher


def test_the_launcher_receives_the_number_of_concurrent_trials(tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(
        launcher, "train", lambda *args, concurrent_runs: received.append(concurrent_runs)
    )
    assert list(fit(TASK, state_dir=tmp_path, concurrency=4)) == []
    assert received == [4]
