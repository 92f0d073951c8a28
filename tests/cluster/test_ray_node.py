"""Ports, address and folder of one node of a Slurm job's Ray, beside other jobs'."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.cluster import ray_node
from multistill.cluster.ray_node import (
    FIRST_PORT,
    HEAD_PORT_OPTIONS,
    LAST_PORT,
    PORT_OPTIONS,
    gpus_of,
    job_ports,
    own_address,
    private_folder,
    store_options,
)
from multistill.errors import MultistillError

NAMES = (*HEAD_PORT_OPTIONS, *PORT_OPTIONS)


@given(st.integers(1, 10**8), st.integers(1, 1499))
def test_jobs_of_two_users_on_one_node_start_from_ports_of_their_own(
    job_id: int, distance: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_node, "_is_free", lambda port: True)
        one, other = job_ports(job_id, NAMES), job_ports(job_id + distance, NAMES)
    assert not set(one.values()) & set(other.values())
    assert len(set(one.values())) == len(NAMES)
    assert min(one.values()) >= FIRST_PORT and max(one.values()) <= LAST_PORT


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_ports_in_use_are_left_alone(host: str) -> None:
    before = job_ports(77, NAMES)
    with socket.socket() as taken:
        taken.bind((host, before["dashboard-port"]))
        taken.listen()
        after = job_ports(77, NAMES)
    assert not set(before.values()) & set(after.values())
    assert job_ports(77, NAMES) == before


def test_no_ports_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_node, "_is_free", lambda port: port == FIRST_PORT)
    with pytest.raises(MultistillError, match="no ports from 20000 to 31999 are free"):
        job_ports(1, NAMES)


def test_the_address_is_that_of_the_way_to_the_other_node() -> None:
    assert own_address(None) == "127.0.0.1"
    assert own_address("127.0.0.1") == own_address("127.1.2.3") == "127.0.0.1"
    assert own_address("::1") == "::1"
    with pytest.raises(MultistillError, match=r"`no-such-node\.invalid` cannot be reached"):
        own_address("no-such-node.invalid")


def test_the_folder_is_private_and_replaces_that_of_an_earlier_attempt(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "deep" / "ms-1-0")
    (folder / "left").touch()
    assert not list(private_folder(folder).iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ms").mkdir()
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    with pytest.raises(MultistillError, match="belongs to another user"):
        private_folder(tmp_path / "ms")


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 0),
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_the_gpus_are_those_of_the_job(variables: dict[str, str], count: int) -> None:
    assert gpus_of(variables) == count


def test_the_object_store_is_a_share_of_the_jobs_memory() -> None:
    assert store_options({}) == store_options({"SLURM_MEM_PER_NODE": "0"}) == []
    assert store_options({"SLURM_MEM_PER_NODE": "1000"}) == [f"--object-store-memory={300 * 2**20}"]
