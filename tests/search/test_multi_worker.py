"""Trials of several workers, without starting any."""

from __future__ import annotations

from helpers.search_case import TASK

from multistill.search.multi_worker import fit
from multistill.training import launcher


def test_the_launcher_receives_the_number_of_concurrent_trials(tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(launcher, "train", lambda *args, at_once: received.append(at_once))
    assert list(fit(TASK, state_dir=tmp_path, concurrency=4)) == []
    assert received == [4]


def test_concurrent_trials_share_the_cores_of_one_machine():
    assert launcher.on_one_machine(cores=16, count=1, workers=2) == (1, 4)
    assert launcher.on_one_machine(cores=16 // 4, count=1, workers=2) == (1, 2)
    assert launcher.on_one_machine(cores=0, count=3, workers=2) == (1, 1)
