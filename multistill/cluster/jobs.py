"""Submitting a job file to a Ray cluster as a Ray job, and following it.

Only the resolved job file and the multistill package are uploaded, a few megabytes;
recordings, features and models stay on storage that all nodes can access.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster import job_list
from multistill.cluster.address import job_server, refuse_unsafe, token
from multistill.cluster.session import forwarded
from multistill.errors import MultistillError, UsageError
from multistill.tracking.owner import SUBMITTER, account_at_host
from multistill.tracking.redaction import redact

if TYPE_CHECKING:
    from multistill.config import JobConfig

PACKAGE = Path(__file__).resolve().parents[1]
JOB_FILE = "job.yaml"
ENTRYPOINT = ["python", "-m", "multistill", "run", JOB_FILE, "--set", "resources.address=auto"]
STOPPING = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Between SIGTERM and SIGKILL of a job that is stopped: trainings save meanwhile. Ray's default is
three seconds."""
MAX_UPLOAD = 90 * 2**20
"""Ray's dashboard accepts 100 MiB, of which the rest of the request needs a part."""
LOST_CONNECTION_SECONDS = 300.0
READY_TIMEOUT_SECONDS = 120.0
ANSWER_TIMEOUT_SECONDS = 10.0
_VERBOSE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_MAX_SLUG = 100
"""Characters of the job's name in a submission id, which Ray uses in the names of its files."""
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


class FollowingInterruptedError(MultistillError):
    """Ctrl-C while a log was followed: the job on the cluster goes on."""

    exit_code = 130


@dataclass(frozen=True)
class Submission:
    """A job on a cluster.

    Attributes:
        status: Ray's job status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: 0 if the job succeeded or was not waited for, else the job's exit code or 1.
    """

    submission_id: str
    address: str
    status: str
    exit_code: int
    message: str | None = None

    @property
    def page(self) -> str:
        """Where Ray's dashboard shows it."""
        return job_list.job_page(self.address, self.submission_id)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def submit(job: JobConfig, address: str, *, wait: bool = True) -> Submission:
    """Submit a job to the cluster at `address`; with `wait`, copy its log to standard output.

    The submission id is derived from the job's content: submitting a job that is already
    running follows the running one. If a job with that id has ended, a number is appended.

    Args:
        job: with absolute paths that are valid on every node of the cluster.

    Raises:
        UsageError: the address is invalid; nothing was sent.
        FollowingInterruptedError: Ctrl-C while following; the job goes on.
        MultistillError: the cluster does not answer, or rejects the job.
    """
    resolved = job.to_yaml()
    _check_size(PACKAGE)
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="multistill-") as folder:
        (Path(folder) / JOB_FILE).write_text(resolved, encoding="utf-8")
        submission_id = _start(
            client,
            _submission_id(job.name, resolved),
            entrypoint=shlex.join(ENTRYPOINT),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(PACKAGE)],
                "excludes": ["__pycache__", "*.pyc"],
                "env_vars": {**forwarded(), SUBMITTER: account_at_host(), **STOPPING},
            },
            metadata=job_list.submission_metadata(job),
        )
    if wait:
        _follow(client, submission_id, address, write_out)
    return _result(client, address, submission_id, waited=wait)


def status(submission_id: str, address: str) -> dict[str, Any]:
    """Return a job's `submission_id`, `status`, `message`, `start_time`, `end_time` (seconds)."""
    info = _info(_client(address), submission_id)
    return {
        "submission_id": submission_id,
        "status": str(info.status.value),
        "message": info.message,
        "start_time": info.start_time and info.start_time / 1000,
        "end_time": info.end_time and info.end_time / 1000,
    }


def logs(submission_id: str, address: str) -> str:
    """The log so far."""
    client = _client(address)
    _info(client, submission_id)
    return str(_call(client.get_job_logs, submission_id))


def follow(submission_id: str, address: str, write: Callable[[str], object]) -> None:
    """Pass the log to `write`, piece by piece from its start, until the job ends.

    Raises:
        FollowingInterruptedError: Ctrl-C; the job goes on.
        MultistillError: there is no such job, or the cluster no longer answers.
    """
    client = _client(address)
    _info(client, submission_id)
    _follow(client, submission_id, address, write)


