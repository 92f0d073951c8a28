"""Whether a Ray cluster answers at an address is known within seconds."""

from __future__ import annotations

import time

import pytest
from helpers.servers import foreign_service, free_ports

from multistill.cluster import reachable
from multistill.cluster.reachable import check_reachable
from multistill.errors import MultistillError


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        *[(kind, prefix) for kind in ("web server", "silent") for prefix in ("", "ray://")],
        ("gRPC server", ""),
    ],
)
def test_a_foreign_service_is_told_in_time(
    kind: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reachable.CONNECT_TIMEOUT_SECONDS + reachable.ANSWER_TIMEOUT_SECONDS < 20
    monkeypatch.setattr(reachable, "ANSWER_TIMEOUT_SECONDS", 1.0)
    start = time.monotonic()
    with foreign_service(kind) as port:
        address = f"{prefix}127.0.0.1:{port}"
        with pytest.raises(MultistillError, match="does not answer as Ray's head node") as caught:
            check_reachable(address)
    assert address in str(caught.value)
    assert time.monotonic() - start < 10


def test_a_closed_port_is_told_at_once() -> None:
    [port] = free_ports(1)
    with pytest.raises(MultistillError, match="Connection refused"):
        check_reachable(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["auto", "head", "ray://head"])
def test_what_ray_resolves_itself_is_left_to_it(address: str) -> None:
    check_reachable(address)


@pytest.mark.ray
def test_a_head_node_answers(ray_session: None) -> None:
    import ray

    check_reachable(ray.get_runtime_context().gcs_address)
