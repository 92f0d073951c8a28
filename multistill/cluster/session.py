"""Ray for a run: a private local instance, or a connection to the cluster in the job file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill import provenance
from multistill.cluster.address import SHARED
from multistill.cluster.autoscale import wait_for_resources
from multistill.cluster.reachable import check_reachable, unreachable
from multistill.cluster.scratch import scratch_folder, scratch_problem
from multistill.config.secrets import has_secret
from multistill.errors import MultistillError
from multistill.hardware import THREAD_LIMIT, local_cpus, requested_thread_limit

if TYPE_CHECKING:
    from multistill.config import ResourcesConfig

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Waiting OpenMP threads give up their core (GNU and Intel runtimes; torch's wheels have the
GNU one). By default they spin, and on a core that is shared the one that should work waits for
the one that spins: benchmarks/waiting.py. Both are read when torch is loaded."""

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**29)}
"""glibc keeps freed memory, up to 512 MB at the end of its heap, for the next step. By default it
returns the tensors of a step to the system, and a third of a small model's training goes into
getting their pages again: benchmarks/allocation.py. 32 MB is the largest threshold that glibc
accepts. Both are read when a process starts."""

WORKER_DEFAULTS = {**PASSIVE_WAITING, **KEPT_MEMORY}
"""Of workers on every node, this one and those of a cluster."""

