"""The command that docs/search.md gives for watching a search works while the search writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.paths import ROOT
from helpers.servers import free_ports
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from multistill.search.storage import JOURNAL, open_storage, open_study

TIMEOUT_SECONDS = 120.0
COMMAND = "optuna-dashboard WORKSPACE/search/.*.partial/study.log"


@contextmanager
def running_search(folder: Path) -> Iterator[None]:
    """A search that hands out and finishes trials, as its driver does, until the test has seen
    enough."""
    study = open_study(open_storage(folder, None), "search", ["maximize"])
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            trial = study.ask()
            trial.suggest_float("distillation.temperature", 1, 8)
            study.tell(trial, 0.5)
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    after = open_study(open_storage(folder, None), "search", ["maximize"])
    numbers = [trial.number for trial in after.trials]
    assert numbers == list(range(len(numbers))) and numbers


def grows(count: Any) -> None:
    """Assert that a number of trials is above 0 and becomes larger."""
    deadline, first = time.monotonic() + TIMEOUT_SECONDS, 0
    while time.monotonic() < deadline:
        number = count()
        if first and number > first:
            return
        first = first or number
        time.sleep(0.1)
    raise AssertionError("the trials of the running search are not seen")


def test_the_study_of_a_running_search_is_read_by_optuna_itself(tmp_path: Path) -> None:
    with running_search(tmp_path):
        other = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
        study = optuna.load_study(study_name=None, storage=other)
        grows(lambda: len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))))


@pytest.mark.skipif(
    importlib.util.find_spec("optuna_dashboard") is None,
    reason="needs optuna-dashboard; run `pip install optuna-dashboard`",
)
def test_the_dashboard_shows_a_running_search_and_leaves_it_alone(tmp_path: Path) -> None:
    [port] = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    code = "from optuna_dashboard._cli import main; main()"
    with running_search(tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / JOURNAL), "--port", str(port)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def count() -> int:
            try:
                with urllib.request.urlopen(f"{uri}/api/studies", timeout=10) as answer:
                    [study] = json.load(answer)["study_summaries"]
                with urllib.request.urlopen(
                    f"{uri}/api/studies/{study['study_id']}?after=0", timeout=30
                ) as answer:
                    return len(json.load(answer)["trials"])
            except OSError:
                assert process.poll() is None, "the dashboard does not start"
                return 0

        try:
            grows(count)
        finally:
            process.kill()
            process.wait()


def test_the_documentation_has_the_command() -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert COMMAND in page and JOURNAL in COMMAND
