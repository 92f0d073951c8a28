"""Counting cores, GPUs and worker slots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill import hardware
from multistill.hardware import (
    THREAD_LIMIT,
    limit_threads,
    requested_thread_limit,
    slots,
)


def test_a_worker_does_not_span_two_nodes() -> None:
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 16.0}]
    assert slots(nodes, {"CPU": 2.0}) == 9
    assert slots(nodes, {"CPU": 2.0, "GPU": 1.0}) == 1
    assert slots(nodes, {"CPU": 1.0, "GPU": 0.5}) == 2


def test_a_fraction_of_a_gpu_is_taken_from_a_single_gpu() -> None:
    assert slots([{"CPU": 16.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 0.4}) == 4
    assert slots([{"GPU": 1.4}], {"GPU": 0.4}) == 3, "a partly used GPU counts too"
    assert slots([{"GPU": 8.0}], {"GPU": 2.0}) == 4
    assert slots([{"GPU": 1.0}], {"GPU": 0.1}) == 10


amounts = st.sampled_from([0.1, 0.25, 1 / 3, 0.4, 0.5, 0.7, 1.0, 2.0])
node = st.fixed_dictionaries(
    {"CPU": st.integers(0, 32).map(float), "GPU": st.integers(0, 8).map(float)}
)


@given(nodes=st.lists(node, max_size=5), cpu=amounts, gpu=amounts)
def test_slots_equal_the_number_of_workers_that_can_be_placed_one_by_one(
    nodes: list[dict[str, float]], cpu: float, gpu: float
) -> None:
    """Each worker is placed on one node, and its fraction of a GPU on one GPU."""
    placed = 0
    for resources in nodes:
        cpus, devices = resources["CPU"], [1.0] * int(resources["GPU"])
        while cpus - cpu > -1e-6:
            suitable = [index for index, free in enumerate(devices) if free - min(gpu, 1.0) > -1e-6]
            if len(suitable) < max(1, int(gpu)):
                break
            for index in suitable[: max(1, int(gpu))]:
                devices[index] -= min(gpu, 1.0)
            cpus -= cpu
            placed += 1
    assert slots(nodes, {"CPU": cpu, "GPU": gpu}) == placed


@given(nodes=st.lists(node, max_size=5), cpu=amounts)
def test_a_requirement_of_zero_does_not_limit_the_slots(
    nodes: list[dict[str, float]], cpu: float
) -> None:
    assert slots(nodes, {"CPU": cpu, "GPU": 0.0}) == slots(nodes, {"CPU": cpu})


def test_a_worker_gets_a_whole_gpu_by_default() -> None:
    with_gpus: list[hardware.Resources] = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    assert hardware.gpus_or_default(None, with_gpus) == 1.0
    assert hardware.gpus_or_default(None, [{"CPU": 4.0}]) == 0.0
    assert hardware.gpus_or_default(0.25, with_gpus) == 0.25
    assert hardware.gpus_or_default(0.0, with_gpus) == 0.0


@pytest.mark.parametrize(
    ("limit", "count"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)],
)
def test_cores_are_limited_by_the_quota_of_cgroup_v2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(hardware, "_CGROUP_V2", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert hardware.cores() == count


def test_cores_are_limited_by_the_quota_of_cgroup_v1(
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


def test_a_small_machine_gets_the_minimum_of_logical_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, logical in [(1, 4), (2, 4), (4, 4), (32, 32)]:
        monkeypatch.setattr(hardware, "cores", lambda cores=cores: cores)
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
def test_gpus_are_counted_as_cuda_counts_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.local_gpus() == count


@pytest.mark.parametrize(
    ("value", "limit"),
    [(None, None), ("", None), ("2", 2), ("4,2", 4), (" 3 ", 3), ("0", 1), ("many", None)],
)
def test_omp_num_threads_is_the_users_limit(
    monkeypatch: pytest.MonkeyPatch, value: str | None, limit: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert requested_thread_limit() == limit


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 64)))
def test_a_worker_never_gets_more_threads_than_the_limit(threads: int, limit: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(THREAD_LIMIT, raising=False)
        if limit is not None:
            patch.setenv(THREAD_LIMIT, str(limit))
        assert limit_threads(threads) == (threads if limit is None else min(threads, limit))