def write_out(text: str) -> None:
    """Write to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def stop(submission_id: str, address: str) -> bool:
    """Stop a job; its finished artifacts are kept. Returns False if it was not running."""
    client = _client(address)
    if str(_info(client, submission_id).status.value) in _ENDED:
        return False
    return bool(_call(client.stop_job, submission_id))


def _check_size(package: Path) -> None:
    sizes = sorted(
        ((path.stat().st_size, path) for path in package.rglob("*") if path.is_file()), reverse=True
    )
    total = sum(size for size, path in sizes if "__pycache__" not in path.parts)
    if total > MAX_UPLOAD:
        largest = ", ".join(f"{path} ({size / 2**20:.0f} MiB)" for size, path in sizes[:3])
        raise MultistillError(
            f"the package is {total / 2**20:.0f} MiB, more than Ray accepts with a job; "
            f"move its largest files out of it: {largest}"
        )


def _submission_id(name: str, resolved: str) -> str:
    return f"multistill-{slug_of(name)}-{hashlib.sha256(resolved.encode()).hexdigest()[:8]}"


def slug_of(name: str) -> str:
    """The name of a job in letters that schedulers and file names take."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:_MAX_SLUG].strip("-") or "job"


def _start(client: Any, submission_id: str, **request: Any) -> str:
    """Submit the job unless it is already running. Returns its submission id."""
    for number in range(1, 1000):
        numbered_id = submission_id if number == 1 else f"{submission_id}-{number}"
        job_status = _status(client, numbered_id)
        if job_status is None:
            return _submit_when_ready(client, submission_id=numbered_id, **request)
        if job_status not in _ENDED:
            return numbered_id
    raise MultistillError(
        f"the cluster has 999 jobs `{submission_id}`; delete old ones with `ray job delete ID`"
    )


def _submit_when_ready(client: Any, **request: Any) -> str:
    """Submit; retry while a head node that has just started does not accept jobs yet."""
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            return str(_call(client.submit_job, **request))
        except MultistillError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(2.0)


def _status(client: Any, submission_id: str) -> str | None:
    """Return a job's status, or None if the cluster has no such job."""
    for info in _call(client.list_jobs):
        if info.submission_id == submission_id:
            return str(info.status.value)
    return None


def submitted(address: str) -> list[dict[str, Any]]:
    """The jobs that were submitted to the cluster at `address`, as `job_list.rows`.

    Raises:
        UsageError: the address is invalid.
        MultistillError: nothing answers there, or it refuses the request.
    """
    return job_list.rows(_call(_client(address).list_jobs), address)


def _client(address: str) -> Any:
    server = job_server(address)
    auth_token = token()
    refuse_unsafe(server, auth_token is not None)
    from ray.job_submission import JobSubmissionClient

    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Authorization": f"Bearer {auth_token}"} if auth_token else {}
    _call(_check_answers, server, headers, where=server)
    return _call(JobSubmissionClient, server, headers=headers, where=server)


def _check_answers(server: str, headers: dict[str, str]) -> None:
    """Check that something answers in time: Ray's client would wait without an end.

    Raises:
        ConnectionError: nothing does, or what answers is no job server.
    """
    import requests

    try:
        answer = requests.get(
            f"{server}/api/version", headers=headers, timeout=ANSWER_TIMEOUT_SECONDS
        )
    except requests.RequestException as error:
        raise ConnectionError(str(error)) from error
    if answer.status_code in {401, 403}:
        return  # Ray's client reports these
    try:
        is_job_server = "ray_version" in answer.json()
    except ValueError:
        is_job_server = False
    if not is_job_server:
        raise ConnectionError(f"status code {answer.status_code}")


