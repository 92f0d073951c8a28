"""Cores, GPUs and slots: one count for everything that sizes a pool or a worker group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill import hardware
from multistill.hardware import slots


def test_a_worker_does_not_span_two_nodes() -> None:
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 16.0}]
    assert slots(nodes, {"CPU": 2.0}) == 9
    assert slots(nodes, {"CPU": 2.0, "GPU": 1.0}) == 1
    assert slots(nodes, {"CPU": 1.0, "GPU": 0.5}) == 2


def test_a_share_of_a_gpu_lies_on_one_gpu() -> None:
    assert slots([{"CPU": 16.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 0.4}) == 4
    assert slots([{"GPU": 1.4}], {"GPU": 0.4}) == 3, "what others left of a GPU counts too"
    assert slots([{"GPU": 8.0}], {"GPU": 2.0}) == 4
    assert slots([{"GPU": 1.0}], {"GPU": 0.1}) == 10


amounts = st.sampled_from([0.1, 0.25, 1 / 3, 0.4, 0.5, 0.7, 1.0, 2.0])
node = st.fixed_dictionaries(
    {"CPU": st.integers(0, 32).map(float), "GPU": st.integers(0, 8).map(float)}
)


@given(nodes=st.lists(node, max_size=5), cpu=amounts, gpu=amounts)
def test_so_many_workers_can_be_placed_and_not_one_more(
    nodes: list[dict[str, float]], cpu: float, gpu: float
) -> None:
    """Against a placement one by one, each worker on one node and on GPUs of its own share."""
    placed = 0
    for resources in nodes:
        cpus, devices = resources["CPU"], [1.0] * int(resources["GPU"])
        while cpus - cpu > -1e-6:
            wanted = [index for index, free in enumerate(devices) if free - min(gpu, 1.0) > -1e-6]
            if len(wanted) < max(1, int(gpu)):
                break
            for index in wanted[: max(1, int(gpu))]:
                devices[index] -= min(gpu, 1.0)
            cpus -= cpu
            placed += 1
    assert slots(nodes, {"CPU": cpu, "GPU": gpu}) == placed


@given(nodes=st.lists(node, max_size=5), cpu=amounts)
def test_nothing_is_asked_of_a_resource_that_a_worker_does_not_need(
    nodes: list[dict[str, float]], cpu: float
) -> None:
    assert slots(nodes, {"CPU": cpu, "GPU": 0.0}) == slots(nodes, {"CPU": cpu})


def test_a_whole_gpu_unless_asked_otherwise() -> None:
    with_gpus: list[hardware.Resources] = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    assert hardware.gpus_or_default(None, with_gpus) == 1.0
    assert hardware.gpus_or_default(None, [{"CPU": 4.0}]) == 0.0
    assert hardware.gpus_or_default(0.25, with_gpus) == 0.25
    assert hardware.gpus_or_default(0.0, with_gpus) == 0.0


@pytest.mark.parametrize(
    ("limit", "count"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)],
)
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(hardware, "_CGROUP_V2", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert hardware.cores() == count


def test_the_quota_of_the_older_control_groups_counts_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(hardware, "_CGROUP_V2", tmp_path / "missing")
    monkeypatch.setattr(hardware, "_CGROUP_V1", tmp_path)
    assert hardware.cores() == 8
    (tmp_path / "cpu.cfs_quota_us").write_text("300000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert hardware.cores() == 3
    (tmp_path / "cpu.cfs_quota_us").write_text("-1")
    assert hardware.cores() == 8


def test_no_other_module_counts_cores() -> None:
    package = Path(hardware.__file__).parent
    counting = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(w in path.read_text() for w in ("sched_getaffinity", "cpu_count(", "cpu.max"))
    }
    assert counting == {"hardware.py"}


def test_a_small_machine_still_gets_enough_logical_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for real, logical in [(1, 4), (2, 4), (4, 4), (32, 32)]:
        monkeypatch.setattr(hardware, "cores", lambda real=real: real)
        assert hardware.local_cpus() == logical


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0", 1),
        ("2,3", 2),
        ("0,-1,1", 1),
        ("GPU-ab,GPU-cd", 2),
    ],
)
def test_gpus_are_counted_as_cuda_would(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.local_gpus() == count
