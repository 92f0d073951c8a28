"""One Ray for a run: started on this machine, or joined where the job file says."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.autoscale import wait_for_resources
from multistill.errors import MultistillError
from multistill.hardware import local_cpus
from multistill.tracking.redaction import has_password

if TYPE_CHECKING:
    from multistill.config import ResourcesConfig

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else relative paths break inside trials
    # report() blocks until the controller polls; its default of 2 s is long for small models.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set where the user has not: Ray reads its settings from the environment only."""

KNOCK_SECONDS = 5.0

FORWARDED = ("HF_HUB_OFFLINE", "HF_HOME", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Passed to workers of a cluster we join. Never secrets: Ray shows these to every user."""


@contextmanager
def start(
    resources: ResourcesConfig,
    *,
    dashboard: bool = False,
    log: Callable[[str], None] = lambda message: None,
) -> Iterator[dict[str, float]]:
    """Ray for the time of the block; yields the cluster's resources.

    An existing connection of this process is used and left alone. Inside a Ray job, or
    where `resources.address` or RAY_ADDRESS names a cluster, that cluster is joined.
    Else a private Ray is started on this machine and ended with the block.

    Args:
        dashboard: a local Ray's dashboard and state API, on 127.0.0.1. Ray Train inside
            Ray Tune needs it to free resources of stopped trials.
        log: hears what is waited for on a cluster that grows.

    Raises:
        MultistillError: the cluster does not answer or grow, or a local Ray does not start.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "ray" not in sys.modules:
        # Set after the import, the mode would reach Ray's processes but not this one.
        os.environ.setdefault("RAY_AUTH_MODE", "token" if not _address(resources) else _mode())
    import ray

    if ray.is_initialized():
        with wait_for_resources(resources.wait_for, resources.wait_minutes, log) as found:
            yield found
        return
    address = _address(resources)
    if address:
        _check_reachable(address)
    options = _join_options(address) if address else _local_options(resources, dashboard)
    _init(address, options)
    try:
        with wait_for_resources(resources.wait_for, resources.wait_minutes, log) as found:
            yield found
    finally:
        ray.shutdown()


def _init(address: str | None, options: dict[str, Any]) -> None:
    import ray

    for last in (False, True):
        try:
            ray.init(logging_level="error", log_to_driver=False, **options)
            return
        except Exception as error:
            # Ray gives its own processes 30 s to import; the first time, from a cold or busy
            # disk, they may need longer.
            if last or address or "timed out during startup" not in str(error):
                raise MultistillError(_not_started(address, error)) from error
            ray.shutdown()


def _address(resources: ResourcesConfig) -> str | None:
    address = resources.address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        return None
    if address and address.startswith(("http://", "https://")):
        # RAY_ADDRESS may hold the address for job submission; a driver needs the other one.
        if resources.address is None:
            return None
        raise MultistillError(
            f"resources.address `{address}` is the address of the dashboard; run "
            f"`multistill submit JOB --address {address}`, or give `auto` on a node of the cluster"
        )
    return address


def _check_reachable(address: str) -> None:
    """See that something listens there; Ray itself would try for minutes.

    Raises:
        MultistillError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`, which Ray finds on this machine or refuses at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MultistillError(_not_started(address, error)) from error


def _mode() -> str:
    """Auth mode for joining a cluster: `token` as soon as a token can be found."""
    found = (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or (Path.home() / ".ray" / "auth_token").is_file()
    )
    return "token" if found else "disabled"


def _local_options(resources: ResourcesConfig, dashboard: bool) -> dict[str, Any]:
    # Without `local`, Ray would join whatever cluster someone runs on this machine.
    options: dict[str, Any] = {
        "address": "local",
        "num_cpus": resources.num_cpus or local_cpus(),
        "num_gpus": resources.num_gpus,
        "include_dashboard": dashboard,
        "dashboard_host": "127.0.0.1",
    }
    if resources.object_store_mb is not None:
        options["object_store_memory"] = resources.object_store_mb * 2**20
    return options


def _join_options(address: str) -> dict[str, Any]:
    options: dict[str, Any] = {"address": address}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has its own
        package = Path(__file__).resolve().parents[1]
        options["runtime_env"] = {"py_modules": [str(package)], "env_vars": forwarded()}
    return options


def forwarded() -> dict[str, str]:
    """Environment for processes on other nodes, without secrets."""
    found = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and not has_password(uri):
        found["MLFLOW_TRACKING_URI"] = uri
    return found


def _not_started(address: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if address is None:
        return f"Ray does not start on this machine ({reason}); run `multistill doctor`"
    return (
        f"the Ray cluster at `{address}` cannot be joined ({reason}); see that it runs, that "
        "resources.address is right and that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH holds its token"
    )
