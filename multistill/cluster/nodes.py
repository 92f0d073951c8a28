"""The nodes of the connected Ray cluster, their resources and the dashboard.

The only module that uses private names of Ray's core: Ray 2.60 has no public API for the
autoscaler's limit or for the address of the dashboard. `tests/cluster/test_nodes.py` checks
these names against the pinned version.
"""

from __future__ import annotations


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of every living node."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def cluster_nodes() -> list[dict[str, float]]:
    """Return the resources of every node that work can be planned for.

    These are the living nodes, unless the autoscaler has published the limit that it can
    scale to: then the limit counts as one node, since the living nodes of an idle cluster say
    nothing about it.
    """
    import ray

    limit = ray._private.state.state.get_max_resources_from_cluster_config()
    return [dict(limit)] if limit else alive_nodes()


def dashboard_url() -> str | None:
    """Return `host:port` of Ray's dashboard; None if Ray runs without one."""
    import ray

    return ray._private.worker.get_dashboard_url() or None
