"""The nodes of the connected Ray cluster, their resources, the dashboard, and notes between them.

The only module that uses private names of Ray's core: Ray 2.60 has no public API for the
autoscaler's limit, for the address of the dashboard, for nodes that are about to go
(`ray.train.get_preemption_info` is a barrier over all workers, and not for trials), or for a
value that all processes see without a process that holds it. `tests/cluster/test_nodes.py` checks
these names against the pinned version.
"""

from __future__ import annotations

_NOTES = "multistill"


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of every living node that takes work."""
    import ray

    draining = draining_nodes()
    return [
        dict(node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


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
    """Return the address of Ray's dashboard; None without one, or without a connection to Ray."""
    import ray

    if not ray.is_initialized():
        return None
    address = ray._private.worker.get_dashboard_url()
    return f"http://{address}" if address else None


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that Ray was told to empty: preempted, or scaled down."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())


def write_note(key: str, text: str, *, overwrite: bool = True) -> None:
    """Put a short text where every process of the cluster reads it within milliseconds.

    It is in the memory of Ray's head node (GCS) until `remove_note`, or until the cluster ends.
    """
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, text, overwrite=overwrite, namespace=_NOTES)


def read_note(key: str) -> str | None:
    """Return what `write_note` put there."""
    from ray.experimental import internal_kv

    value = internal_kv._internal_kv_get(key, namespace=_NOTES)
    return None if value is None else value.decode()


def remove_note(key: str) -> None:
    """Forget a note."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=_NOTES)
