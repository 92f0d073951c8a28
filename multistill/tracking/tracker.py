"""`Tracker`: a `RunLogger` that records to MLflow through a journal and a background thread."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from multistill.databases import CHECK_TIMEOUT_SECONDS, problem_of, sqlite_file, sqlite_url
from multistill.errors import MultistillError, UsageError
from multistill.tracking.addresses import without_credentials
from multistill.tracking.journal import Journal, size_of
from multistill.tracking.owner import Owner, current_owner
from multistill.tracking.recorder import Recorder, now_ms
from multistill.tracking.redaction import redact
from multistill.tracking.server import (
    ForbiddenError,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
    as_number,
    clean_params,
    clean_tags,
    to_json_number,
)

if TYPE_CHECKING:
    from multistill.config import TrackingConfig

SPOOL = "tracking"
SERVER_TIMEOUT_SECONDS = 8.0
DATABASE_TIMEOUT_SECONDS = 60.0
"""Longer, since MLflow first runs about a hundred migrations on a new SQLite file."""
CLOSE_TIMEOUT_SECONDS = 15.0
RUN_ID_TIMEOUT_SECONDS = 2.0
MAX_ARTIFACT_BYTES = 64 * 2**20
_STATUSES = {"FINISHED", "FAILED", "KILLED"}


class Tracker:
    """One MLflow run. All methods return immediately and none raises.

    Created by `open_tracker` (the top-level run) and by `child`.
    """

    def __init__(
        self, recorder: Recorder, node: str, tags: Mapping[str, str], top: bool, label: str = ""
    ) -> None:
        self._label = label
        self._recorder = recorder
        self._node = node
        self._tags = dict(tags)
        self._top = top

    @property
    def record_id(self) -> str | None:
        """MLflow's run id; None while the server is unavailable.

        For a run that has just been opened, waits up to 2 s for the server to assign the id.
        """
        return self._recorder.wait_run_id(self._node, RUN_ID_TIMEOUT_SECONDS)

    @property
    def uri(self) -> str:
        """Tracking URI, without credentials."""
        return redact(self._recorder.uri)

    @property
    def page(self) -> str:
        """Where people look at this run (`addresses.run_page`)."""
        return self._recorder.page(self._node)

    @property
    def champions(self) -> list[dict[str, Any]]:
        """Models of this job that became champions of the registry so far."""
        return self._recorder.champions

    def info(self, message: str) -> None:
        """Do nothing: messages go to the terminal, not to MLflow."""

    def progress(
        self, done: float, total: float, unit: str, *, running: str = "", **stats: float
    ) -> None:
        """Do nothing: progress goes to the terminal, not to MLflow."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics. A step (epoch) that is already logged keeps its first value."""
        numbers = {}
        for name, value in values.items():
            number = as_number(value)
            if number is not None:
                numbers[str(name)] = to_json_number(number)
        if numbers:
            self._append("metrics", t=now_ms(), step=step, values=numbers)

    def params(self, values: Mapping[str, object]) -> None:
        if values:
            self._append("params", values=clean_params(values))

    def tags(self, values: Mapping[str, str]) -> None:
        if values:
            self._append("tags", values=clean_tags(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a copy of a small file or folder (at most 64 MiB)."""
        try:
            size = size_of(path)
            if size > MAX_ARTIFACT_BYTES:
                raise OSError(f"{size / 2**20:.0f} MiB is larger than an artifact may be")
            copy = self._recorder.journal.copy_in(path)
        except OSError as error:
            self.tags({f"missing artifact {path.name}": str(error)})
            return
        self._append("artifact", file=copy, folder=folder.strip("/"))

    def register(
        self,
        name: str,
        folder: Path,
        metric: str,
        value: float,
        *,
        mode: Literal["max", "min"] = "max",
        margin: float = 0.0,
        data: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Register a model folder as a version of `name`; the best one is the `champion`.

        The version's source run is this run. The alias moves only if `value` beats the
        champion's `metric` by more than `margin` on the same data; the outcome is logged.
        """
        from multistill.tracking.registry import digest_of

        try:
            digest = digest_of(folder)
            copy = self._recorder.journal.copy_in(folder)
        except OSError as error:
            self.tags({f"not registered {name}": str(error)})
            return
        self._append(
            "register",
            file=copy,
            name=name,
            metric=metric,
            value=to_json_number(float(value)),
            mode=mode,
            margin=margin,
            data=data,
            digest=digest,
            tags=clean_tags(tags or {}),
        )

    def child(self, name: str, key: str, kind: str) -> Tracker:
        """Return the child run with this key: continued if it exists, else created.

        Its name on the server tells it from a model of the same name, and from the same stage,
        model or trial of other jobs: `teacher stage (3f9a1c)`.
        """
        node = f"{self._node}/{quote(key, safe='')}"
        child = Tracker(self._recorder, node, self._tags, top=False, label=self._label)
        stage = " stage" if kind == "stage" else ""
        label = f" ({self._label})" if self._label else ""
        child._open(f"{name}{stage}{label}", key, kind, parent=self._node)
        return child

    def close(self, status: str = "FINISHED") -> None:
        """End the run. Closing the top-level run flushes the journal, for at most 15 s."""
        self._append("close", status=status if status in _STATUSES else "FAILED", t=now_ms())
        if self._top:
            self._recorder.stop(CLOSE_TIMEOUT_SECONDS)

    def _open(self, name: str, key: str, kind: str, parent: str | None) -> None:
        self._append(
            "open",
            parent=parent,
            name=redact(name),
            key=key,
            kind=kind,
            t=now_ms(),
            tags=self._tags,
        )

    def _append(self, operation: str, **fields: object) -> None:
        self._recorder.append({"op": operation, "node": self._node, **fields})


def tracking_uri(config: TrackingConfig, workspace: Path) -> str:
    """Return MLflow's tracking URI. Raises UsageError for a file store, which is deprecated."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return sqlite_url(workspace / "mlflow.db")
    if uri.startswith("file:") or "://" not in uri:
        raise UsageError(
            f"tracking.uri `{redact(uri)}` is a folder, which MLflow no longer supports; "
            "use sqlite:///FILE or the address of a server"
        )
    return uri


def shown_address(config: TrackingConfig, workspace: Path) -> str:
    """MLflow's tracking URI without passwords, for people; also one that `tracking_uri` refuses."""
    try:
        return redact(tracking_uri(config, workspace))
    except UsageError:
        return redact(config.uri or os.environ["MLFLOW_TRACKING_URI"])


def tracking_problem(
    config: TrackingConfig, workspace: Path, timeout: float = CHECK_TIMEOUT_SECONDS
) -> str | None:
    """Why a run could not be recorded now, with what to do; None if it can be.

    A database is connected to, within `timeout` seconds, and not changed. The address of a server
    is looked at only: whether it answers is seen when the run starts. With
    `tracking.required: false` records wait, so nothing that could pass is a problem.
    """
    try:
        uri = tracking_uri(config, workspace)
    except UsageError as error:
        return str(error)
    if not config.required or uri.startswith(("http://", "https://")):
        return None
    if sqlite_file(uri) == workspace / "mlflow.db" and not workspace.exists():
        return None  # the run creates both
    reason = problem_of(uri, timeout)
    return f"the tracking database {redact(uri)} cannot be used: {reason}" if reason else None


def open_tracker(
    config: TrackingConfig,
    workspace_root: Path,
    job_name: str,
    run_key: str,
    tags: Mapping[str, str],
    *,
    run_name: str | None = None,
    label: str = "",
    log: Callable[[str], None] | None = None,
) -> Tracker:
    """Open the top-level run with this key; continue it if it exists.

    Args:
        job_name: name of the experiment unless `tracking.experiment` or MLflow's own
            MLFLOW_EXPERIMENT_NAME is set.
        run_key: the same for every attempt at the same job, so that attempts share one run.
        tags: tags of the top-level run and of every run below it.
        run_name: of the top-level run; default: the job's name.
        label: appended to the name of every run below it.
        log: called with messages about an unavailable server; default: a logged warning.

    Raises:
        MultistillError: the server does not answer and `tracking.required` is true.
        UsageError: the address is invalid, or the experiment cannot be used.
    """
    uri = tracking_uri(config, workspace_root)
    experiment = config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or job_name
    # MLflow would retry for minutes and then say that a server does not answer.
    if unusable := tracking_problem(config, workspace_root):
        raise MultistillError(unusable)
    server = Server(uri, experiment, workspace_root.absolute() / "mlflow-artifacts")
    target, owner = _target(uri), current_owner(uri)
    spool = workspace_root / SPOOL
    header = {
        "target": target,
        "server": redact(uri),
        "owner": owner.as_json(),
        "experiment": experiment,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    log = log or logging.getLogger("multistill.tracking").warning
    try:
        journal = Journal.create(spool, header)
    except OSError as error:
        raise MultistillError(
            f"tracking records cannot be written to {spool} ({error.strerror}); "
            "choose another folder with --workspace"
        ) from error
    recorder = Recorder(server, journal, spool, target, owner, log)
    tracker = Tracker(recorder, run_key, clean_tags(tags), top=True, label=label)
    tracker._open(run_name or job_name, run_key, "run", parent=None)
    try:
        _ = server.client  # imports MLflow, which takes seconds, before the timeout starts
        recorder.start()
        timeout = SERVER_TIMEOUT_SECONDS if server.remote else DATABASE_TIMEOUT_SECONDS
        opened = recorder.wait_open(timeout)
        problem = recorder.problem
    except (ServerUnavailableError, RecordRejectedError) as error:
        opened, problem = False, error
    if opened:
        return tracker
    address = redact(uri)
    if isinstance(problem, RecordRejectedError):
        recorder.abandon()
        raise UsageError(f"tracking server {address} cannot be used ({problem}): see tracking.uri")
    if config.required:
        recorder.abandon()
        raise MultistillError(_unavailable_message(address, problem, owner, experiment))
    refuses = f"does not let {owner.name} write to the experiment `{experiment}`"
    cause = refuses if isinstance(problem, ForbiddenError) else "does not answer"
    log(
        f"the tracking server {address} {cause}; the run continues, and its records are "
        f"stored in {journal.folder} until it takes them"
    )
    return tracker


def _cause(problem: ServerUnavailableError) -> str:
    """Return only the root cause, which the HTTP library wraps in a list of its attempts."""
    text = str(problem)
    cause = re.search(r"\[Errno -?\d+\] ([^'\")(<]+)", text)
    return cause.group(1).strip().lower() if cause else text[:120]


def _unavailable_message(
    address: str, problem: ServerUnavailableError | None, owner: Owner, experiment: str
) -> str:
    if isinstance(problem, ForbiddenError):
        return (
            f"the tracking server {address} does not let {owner.name} write to the experiment "
            f"`{experiment}`; ask its owner for EDIT permission, or set tracking.experiment to "
            "another name"
        )
    if problem is not None and problem.denied:
        return (
            f"the tracking server {address} rejects the credentials; set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in the environment"
        )
    timeout = f" within {SERVER_TIMEOUT_SECONDS:.0f} s"
    reason = f" ({_cause(problem)})" if problem is not None else timeout
    return (
        f"the tracking server {address} does not answer{reason}; start it, correct tracking.uri, "
        "or set tracking.required: false to store the records in the workspace until it is back"
    )


def _target(uri: str) -> str:
    """Hash the URI without credentials, so that old journals match after a password change."""
    return hashlib.sha256(without_credentials(uri).encode()).hexdigest()[:16]
