"""Trials of several workers, without starting any."""

from __future__ import annotations

import threading

import pytest
from helpers.search_case import TASK

from multistill.search import multi_worker
from multistill.search.multi_worker import fit
from multistill.training import launcher
from multistill.training.reports import TrainingInterrupted


def test_the_launcher_receives_the_number_of_concurrent_trials(tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(
        launcher, "train", lambda *args, concurrent_runs, request: received.append(concurrent_runs)
    )
    assert list(fit(TASK, state_dir=tmp_path, stop=lambda: False, concurrency=4)) == []
    assert received == [4]


def test_a_trial_that_is_asked_to_stop_asks_its_workers_and_is_interrupted(tmp_path, monkeypatch):
    class Request:
        def __init__(self):
            self.sent = threading.Event()

        def send(self, reason):
            assert reason == "driver"
            self.sent.set()

    def train(*args, concurrent_runs, request):
        assert request.sent.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(multi_worker, "Request", Request)
    monkeypatch.setattr(multi_worker, "_POLL_S", 0.01)
    monkeypatch.setattr(launcher, "train", train)
    with pytest.raises(TrainingInterrupted):
        list(fit(TASK, state_dir=tmp_path, stop=lambda: True))
