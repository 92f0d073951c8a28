"""A local Ray that starts in the background."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from multistill import cluster
from multistill.cluster import session
from multistill.cluster.session import RayStartError
from multistill.config import ResourcesConfig

IN_THE_BACKGROUND = """
import signal
from multistill import cluster
from multistill.config import ResourcesConfig
resources = ResourcesConfig(num_cpus=1, object_store_mb=80)
before = signal.getsignal(signal.SIGTERM)
with cluster.starting(resources) as wait:
    import ray
    wait()
    with cluster.start(resources) as available:
        print("cpus", available["CPU"], "task", ray.get(ray.remote(lambda: 7).remote()))
    print("open", ray.is_initialized(), "signal", signal.getsignal(signal.SIGTERM) == before)
print("left", ray.is_initialized())
"""


@pytest.mark.ray
def test_what_waits_for_it_uses_it_and_it_ends_with_the_block() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IN_THE_BACKGROUND], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "cpus",
        "1.0",
        "task",
        "7",
        "open",
        "True",
        "signal",
        "True",
        "left",
        "False",
    ]


def test_whoever_waits_gets_the_error_and_others_are_not_disturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise RayStartError("the disk is full", "free some space")

    monkeypatch.setattr(session, "init_local", fails)
    with (
        pytest.raises(RayStartError, match="the disk is full; free some space"),
        cluster.starting(ResourcesConfig()) as wait,
    ):
        wait()
    with cluster.starting(ResourcesConfig()):
        pass


def test_a_run_that_fails_meanwhile_shuts_it_down_once_it_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    failed, events = threading.Event(), []
    questions: list[Callable[[], bool]] = []

    def start(_: object, __: object, is_unwanted: Callable[[], bool]) -> None:
        questions.append(is_unwanted)
        assert failed.wait(60)
        events.append("started")

    monkeypatch.setattr(session, "init_local", start)
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("shut down"))
    with pytest.raises(KeyError), cluster.starting(ResourcesConfig()):
        failed.set()
        raise KeyError("of another stage")
    assert events == ["started", "shut down"]
    assert questions[0]()


def test_an_interrupt_of_the_wait_leaves_the_shutdown_to_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    interrupted, over = threading.Event(), threading.Event()

    wait_for_threads = ThreadPoolExecutor.shutdown

    def is_interrupted(executor: ThreadPoolExecutor, wait: bool) -> None:
        wait_for_threads(executor, wait=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", is_interrupted)
    monkeypatch.setattr(session, "init_local", lambda *_: interrupted.wait(60))
    monkeypatch.setattr(ray, "shutdown", over.set)
    with pytest.raises(KeyboardInterrupt), cluster.starting(ResourcesConfig()):
        raise KeyError("of another stage")
    assert not over.is_set()
    interrupted.set()
    assert over.wait(60)


@pytest.mark.parametrize(("is_unwanted", "attempts"), [(False, 2), (True, 1)])
def test_a_slow_start_is_tried_again_unless_its_run_ends(
    is_unwanted: bool, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    made: list[object] = []

    def init(**options: object) -> None:
        made.append(options)
        raise TimeoutError("the raylet timed out during startup")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(RayStartError, match="timed out"):
        session.init_local(ResourcesConfig(num_cpus=1), False, lambda: is_unwanted)
    assert len(made) == attempts
