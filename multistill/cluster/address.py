"""Address and token of a cluster's job server, and a check that the connection is safe."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from multistill.errors import MultistillError, UsageError

DASHBOARD_PORT = 8265
SHARED = (
    "Ray does not separate the users of a cluster: everybody who holds its token can read what "
    "this job reads, and run code as it does"
)
"""What a person should know before a job runs on a cluster."""


def job_server(address: str) -> str:
    """Return the URL of a cluster's job server, without a trailing slash.

    Accepts `https://host[:port][/path]`, `http://host[:port]`, `host[:port]`.

    Raises:
        UsageError: another scheme, credentials in the address, or no host.
    """
    text = address.strip()
    if "://" not in text:
        text = f"http://{text}"
    text = text.rstrip("/")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in {"http", "https"}:
        raise UsageError(
            f"`{address}` is not the address of a Ray job server; "
            f"give http://HOST:{DASHBOARD_PORT} or https://HOST"
        )
    if parts.username or parts.password:
        raise UsageError(
            "the address contains credentials; set RAY_AUTH_TOKEN to the token, or "
            "RAY_AUTH_TOKEN_PATH to the path of its file, instead"
        )
    if port is None and parts.scheme == "http" and not parts.path:
        bracketed = f"[{host}]" if ":" in host else host
        text = f"http://{bracketed}:{DASHBOARD_PORT}"
    return text


def token() -> str | None:
    """Return the cluster's token from RAY_AUTH_TOKEN, else from the file at RAY_AUTH_TOKEN_PATH.

    Raises:
        UsageError: the file cannot be read or is empty.
    """
    value = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if value:
        return value
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not path:
        return None
    try:
        value = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"RAY_AUTH_TOKEN_PATH is `{path}`, which cannot be read") from error
    if not value:
        raise UsageError(f"RAY_AUTH_TOKEN_PATH is `{path}`, which is empty")
    return value


def refuse_unsafe(server: str, has_token: bool) -> None:
    """Refuse a plain-http address on the public internet.

    Without a token, anyone who reaches such a cluster can run code on it (CVE-2023-48022);
    with one, the token itself would be sent unencrypted.

    Raises:
        UsageError: the address is unsafe.
        MultistillError: the host name cannot be resolved.
    """
    parts = urlsplit(server)
    if parts.scheme == "https" or not _is_public(parts.hostname or ""):
        return
    host = parts.hostname
    risk = "would get the token unencrypted" if has_token else "is used without a token"
    raise UsageError(
        f"{server} is a public address over plain http and {risk}; open a tunnel "
        f"(ssh -L {DASHBOARD_PORT}:127.0.0.1:{DASHBOARD_PORT} {host}) and submit to "
        f"http://127.0.0.1:{DASHBOARD_PORT}, or use https with RAY_AUTH_TOKEN"
    )


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    try:
        addresses = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise MultistillError(f"the host `{host}` cannot be resolved; check --address") from error
    return any(ipaddress.ip_address(str(entry[4][0])).is_global for entry in addresses)
