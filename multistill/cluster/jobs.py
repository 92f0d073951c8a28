"""Sending a job file to a Ray cluster as a Ray job, and seeing how it does.

What travels is the resolved job file and our package, a few megabytes; recordings,
features and models stay on storage that all nodes see.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.address import job_server, refuse_unsafe, token
from multistill.cluster.session import forwarded
from multistill.errors import MultistillError, UsageError
from multistill.tracking.redaction import redact

if TYPE_CHECKING:
    from multistill.config import JobConfig

PACKAGE = Path(__file__).resolve().parents[1]
JOB_FILE = "job.yaml"
ENTRYPOINT = ["python", "-m", "multistill", "run", JOB_FILE, "--set", "resources.address=auto"]
MAX_UPLOAD = 90 * 2**20
"""Ray's dashboard takes 100 MiB; the request around the package needs some of it."""
LOST_SECONDS = 300.0
READY_SECONDS = 120.0
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_DONE = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Submission:
    """A job on a cluster.

    Attributes:
        status: Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: 0 if it succeeded or was not waited for, else the job's own or 1.
    """

    submission_id: str
    address: str
    status: str
    exit_code: int
    message: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def submit(job: JobConfig, address: str, *, wait: bool = True) -> Submission:
    """Run a job on the cluster at `address`; with `wait`, copy its log to standard output.

    The id is made from the job's content: submitting the same job while it runs follows the
    running one. When a job of that id has ended, a number is appended.

    Args:
        job: with absolute paths that every node of the cluster resolves.

    Raises:
        UsageError: the address is wrong; nothing was sent.
        MultistillError: the cluster does not answer, or refuses.
    """
    from multistill import __version__

    resolved = job.to_yaml()
    _check_size(PACKAGE)
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="multistill-") as folder:
        (Path(folder) / JOB_FILE).write_text(resolved, encoding="utf-8")
        started = _start(
            client,
            _id_of(job.name, resolved),
            entrypoint=shlex.join(ENTRYPOINT),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(PACKAGE)],
                "excludes": ["__pycache__", "*.pyc"],
                "env_vars": forwarded(),
            },
            metadata={"job": job.name, "multistill": __version__},
        )
    if wait:
        for text in _follow(client, started):
            sys.stdout.write(text)
            sys.stdout.flush()
    return _result(client, address, started, waited=wait)


def status(submission_id: str, address: str) -> dict[str, Any]:
    """State of a job: `submission_id`, `status`, `message`, `start_time`, `end_time` (seconds)."""
    info = _info(_client(address), submission_id)
    return {
        "submission_id": submission_id,
        "status": str(info.status.value),
        "message": info.message,
        "start_time": info.start_time and info.start_time / 1000,
        "end_time": info.end_time and info.end_time / 1000,
    }


def logs(submission_id: str, address: str, *, follow: bool = False) -> Iterator[str]:
    """The log so far; with `follow`, also what comes until the job ends."""
    client = _client(address)
    _info(client, submission_id)
    if follow:
        yield from _follow(client, submission_id)
    else:
        yield _call(client.get_job_logs, submission_id)


def stop(submission_id: str, address: str) -> bool:
    """Stop a job; what it finished is kept. Returns False if it was not running."""
    client = _client(address)
    if str(_info(client, submission_id).status.value) in _DONE:
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
            f"the package is {total / 2**20:.0f} MiB, more than a Ray job may carry; "
            f"move out its largest files: {largest}"
        )


def _id_of(name: str, resolved: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "job"
    return f"multistill-{slug}-{hashlib.sha256(resolved.encode()).hexdigest()[:8]}"


def _start(client: Any, wanted: str, **request: Any) -> str:
    """Start the job, or find that it runs already. Returns its id."""
    for number in range(1, 1000):
        name = wanted if number == 1 else f"{wanted}-{number}"
        known = _known(client, name)
        if known is None:
            return _submit_when_ready(client, submission_id=name, **request)
        if known not in _DONE:
            return name
    raise MultistillError(f"the cluster has a thousand jobs `{wanted}`; delete the old ones")


def _submit_when_ready(client: Any, **request: Any) -> str:
    """Submit; a head that has just started needs a while before it takes jobs."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return str(_call(client.submit_job, **request))
        except MultistillError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(2.0)


def _known(client: Any, submission_id: str) -> str | None:
    for info in _call(client.list_jobs):
        if info.submission_id == submission_id:
            return str(info.status.value)
    return None


def _client(address: str) -> Any:
    server = job_server(address)
    secret = token()
    refuse_unsafe(server, secret is not None)
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return _call(JobSubmissionClient, server, headers=headers, where=server)


def _call(call: Callable[..., Any], *args: Any, where: str = "", **kwargs: Any) -> Any:
    """Call the job server; its errors become sentences."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        text = redact(" ".join(str(error).split()))
        if "status code 401" in text or "Authentication required" in text:
            raise MultistillError(
                "the cluster asks for a token; put it into RAY_AUTH_TOKEN, or the path of its "
                "file into RAY_AUTH_TOKEN_PATH"
            ) from error
        if "status code 403" in text or "Authentication failed" in text:
            raise MultistillError(
                "the cluster refuses the token; see that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                "holds the token of this cluster (`ray get-auth-token` on its head)"
            ) from error
        if isinstance(error, ConnectionError) or "Connection aborted" in text:
            place = f" at {where}" if where else ""
            raise MultistillError(
                f"no Ray job server answers{place}; see that the head runs, that the address is "
                "the dashboard's, and that the tunnel to it is open"
            ) from error
        raise MultistillError(f"the cluster refuses: {text[:400]}") from error


def _info(client: Any, submission_id: str) -> Any:
    if _known(client, submission_id) is None:
        raise UsageError(
            f"the cluster knows no job `{submission_id}`; `multistill submit` prints the id"
        )
    return _call(client.get_job_info, submission_id)


def _follow(client: Any, submission_id: str) -> Iterator[str]:
    """The log from its start to the job's end; survives lost connections."""
    seen = 0
    last_contact = time.monotonic()
    while True:
        position = 0
        try:
            for text in _tail(client, submission_id):
                last_contact = time.monotonic()
                # After a lost connection the log comes again from its start.
                fresh = text[max(0, seen - position) :]
                position += len(text)
                if fresh:
                    seen = max(seen, position)
                    yield fresh
            if str(client.get_job_status(submission_id).value) in _DONE:
                return
            last_contact = time.monotonic()
        except GeneratorExit:
            raise
        except Exception as error:
            if time.monotonic() - last_contact > LOST_SECONDS:
                raise MultistillError(
                    f"the cluster has not answered for {LOST_SECONDS / 60:.0f} minutes; the job "
                    f"goes on without us: `multistill logs {submission_id}` shows how it does"
                ) from error
        time.sleep(1.0)


def _tail(client: Any, submission_id: str) -> Iterator[str]:
    """Ray's asynchronous log stream as a plain one."""
    loop = asyncio.new_event_loop()
    stream = client.tail_job_logs(submission_id)
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(stream))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


def _result(client: Any, address: str, submission_id: str, *, waited: bool) -> Submission:
    info = _call(client.get_job_info, submission_id)
    state = str(info.status.value)
    code = 0
    if waited and state != "SUCCEEDED":
        code = info.driver_exit_code if info.driver_exit_code in {1, 2} else 1
    return Submission(submission_id, job_server(address), state, code, info.message)
