"""The nodes of a cluster, and the private names of the pinned Ray that they are read from."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from multistill.cluster.nodes import (
    alive_nodes,
    cluster_nodes,
    dashboard_url,
    draining_nodes,
    read_note,
    remove_note,
    write_note,
)

pytestmark = pytest.mark.ray


@pytest.fixture
def autoscaler_limit(ray_session: None) -> Iterator[None]:
    """The limit of an autoscaler, stored where Ray stores it: up to 3 nodes with 1 GPU each."""
    import ray
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
    from ray.experimental import internal_kv

    key = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    namespace = ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    group = NodeGroupConfig(resources={"CPU": 8, "GPU": 1}, max_count=3)
    config = ClusterConfig(node_group_configs=[group]).SerializeToString()
    internal_kv._internal_kv_put(key, config, namespace=namespace)
    yield
    internal_kv._internal_kv_del(key, namespace=namespace)


def test_alive_nodes_are_the_resources_of_every_node(ray_session: None) -> None:
    (node,) = alive_nodes()
    assert node["CPU"] == 4
    assert node["memory"] > 0


def test_dead_nodes_are_skipped(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    (node,) = ray.nodes()
    dead = {**node, "Alive": False}
    monkeypatch.setattr(ray, "nodes", lambda: [dead, node])
    assert alive_nodes() == [node["Resources"]]


def test_without_an_autoscaler_the_living_nodes_count(ray_session: None) -> None:
    assert cluster_nodes() == alive_nodes()


def test_the_limit_of_an_autoscaler_counts_as_one_node(autoscaler_limit: None) -> None:
    assert cluster_nodes() == [{"CPU": 24, "GPU": 3}]


def test_the_dashboard_answers_at_its_url(ray_session: None) -> None:
    url = dashboard_url()
    assert url is not None
    with urllib.request.urlopen(f"{url}/api/version", timeout=30) as response:
        assert response.status == 200


def test_a_node_that_is_drained_takes_no_work(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    assert draining_nodes() == set()
    (node,) = ray.nodes()
    state = ray._private.state.state
    monkeypatch.setattr(state, "get_draining_nodes", lambda: {node["NodeID"]: 0})
    assert alive_nodes() == []


def test_notes_are_read_by_other_processes_until_they_are_removed(ray_session: None) -> None:
    import ray

    write_note("test", "first")
    write_note("test", "second", overwrite=False)
    assert ray.get(ray.remote(read_note).remote("test")) == "first"
    remove_note("test")
    assert read_note("test") is None
