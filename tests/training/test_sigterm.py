"""What SIGTERM to the driver of a training does, with the worker group replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.training_corpus import Corpus, make_task

from multistill.training import launcher


class Notes:
    """A request that stays in this process."""

    def __init__(self) -> None:
        self.name, self.sent = "request", list[str]()

    def send(self, reason: str) -> None:
        self.sent.append(reason)

    def reason(self) -> str | None:
        return self.sent[-1] if self.sent else None

    def clear(self) -> None: ...


@pytest.mark.parametrize(
    ("group", "signals", "asked"),
    [("waits for a node", 1, []), ("saves", 1, ["driver"]), ("hangs", 2, ["driver"])],
)
def test_workers_save_where_there_are_any_and_nothing_is_waited_for_otherwise(
    group: str,
    signals: int,
    asked: list[str],
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group without a node has nobody to save, and a second signal waits for nobody."""
    request: Any = Notes()
    running = threading.Event()

    def run(*arguments: Any) -> None:
        listener = next(each for each in arguments if isinstance(each, launcher.EventListener))
        listener.working = group != "waits for a node"
        running.set()
        while not (group == "saves" and request.sent):
            time.sleep(0.01)

    monkeypatch.setattr(launcher, "_run_worker_group", run)
    monkeypatch.setattr(launcher, "alive_nodes", lambda: [{"CPU": 4.0}])

    def send() -> None:
        running.wait(60)
        for number in range(signals):
            while len(request.sent) < number:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launcher.train([make_task(corpus, epochs=1)], tmp_path, request=request)
    assert request.sent == asked
    assert time.monotonic() - started < 60
