"""When a worker saves and hands its work back, with Ray's head node replaced by a dictionary."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from multistill.cluster import handback
from multistill.cluster.handback import Request, Watch, on_sigterm


class HeadNode:
    """Notes and draining nodes; `down` while it does not answer."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.draining: set[str] = set()
        self.down = False

    def write(self, key: str, text: str, *, overwrite: bool = True) -> None:
        if overwrite or key not in self.notes:
            self.notes[key] = text

    def read(self, key: str) -> str | None:
        if self.down:
            raise ConnectionError("no answer")
        return self.notes.get(key)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> HeadNode:
    head = HeadNode()
    monkeypatch.setattr(handback, "write_note", head.write)
    monkeypatch.setattr(handback, "read_note", head.read)
    monkeypatch.setattr(handback, "remove_note", lambda key: head.notes.pop(key, None))
    monkeypatch.setattr(handback, "draining_nodes", lambda: head.draining)
    monkeypatch.setattr(handback, "POLL_S", 0.01)
    return head


def within_seconds(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_drained_node_is_a_reason_for_its_own_workers_and_those_it_forwards_to(
    head: HeadNode,
) -> None:
    run, trial = Request("run"), Request("search")
    on_node = Watch(run, "a", forward=True)
    elsewhere, other_run = Watch(run, "b", forward=True), Watch(trial, "b")
    of_trial = Watch(trial, "a")
    watches = [on_node, elsewhere, other_run, of_trial]
    assert not any(watch() for watch in watches)
    head.draining = {"a"}
    assert within_seconds(lambda: on_node() and elsewhere() and of_trial())
    assert on_node.reason == elsewhere.reason == of_trial.reason == "node"
    assert not other_run(), "a trial on another node goes on"
    for watch in watches:
        watch.close()


def test_the_drivers_request_is_seen_and_not_replaced_by_that_of_a_node(head: HeadNode) -> None:
    request = Request()
    head.down = True
    watch = Watch(request, None)
    assert not watch()
    request.send("driver")
    request.send("node")
    head.down = False
    assert within_seconds(watch)
    assert watch.reason == "driver"
    later, other_run = Watch(request, None), Watch(Request(), None)
    assert later(), "a worker that starts later knows at once"
    assert not other_run()
    request.clear()
    assert request.reason() is None
    for each in (watch, later, other_run):
        each.close()


def test_the_first_sigterm_asks_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    asked = threading.Event()
    with pytest.raises(KeyboardInterrupt), on_sigterm(asked.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_sigterm_asks_for_is_asked_when_the_block_ends() -> None:
    asked: list[str] = []

    def ask() -> None:
        time.sleep(0.2)
        asked.append("driver")

    with on_sigterm(ask):
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == ["driver"]
