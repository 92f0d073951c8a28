"""Serve a model on this machine, with a Ray of its own, until it is stopped."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from multistill.cluster import session
from multistill.config import ResourcesConfig
from multistill.errors import UsageError
from multistill.serving.settings import ServingSettings
from multistill.serving.tokens import read_token

NAME = "multistill"
"""Of the application."""
OBJECT_STORE_MB = 256
"""Of a local Ray: recordings on their way to a replica are all that is in it."""
KEEP_ALIVE_SECONDS = 15
"""For which an idle connection stays open."""
PROXY_CHECK = ("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
"""Three silent checks of Serve's proxy, which holds the connections, and there is a new one: after
half a minute by Serve's default. Its controller reads the variable."""
PACKAGES = (
    "fastapi",
    "starlette",
    "uvicorn",
    "python_multipart",
    "websockets",
    "prometheus_client",
)


def check_packages() -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        UsageError: one is missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"serving needs the package {missing[0].replace('_', '-')}; run "
            "`pip install 'multistill[serve]'`"
        )


def warning(host: str, settings: ServingSettings) -> str | None:
    """What is said before others may reach a server without a token; None: nothing."""
    if is_loopback(host) or settings.token_required:
        return None
    return (
        f"everybody who reaches {host} can use this server; set a token with --token-file, or "
        "leave out --host"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Refuse an address at which nothing can listen: Serve would try again and again.

    Raises:
        UsageError: the port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"the port {port} of {host} is taken; choose another") from error
            reason = error.strerror or str(error)
            raise UsageError(
                f"nothing can listen at {host} port {port} ({reason}); choose another --host or "
                "--port"
            ) from error


def check_resources(settings: ServingSettings, resources: Mapping[str, float]) -> None:
    """Refuse more replicas than Ray has room for: Serve would wait for ever.

    Raises:
        UsageError: CPUs or GPUs are missing.
    """
    for name, each, option in (("CPU", settings.cpus, "cpus"), ("GPU", settings.gpus, "gpus")):
        wanted, found = settings.replicas * each, resources.get(name, 0.0)
        if wanted > found:
            raise UsageError(
                f"{settings.replicas} replicas of {each:g} {name} need {wanted:g}, and Ray has "
                f"{found:g}; lower --replicas or --{option}"
            )


@contextmanager
def served(settings: ServingSettings, host: str, port: int) -> Iterator[str]:
    """Serve a model for the duration of the block.

    Yields:
        the address.

    Raises:
        UsageError: there is no such model, the port is taken, a package or token is missing, or
            there are too few CPUs for the replicas.
        MultistillError: the model cannot be loaded.
    """
    check_packages()
    check_port(host, port)
    os.environ.setdefault(*PROXY_CHECK)
    local = ResourcesConfig(address="local", object_store_mb=OBJECT_STORE_MB)
    with session.start(local) as resources:
        check_resources(settings, resources)
        _check_model(settings)
        from ray import serve

        from multistill.serving.deployment import LOGGING, application

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location="HeadOnly",
            logging_config=LOGGING,
            http_options={
                "host": host,
                "port": port,
                "keep_alive_timeout_s": KEEP_ALIVE_SECONDS,
            },
        )
        try:
            serve.run(application(settings), name=NAME, route_prefix="/")
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            serve.delete(NAME)  # requests in progress are answered


def until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    try:
        stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def with_token(settings: ServingSettings) -> ServingSettings:
    """Settings that require a token if there is one here.

    Raises:
        UsageError: the token is invalid.
    """
    has_token = read_token(settings.token_file) is not None
    return settings.model_copy(update={"token_required": has_token})


def _check_model(settings: ServingSettings) -> None:
    """Load the model once where replicas run: a replica's own error would be a traceback.

    Raises:
        MultistillError: as of `Predictor.load`.
    """
    import ray

    def load(given: ServingSettings) -> None:
        from multistill.inference.predictor import Predictor

        Predictor.load(
            given.model,
            "cuda" if given.gpus else "cpu",
            workspace=given.workspace,
            temperature=given.temperature,
        )

    # One call per process, which would keep the model in memory otherwise.
    task: Any = ray.remote(max_calls=1, max_retries=0)(load).options(
        num_cpus=settings.cpus, num_gpus=settings.gpus
    )
    ray.get(task.remote(settings))
