"""Whether a Ray cluster answers at an address, within seconds.

Ray itself retries for a quarter of an hour where something else listens, and reports nothing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from multistill.errors import MultistillError

CONNECT_TIMEOUT_SECONDS = 5.0
ANSWER_TIMEOUT_SECONDS = 8.0
_GCS_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A method that only Ray's head node has. `tests/cluster/test_reachable.py` calls it on the pinned
version."""


def check_reachable(address: str) -> None:
    """Check that a Ray cluster answers at `host:port` or `ray://host:port`.

    `auto` and names without a port are not checked: Ray resolves them on this machine, or rejects
    them immediately.

    Raises:
        MultistillError: nothing listens there, or what listens is no Ray cluster.
    """
    is_client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    target = (host.strip("[]"), int(port))
    try:
        socket.create_connection(target, timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise unreachable(address, str(error)) from error
    import grpc

    # No proxy: Ray does not use one for its own connections.
    with _channel(grpc, f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise unreachable(address, _OTHER_SERVICE) from error
        if is_client:
            return
        try:
            channel.unary_unary(_GCS_METHOD)(b"", timeout=ANSWER_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise unreachable(address, _OTHER_SERVICE) from error
            # Anything else, such as a missing token, comes from Ray: it says so when connecting.


_OTHER_SERVICE = "something listens there, but it does not answer as Ray's head node does"


def unreachable(address: str, reason: str) -> MultistillError:
    """The error for a cluster that cannot be connected to."""
    return MultistillError(
        f"cannot connect to the Ray cluster at `{address}` ({reason}); check that it runs, that "
        "resources.address or RAY_ADDRESS is right (the head node's port, 6379 unless it was "
        "started with another) and that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH has its token"
    )


def _channel(grpc: Any, target: str) -> Any:
    """A channel as Ray opens it: encrypted where RAY_USE_TLS asks for it."""
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() not in {"1", "true"}:
        return grpc.insecure_channel(target, options=options)
    files = [os.environ.get(f"RAY_TLS_{name}") for name in ("CA_CERT", "SERVER_KEY", "SERVER_CERT")]
    contents = [Path(file).read_bytes() if file else None for file in files]
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*contents), options=options)
