"""`Tracker`: a `RunLogger` that records to MLflow."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from multistill.errors import MultistillError, UsageError
from multistill.tracking.journal import Journal, size_of
from multistill.tracking.recorder import Recorder, now_ms
from multistill.tracking.redaction import redact
from multistill.tracking.server import (
    RecordRefusedError,
    Server,
    ServerAwayError,
    as_number,
    clean_params,
    clean_tags,
    to_json_number,
)

if TYPE_CHECKING:
    from multistill.config import TrackingConfig

SPOOL = "tracking"
PROBE_SECONDS = 8.0
FIRST_DATABASE_SECONDS = 60.0
"""A new SQLite file runs some hundred migrations first."""
CLOSE_SECONDS = 15.0
NAMING_SECONDS = 2.0
MAX_ARTIFACT_BYTES = 64 * 2**20
_STATUSES = {"FINISHED", "FAILED", "KILLED"}


class Tracker:
    """One run of MLflow. All methods return at once; none raises.

    Made by `open_tracker` (the top run) and by `child`.
    """

    def __init__(self, recorder: Recorder, node: str, tags: Mapping[str, str], top: bool) -> None:
        self._recorder = recorder
        self._node = node
        self._tags = dict(tags)
        self._top = top

    @property
    def record_id(self) -> str | None:
        """MLflow's run id; None while the server is away.

        For a run opened just now this waits for the server to name it, at most 2 s.
        """
        return self._recorder.wait_run_id(self._node, NAMING_SECONDS)

    @property
    def uri(self) -> str:
        """Where the record is, without credentials."""
        return redact(self._recorder.uri)

    def info(self, message: str) -> None:
        """Words are for the terminal, not for MLflow."""

    def progress(self, done: float, total: float, unit: str, **figures: float) -> None:
        """Progress is for the terminal, not for MLflow."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures. A step (epoch) that the run already has keeps its first value."""
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
        """Keep a copy of a small file or folder (at most 64 MiB) with the run."""
        try:
            size = size_of(path)
            if size > MAX_ARTIFACT_BYTES:
                raise OSError(f"{size / 2**20:.0f} MiB is more than an artifact may have")
            copy = self._recorder.journal.keep(path)
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

        The version belongs to this run. The alias moves only if `value` beats the
        champion's `metric` by more than `margin` on the same data; the sentence about it
        goes where the tracker's others go.
        """
        from multistill.tracking.registry import digest_of

        try:
            digest = digest_of(folder)
            copy = self._recorder.journal.keep(folder)
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
        """The run below this one that has this key: continued if it exists, else made."""
        child = Tracker(
            self._recorder, f"{self._node}/{quote(key, safe='')}", self._tags, top=False
        )
        child._open(name, key, kind, parent=self._node)
        return child

    def flush(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Wait until the server has everything so far, so that `record_id`s are known.

        Returns False when it does not have it yet after this time.
        """
        return self._recorder.flush(seconds)

    def close(self, status: str = "FINISHED") -> None:
        """End of this run. Closing the top run sends what is left, within a bound."""
        self._append("close", status=status if status in _STATUSES else "FAILED", t=now_ms())
        if self._top:
            self._recorder.stop(CLOSE_SECONDS)

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
    """The address as MLflow wants it. Raises UsageError for a store MLflow no longer writes."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{workspace.absolute() / 'mlflow.db'}"
    if uri.startswith("file:") or "://" not in uri:
        raise UsageError(
            f"tracking.uri `{redact(uri)}` is a folder, which MLflow no longer writes; "
            "use sqlite:///FILE or the address of a server"
        )
    return uri


def open_tracker(
    config: TrackingConfig,
    workspace_root: Path,
    job_name: str,
    run_key: str,
    tags: Mapping[str, str],
    *,
    name: str | None = None,
    log: Callable[[str], None] | None = None,
) -> Tracker:
    """Start recording: the top run of this key, continued if it exists.

    Args:
        run_key: the same for every attempt at the same work; attempts share one record.
        tags: facts that the top run and every run below it carry.
        name: of the top run, for people; default: the job's name.
        log: gets the sentences about a server that is away; default: a logged warning.

    Raises:
        MultistillError: the server does not answer, or the experiment cannot be used, and
            `tracking.required` is true.
        UsageError: the address cannot be one.
    """
    uri = tracking_uri(config, workspace_root)
    experiment = config.experiment or job_name
    server = Server(uri, experiment, workspace_root.absolute() / "mlflow-artifacts")
    target = _target(uri)
    spool = workspace_root / SPOOL
    header = {
        "target": target,
        "server": redact(uri),
        "experiment": experiment,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    tell = log or logging.getLogger("multistill.tracking").warning
    try:
        journal = Journal.create(spool, header)
    except OSError as error:
        raise MultistillError(
            f"the record of the run cannot be written to {spool} ({error.strerror}); "
            "choose another folder with --workspace"
        ) from error
    recorder = Recorder(server, journal, spool, target, tell)
    tracker = Tracker(recorder, run_key, clean_tags(tags), top=True)
    tracker._open(name or job_name, run_key, "run", parent=None)
    try:
        _ = server.client  # importing MLflow takes seconds; not part of the probe
        recorder.start()
        opened = recorder.wait_open(PROBE_SECONDS if server.remote else FIRST_DATABASE_SECONDS)
        problem = recorder.problem
    except (ServerAwayError, RecordRefusedError) as error:
        opened, problem = False, error
    if opened:
        return tracker
    place = redact(uri)
    if isinstance(problem, RecordRefusedError):
        recorder.abandon()
        raise UsageError(f"tracking server {place} cannot be used ({problem}): see tracking.uri")
    if config.required:
        recorder.abandon()
        raise MultistillError(_unreachable(place, problem))
    tell(
        f"the tracking server {place} does not answer; the run goes on and its record is kept "
        f"in {journal.folder} until the server is back"
    )
    return tracker


def _briefly(problem: ServerAwayError) -> str:
    """The cause alone: the HTTP library wraps it in all that it tried."""
    text = str(problem)
    cause = re.search(r"\[Errno -?\d+\] ([^'\")(<]+)", text)
    return cause.group(1).strip().lower() if cause else text[:120]


def _unreachable(place: str, problem: ServerAwayError | None) -> str:
    if problem is not None and problem.denied:
        return (
            f"the tracking server {place} refuses the credentials; set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in the environment"
        )
    reason = f" ({_briefly(problem)})" if problem is not None else f" within {PROBE_SECONDS:.0f} s"
    return (
        f"the tracking server {place} does not answer{reason}; start it, correct tracking.uri, or "
        "set tracking.required: false to keep the record in the workspace until it is back"
    )


def _target(uri: str) -> str:
    """Names a server without its credentials, so that a new password still finds old journals."""
    bare = re.sub(r"://[^/@]*@", "://", uri)
    return hashlib.sha256(bare.encode()).hexdigest()[:16]
