"""What is said of work without room, and when, with the cluster replaced."""

from __future__ import annotations

import pytest
import ray

from multistill.cluster import waiting
from multistill.cluster.waiting import Waiting


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Resources of the living nodes; nothing is free on them."""
    living: list[dict[str, float]] = []
    monkeypatch.setattr(waiting, "alive_nodes", lambda: living)
    monkeypatch.setattr(ray, "available_resources", dict)
    return living


def test_nothing_is_said_for_a_minute_then_every_ten_until_something_runs(
    nodes: list[dict[str, float]],
) -> None:
    now, said = 0.0, []
    waits = Waiting(
        lambda text: said.append((now, text)), "the search", "trial", 1, {"CPU": 1.0}, lambda: now
    )

    def wait(seconds: int, *, runs: bool = False) -> list[float]:
        nonlocal now
        said.clear()
        for _ in range(seconds):
            now += 1
            waits.look(lambda: runs)
        return [when for when, _ in said]

    assert wait(1_300) == [60, 660, 1260]
    assert "no trial has run for 21 minutes: each asks for 1 CPU" in said[-1][1]
    assert "the cluster has no node that takes work; the search waits" in said[-1][1]
    assert wait(100, runs=True) == []
    assert wait(59) == []
    assert wait(1) == [now]


def test_what_is_asked_for_stands_beside_what_the_cluster_has(
    nodes: list[dict[str, float]],
) -> None:
    now, said = 0.0, []
    nodes += [{"CPU": 8.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}]
    need = {"CPU": 2.0, "GPU": 0.5}
    waits = Waiting(said.append, "the training", "training", 4, need, lambda: now)
    now = 61.0
    waits.look(lambda: False)
    assert "asks for 2 CPU and 0.5 GPU in each of 4 workers, and" in said[0]
    assert "the cluster has 2 nodes with 12 CPU (0 free) and 1 GPU (0 free)" in said[0]


def test_a_head_node_that_does_not_answer_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def gone() -> list[dict[str, float]]:
        raise ConnectionError("no answer")

    monkeypatch.setattr(waiting, "alive_nodes", gone)
    waits = Waiting(print, "the search", "trial", 1, {"CPU": 1.0}, lambda: now)
    now = 100.0
    waits.look(lambda: False)