def _call(call: Callable[..., Any], *args: Any, where: str = "", **kwargs: Any) -> Any:
    """Call the job server and convert its exceptions to readable errors."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        text = redact(" ".join(str(error).split()))
        if "status code 401" in text or "Authentication required" in text:
            raise MultistillError(
                "the cluster requires a token; set RAY_AUTH_TOKEN to it, or RAY_AUTH_TOKEN_PATH "
                "to the path of its file"
            ) from error
        if "status code 403" in text or "Authentication failed" in text:
            raise MultistillError(
                "the cluster rejects the token; check that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                "has the token of this cluster (`ray get-auth-token` on its head node)"
            ) from error
        if isinstance(error, ConnectionError) or "Connection aborted" in text:
            location = f" at {where}" if where else ""
            raise MultistillError(
                f"no Ray job server answers{location}; check that the head node runs, that the "
                "address is the dashboard's, and that the tunnel to it is open"
            ) from error
        raise MultistillError(f"the cluster rejects the request: {text[:400]}") from error


def _info(client: Any, submission_id: str) -> Any:
    if _status(client, submission_id) is None:
        raise UsageError(
            f"the cluster has no job `{submission_id}`; `multistill submit` prints the id"
        )
    return _call(client.get_job_info, submission_id)


def _follow(client: Any, submission_id: str, address: str, write: Callable[[str], object]) -> None:
    """`follow` with a client; reconnects if the connection is lost."""
    where = f"{shlex.quote(submission_id)} --address {shlex.quote(job_server(address))}"
    num_written = 0
    last_contact = time.monotonic()
    position = 0
    writing = False

    def write_new(text: str) -> None:
        nonlocal num_written, last_contact, position, writing
        last_contact = time.monotonic()
        # After a reconnection the log is sent again from its start.
        new_text = text[max(0, num_written - position) :]
        position += len(text)
        if new_text:
            num_written = max(num_written, position)
            writing = True
            write(new_text)
            writing = False

    try:
        while True:
            position = 0
            try:
                if asyncio.run(_interrupted(_tail(client, submission_id, write_new))):
                    raise KeyboardInterrupt
                if str(client.get_job_status(submission_id).value) in _ENDED:
                    return
                last_contact = time.monotonic()
            except Exception as error:
                if writing:  # the output is closed or full, and the connection is not lost
                    raise
                if time.monotonic() - last_contact > LOST_CONNECTION_SECONDS:
                    raise MultistillError(
                        f"the cluster has not answered for {LOST_CONNECTION_SECONDS / 60:.0f} "
                        "minutes; the job may still be running: check it with `multistill status "
                        f"{where}`"
                    ) from error
            time.sleep(1.0)
    except KeyboardInterrupt:
        raise FollowingInterruptedError(
            f"stopped following job {submission_id}, which goes on; follow it again with "
            f"`multistill logs -f {where}`, or end it with `multistill stop {where}`"
        ) from None


async def _interrupted(coroutine: Coroutine[Any, Any, None]) -> bool:
    """Run a coroutine; return whether Ctrl-C cancelled it, so that it could end in order.

    The handler is the loop's own, which wakes the loop up: `asyncio.run` alone does not notice a
    signal that arrives just before it waits for its sockets.
    """
    task = asyncio.ensure_future(coroutine)
    loop, interrupted = asyncio.get_running_loop(), False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        task.cancel()

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        await task
    except asyncio.CancelledError:
        if not interrupted:
            raise
    finally:
        if in_main_thread:
            loop.remove_signal_handler(signal.SIGINT)
    return interrupted


async def _tail(client: Any, submission_id: str, write: Callable[[str], object]) -> None:
    """Pass on Ray's log stream until it ends."""
    async with aclosing(client.tail_job_logs(submission_id)) as stream:
        async for text in stream:
            write(text)


def _result(client: Any, address: str, submission_id: str, *, waited: bool) -> Submission:
    info = _call(client.get_job_info, submission_id)
    job_status = str(info.status.value)
    exit_code = 0
    if waited and job_status != "SUCCEEDED":
        exit_code = info.driver_exit_code if info.driver_exit_code in {1, 2} else 1
    return Submission(submission_id, job_server(address), job_status, exit_code, info.message)