ENVIRONMENT_DEFAULTS = {
    **WORKER_DEFAULTS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # otherwise relative paths break inside trials
    # report() blocks until the controller polls; the default of 2 s is long for small models.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set unless the user has set them: Ray reads these settings only from the environment."""

FORWARDED = ("HF_HUB_OFFLINE", "HF_HOME", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")
"""Passed to the workers of a cluster. Never secrets: Ray shows them to every user."""


class RayStartError(MultistillError):
    """A local Ray does not start.

    Attributes:
        sentence: what is wrong.
        fix: what to do.
    """

    def __init__(self, sentence: str, fix: str) -> None:
        super().__init__(f"{sentence}; {fix}")
        self.sentence = sentence
        self.fix = fix


@contextmanager
def start(
    resources: ResourcesConfig,
    *,
    dashboard: bool = False,
    log: Callable[[str], None] = lambda message: None,
) -> Iterator[dict[str, float]]:
    """Connect to Ray for the duration of the block.

    An existing connection of this process is reused and left open. Inside a Ray job, or if
    `resources.address` or RAY_ADDRESS is set, the process connects to that cluster.
    Otherwise a private Ray is started on this machine and shut down at the end of the block.

    Args:
        dashboard: start a local Ray with its dashboard and state API, on 127.0.0.1. Ray
            Train inside Ray Tune needs it to free the resources of stopped trials.
        log: called with the resources that an autoscaled cluster is waiting for, and with
            `SHARED` where it is a cluster.

    Yields:
        the cluster's resources.

    Raises:
        MultistillError: the cluster does not answer or does not scale as required, or a
            local Ray does not start.
    """
    set_environment(resources)
    import ray

    if ray.is_initialized():
        with wait_for_resources(resources.wait_for, resources.wait_minutes, log) as available:
            yield available
        return
    check(resources)
    address = _address(resources)
    if address is None:
        init_local(resources, dashboard)
    else:
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # `submit` has said it
            log(SHARED)
        _init(address, _cluster_options(address))
    try:
        with wait_for_resources(resources.wait_for, resources.wait_minutes, log) as available:
            yield available
    finally:
        ray.shutdown()


def set_environment(resources: ResourcesConfig) -> None:
    """Set what Ray and its workers read from the environment, before Ray is imported."""
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_thread_limit())
    if "ray" not in sys.modules:
        # Ray reads the mode at import: set later, it would reach Ray's processes but not this one.
        os.environ.setdefault("RAY_AUTH_MODE", "token" if not _address(resources) else _auth_mode())


def init_local(
    resources: ResourcesConfig, dashboard: bool, is_unwanted: Callable[[], bool] = lambda: False
) -> None:
    """Start a Ray of this process alone; see `start`.

    Args:
        is_unwanted: asked before a second attempt, which is then left out.

    Raises:
        RayStartError: it does not start.
    """
    _init(None, _local_options(resources, dashboard), is_unwanted)


def is_private(resources: ResourcesConfig) -> bool:
    """Whether `start` starts a Ray of its own, which ends with the run."""
    ray = sys.modules.get("ray")
    return _address(resources) is None and not (ray is not None and ray.is_initialized())


def check(resources: ResourcesConfig) -> None:
    """Look at what `start` needs, within seconds: a cluster that answers, or a usable folder.

    Raises:
        MultistillError: it would fail.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return
    address = _address(resources)
    if address:
        check_reachable(address)
    elif problem := scratch_problem():
        raise RayStartError(*problem)


def _init(
    address: str | None,
    options: dict[str, Any],
    is_unwanted: Callable[[], bool] = lambda: False,
) -> None:
    import ray

    for is_last_attempt in (False, True):
        try:
            with _sigterm_kept():
                ray.init(logging_level="error", log_to_driver=False, **options)
            return
        except Exception as error:
            # Ray gives its own processes 30 s to start; the first time, from a cold or busy
            # disk, their imports can take longer.
            is_slow = address is None and "timed out during startup" in str(error)
            if is_last_attempt or not is_slow or is_unwanted():
                raise _failure(address, error) from error
            ray.shutdown()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which `ray.init` replaces by one that exits."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _address(resources: ResourcesConfig) -> str | None:
    address = resources.address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        return None
    if address and address.startswith(("http://", "https://")):
        # RAY_ADDRESS can be the job server's address, which a driver cannot connect to.
        if resources.address is None:
            return None
        raise MultistillError(
            f"resources.address `{address}` is the address of the dashboard; use "
            f"`multistill submit JOB --address {address}`, or `auto` on a node of the cluster"
        )
    return address


def _auth_mode() -> str:
    """Return the authentication mode for a cluster: `token` if there is a token."""
    has_token = (
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or (Path.home() / ".ray" / "auth_token").is_file()
    )
    return "token" if has_token else "disabled"


def _local_options(resources: ResourcesConfig, dashboard: bool) -> dict[str, Any]:
    # Without `local`, Ray would connect to any cluster that runs on this machine.
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


def _cluster_options(address: str) -> dict[str, Any]:
    options: dict[str, Any] = {"address": address}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has a runtime_env
        package = Path(__file__).resolve().parents[1]
        options["runtime_env"] = {"py_modules": [str(package)], "env_vars": forwarded()}
    return options


def forwarded() -> dict[str, str]:
    """Return the environment variables for processes on other nodes, without secrets."""
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    variables |= {name: os.environ.get(name, value) for name, value in WORKER_DEFAULTS.items()}
    variables |= _thread_limit()
    variables[provenance.VERSION_VARIABLE] = provenance.version()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and not has_secret(uri):
        variables["MLFLOW_TRACKING_URI"] = uri
    return variables


def _thread_limit() -> dict[str, str]:
    """The user's limit of threads per worker as a variable, if there is one.

    A submitted job has it from `submit`: its own OMP_NUM_THREADS was set by Ray.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    limit = requested_thread_limit()
    return {} if limit is None else {THREAD_LIMIT: str(limit)}


def _failure(address: str | None, error: Exception) -> MultistillError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if address is not None:
        return unreachable(address, reason)
    if "No space left on device" in str(error):
        return RayStartError(
            f"Ray's scratch folder {scratch_folder()} is full",
            "free some space there, or set RAY_TMPDIR to a folder on another disk",
        )
    return RayStartError(
        f"Ray does not start on this machine ({reason})",
        f"read the last lines of {scratch_folder() / 'ray' / 'session_latest' / 'logs'}/*.err and "
        "gcs_server.out there, end leftover Ray processes with `ray stop`, and try again",
    )
