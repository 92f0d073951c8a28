"""Client of the tracking server: wraps `MlflowClient` and handles its limits and errors.

This module raises two kinds of error: `ServerUnavailableError` (retry later, nothing is
lost) and `RecordRejectedError` (the server will never accept this record: drop and report it).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.tracking.redaction import redact

KEY_TAG = "multistill.key"
KIND_TAG = "multistill.kind"
ORPHAN_TAG = "multistill.orphan"
REQUEST_TAG = "multistill.request"
DUPLICATE_TAG = "multistill.duplicate_of"
PARENT_TAG = "mlflow.parentRunId"

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS, _MAX_ENTITIES = 1000, 100, 100, 1000
_MAX_BODY = 500_000  # half of the server's limit, since JSON escapes can double Korean text
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 8000
_INVALID_IN_KEYS = re.compile(r"[^\w\-. /:]")
_REJECTED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
}
_DENIED = {"CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}

Point = tuple[str, float, int, int]
"""One metric value: key, value, timestamp in milliseconds, step."""


class ServerUnavailableError(Exception):
    """The server does not answer, or reports a temporary failure.

    Attributes:
        denied: the server rejected the credentials.
    """

    def __init__(self, message: str, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


class ForbiddenError(ServerUnavailableError):
    """The server knows the user and refuses the request for lack of permission.

    Nothing is lost either: permission may be granted, so the records are kept.
    """


class RecordRejectedError(Exception):
    """The server rejected a record for good; sending it again will not help."""


def clean_key(key: str) -> str:
    """Return a key that MLflow accepts: letters, digits, `_-. /:`, at most 250 characters."""
    cleaned = _INVALID_IN_KEYS.sub("_", key).strip("/")
    if cleaned.startswith("."):  # MLflow rejects keys that look like a relative path
        cleaned = f"_{cleaned}"
    return cleaned[:_MAX_KEY] or "_"


def batches(
    points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[tuple[list[Point], dict[str, str], dict[str, str]]]:
    """Split into parts that each respect the limits of `log_batch`: counts and body size."""
    part: tuple[list[Point], dict[str, str], dict[str, str]] = ([], {}, {})
    body = 0

    def is_full(extra: int) -> bool:
        part_points, part_params, part_tags = part
        return (
            len(part_points) >= _MAX_METRICS
            or len(part_params) >= _MAX_PARAMS
            or len(part_tags) >= _MAX_TAGS
            or len(part_points) + len(part_params) + len(part_tags) >= _MAX_ENTITIES
            or body + extra > _MAX_BODY
        )

    entries: list[tuple[int, Any]] = [(0, point) for point in points]
    entries += [(1, item) for item in params.items()]
    entries += [(2, item) for item in tags.items()]
    for kind, entry in entries:
        size = len(json.dumps(entry)) + 60  # 60: the field names around the entry
        if is_full(size) and any(part):
            yield part
            part, body = ([], {}, {}), 0
        body += size
        if kind == 0:
            part[0].append(entry)
        else:
            part[kind][entry[0]] = entry[1]
    if any(part):
        yield part


class Server:
    """Client of one experiment on one tracking server. Not thread-safe.

    Args:
        uri: MLflow tracking URI, absolute; may contain credentials.
        experiment: looked up by name, or created.
        artifacts: artifact folder for a database store, which has no server to hold artifacts.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        self.uri = uri
        self.experiment = experiment
        self._artifacts = artifacts
        self._client: Any = None
        self._experiments: dict[str, str] = {}

    @property
    def remote(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def client(self) -> Any:
        if self._client is None:
            # MLflow's default of seven retries blocks a caller for four minutes, and repeats a
            # creation that the server may still carry out; the journal retries instead, and
            # looks first. MLflow reads these settings only from the environment.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
            draw_no_progress_bars()
            for name in ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool"):
                logging.getLogger(name).setLevel(logging.ERROR)
            from mlflow import MlflowClient

            self._client = call_mlflow(MlflowClient, tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def connect(self) -> str:
        """Return the experiment's id. Raises ServerUnavailableError or RecordRejectedError."""
        return self.experiment_id(self.experiment)

    def ping(self) -> None:
        """Check that the server answers. Raises ServerUnavailableError if it does not."""
        call_mlflow(self.client.get_experiment_by_name, self.experiment)

    def experiment_id(self, name: str) -> str:
        if name in self._experiments:
            return self._experiments[name]
        experiment = call_mlflow(self.client.get_experiment_by_name, name)
        if experiment is None:
            location = None if self.remote else self._artifacts.as_uri()
            try:
                new_id = call_mlflow(
                    self.client.create_experiment, name, artifact_location=location
                )
            except RecordRejectedError:  # another process created it in the meantime
                experiment = call_mlflow(self.client.get_experiment_by_name, name)
                if experiment is None:
                    raise
                new_id = experiment.experiment_id
            self._experiments[name] = str(new_id)
        elif experiment.lifecycle_stage != "active":
            raise RecordRejectedError(
                f"the experiment `{name}` has been deleted on the server; restore it, "
                "or set tracking.experiment to another name"
            )
        else:
            self._experiments[name] = str(experiment.experiment_id)
        return self._experiments[name]

    def page(self, run_id: str) -> str | None:
        """Address of a run's page in the browser, without passwords; None of a database."""
        experiment = self._experiments.get(self.experiment)
        if not self.remote or experiment is None:
            return None
        return f"{redact(self.uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"

    def top_level_runs(self, experiment: str, key: str) -> list[Any]:
        """Return the top-level runs with this key, whoever started them, newest first."""
        runs = self._runs_with_tag(experiment, KEY_TAG, key)
        return [run for run in runs if PARENT_TAG not in run.data.tags]

    def requested_runs(self, experiment: str, request: str) -> list[Any]:
        """Return the runs that the server made for one request and its repetitions.

        All have the start time of the request, so their order is that of their ids: arbitrary,
        and the same for everybody who asks.
        """
        runs = self._runs_with_tag(experiment, REQUEST_TAG, request)
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _runs_with_tag(self, experiment: str, tag: str, value: str) -> list[Any]:
        runs = call_mlflow(
            self.client.search_runs,
            [self.experiment_id(experiment)],
            filter_string=f"tags.`{tag}` = {quote(value)}",
            order_by=["attributes.start_time DESC"],
            max_results=1000,
        )
        return [run for run in runs if DUPLICATE_TAG not in run.data.tags]

    def child_runs(self, experiment: str, parent: str) -> list[Any]:
        """Return all direct children of a run."""
        runs: list[Any] = []
        token = None
        while True:
            page = call_mlflow(
                self.client.search_runs,
                [self.experiment_id(experiment)],
                filter_string=f"tags.`{PARENT_TAG}` = '{parent}'",
                max_results=1000,
                page_token=token,
            )
            runs += [run for run in page if DUPLICATE_TAG not in run.data.tags]
            token = page.token
            if not token:
                return runs

    def create_run(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        run = call_mlflow(
            self.client.create_run,
            self.experiment_id(experiment),
            start_time=start,
            tags=dict(tags),
            run_name=name[:_MAX_KEY],
        )
        return str(run.info.run_id)

    def remove_duplicate(self, run_id: str, kept: str) -> None:
        """Mark a run as a duplicate, end it, and delete it where the server allows that."""
        self.log(run_id, tags={DUPLICATE_TAG: kept})
        call_mlflow(self.client.set_terminated, run_id, status="KILLED")
        with contextlib.suppress(RecordRejectedError, ForbiddenError):
            call_mlflow(self.client.delete_run, run_id)

    def reopen_run(self, run_id: str) -> None:
        call_mlflow(self.client.update_run, run_id, status="RUNNING")

    def end_run(self, run_id: str, status: str, time_ms: int) -> None:
        call_mlflow(self.client.set_terminated, run_id, status=status, end_time=time_ms)

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        """Return the steps of a metric that are already on the server."""
        return {point.step for point in call_mlflow(self.client.get_metric_history, run_id, key)}

    def logged_params(self, run_id: str) -> dict[str, str]:
        return dict(call_mlflow(self.client.get_run, run_id).data.params)

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Log metrics, params and tags in as few calls as the limits allow.

        Returns:
            error messages of the entries that the server rejected; all others are logged.
        """
        rejected: list[str] = []
        for part in batches(points, params or {}, tags or {}):
            try:
                self._log_batch(run_id, *part)
            except RecordRejectedError:
                rejected += self._log_one_by_one(run_id, *part)
        return rejected

    def _log_batch(
        self, run_id: str, points: list[Point], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        call_mlflow(
            self.client.log_batch,
            run_id,
            metrics=[Metric(key, value, time, step) for key, value, time, step in points],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    def _log_one_by_one(
        self, run_id: str, points: list[Point], params: dict[str, str], tags: dict[str, str]
    ) -> list[str]:
        """Log each entry in a call of its own, so that a bad entry does not fail the others."""
        rejected: list[str] = []
        logged = self.logged_params(run_id) if params else {}
        changed = {k: v for k, v in params.items() if k in logged and logged[k] != v}
        # Parameters are immutable in MLflow, but a resumed run can have other values.
        tags = {**tags, **{f"changed.{k}"[:_MAX_KEY]: v for k, v in changed.items()}}
        singles: list[tuple[list[Point], dict[str, str], dict[str, str]]] = [
            *(([point], {}, {}) for point in points),
            *(([], {k: v}, {}) for k, v in params.items() if k not in logged),
            *(([], {}, {k: v}) for k, v in tags.items()),
        ]
        for single in singles:
            try:
                self._log_batch(run_id, *single)
            except RecordRejectedError as error:
                rejected.append(str(error))
        return rejected

    def upload(self, run_id: str, path: Path, folder: str, name: str | None = None) -> None:
        """Upload a file, or a folder under `name` (default: its own name), below `folder`."""
        if path.is_dir():
            target = "/".join(part for part in (folder, name or path.name) if part)
            call_mlflow(self.client.log_artifacts, run_id, str(path), artifact_path=target)
        else:
            call_mlflow(self.client.log_artifact, run_id, str(path), artifact_path=folder or None)


def draw_no_progress_bars() -> None:
    """Keep MLflow from writing them to standard error, in the middle of other output.

    It reads the setting only from the environment.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def quote(value: str) -> str:
    """Return a string literal for an MLflow filter, whose syntax has no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def as_number(value: object) -> float | None:
    """Return a metric's value, or None if it is not a number. NaN and infinities are kept."""
    if isinstance(value, str | bytes) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def from_json_number(value: float | str) -> float:
    """Inverse of `to_json_number`."""
    return float(value)


def to_json_number(value: float) -> float | str:
    """Represent a float in JSON, where NaN and infinities become strings."""
    return value if math.isfinite(value) else str(value)


def clean_values(values: Mapping[str, object], limit: int) -> dict[str, str]:
    """Convert params or tags to strings: keys cleaned, secrets redacted, values truncated."""
    return {clean_key(str(k)): redact(str(v))[:limit] for k, v in values.items()}


def clean_params(values: Mapping[str, object]) -> dict[str, str]:
    return clean_values(values, _MAX_PARAM)


def clean_tags(values: Mapping[str, object]) -> dict[str, str]:
    return clean_values(values, _MAX_TAG)


def call_mlflow(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call MLflow and convert any exception to one of the two errors above, without secrets."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*args, **kwargs)
    except MlflowException as error:
        message = redact(" ".join(str(error).split()))[:500]
        if error.error_code in _REJECTED:
            raise RecordRejectedError(message) from None
        raise _unavailable(message, error.error_code, error) from None
    except Exception as error:
        # Database drivers and artifact stores raise their own types; none may reach a run.
        message = redact(f"{type(error).__name__}: {error}")[:500]
        raise _unavailable(message, "", error) from None


def _unavailable(message: str, code: str, error: Exception) -> ServerUnavailableError:
    """Tell refused credentials (401) and missing permission (403) from a server that is away."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 403 or code == "PERMISSION_DENIED" or "error code 403" in message:
        return ForbiddenError(message)
    return ServerUnavailableError(
        message, status == 401 or code in _DENIED or "error code 401" in message
    )
