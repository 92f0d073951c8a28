"""The tracking server through `MlflowClient`, with MLflow's limits and errors tamed.

Two kinds of failure leave this module: `ServerAwayError` (try again later: nothing is lost)
and `RecordRefusedError` (this record will never be accepted: drop it and say so).
"""

from __future__ import annotations

import getpass
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
ATTEMPT_TAG = "multistill.attempt"
ORPHAN_TAG = "multistill.orphan"
PARENT_TAG = "mlflow.parentRunId"

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS, _MAX_ENTITIES = 1000, 100, 100, 1000
_MAX_BODY = 500_000  # half of the server's limit: JSON escapes may double Korean text
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 8000
_NOT_IN_KEYS = re.compile(r"[^\w\-. /:]")
_REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
}
_DENIED = {"CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED", "PERMISSION_DENIED"}

Point = tuple[str, float, int, int]
"""key, value, time in milliseconds, step."""


class ServerAwayError(Exception):
    """The server does not answer, or answers that it cannot now.

    Attributes:
        denied: it answered that our credentials do not suffice.
    """

    def __init__(self, message: str, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


class RecordRefusedError(Exception):
    """The server understood and will never take this."""


def clean_key(key: str) -> str:
    """A key as MLflow accepts it: letters, digits, `_-. /:`, at most 250."""
    cleaned = _NOT_IN_KEYS.sub("_", key).strip("/")
    if cleaned.startswith("."):  # MLflow refuses keys that look like a path out of the run
        cleaned = f"_{cleaned}"
    return cleaned[:_MAX_KEY] or "_"


def batches(
    points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[tuple[list[Point], dict[str, str], dict[str, str]]]:
    """Parts that each respect the limits of `log_batch`: counts and body size."""
    part: tuple[list[Point], dict[str, str], dict[str, str]] = ([], {}, {})
    body = 0

    def full(extra: int) -> bool:
        metrics, few, some = part
        return (
            len(metrics) >= _MAX_METRICS
            or len(few) >= _MAX_PARAMS
            or len(some) >= _MAX_TAGS
            or len(metrics) + len(few) + len(some) >= _MAX_ENTITIES
            or body + extra > _MAX_BODY
        )

    entries: list[tuple[int, Any]] = [(0, point) for point in points]
    entries += [(1, item) for item in params.items()]
    entries += [(2, item) for item in tags.items()]
    for kind, entry in entries:
        cost = len(json.dumps(entry)) + 60  # the field names around it
        if full(cost) and any(part):
            yield part
            part, body = ([], {}, {}), 0
        body += cost
        if kind == 0:
            part[0].append(entry)
        else:
            part[kind][entry[0]] = entry[1]
    if any(part):
        yield part


class Server:
    """One experiment on one tracking server. Used by one thread at a time.

    Args:
        uri: as MLflow understands it, absolute; may hold credentials.
        experiment: found by name, or created.
        artifacts: where artifacts go when the store is a database that we write ourselves.
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
            # MLflow's own seven retries block a caller for four minutes; the journal
            # is our retry. MLflow takes these settings from the environment only.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
            for name in ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool"):
                logging.getLogger(name).setLevel(logging.ERROR)
            from mlflow import MlflowClient

            self._client = guarded(MlflowClient, tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def connect(self) -> str:
        """The experiment's id. Raises ServerAwayError or RecordRefusedError."""
        return self.experiment_id(self.experiment)

    def ping(self) -> None:
        """Raises ServerAwayError when the server does not answer now."""
        guarded(self.client.get_experiment_by_name, self.experiment)

    def experiment_id(self, name: str) -> str:
        if name in self._experiments:
            return self._experiments[name]
        found = guarded(self.client.get_experiment_by_name, name)
        if found is None:
            location = None if self.remote else self._artifacts.as_uri()
            try:
                created = guarded(self.client.create_experiment, name, artifact_location=location)
            except RecordRefusedError:  # another process created it in between
                found = guarded(self.client.get_experiment_by_name, name)
                if found is None:
                    raise
                created = found.experiment_id
            self._experiments[name] = str(created)
        elif found.lifecycle_stage != "active":
            raise RecordRefusedError(
                f"the experiment `{name}` is deleted there; restore it, "
                "or set tracking.experiment to another name"
            )
        else:
            self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    def find(self, experiment: str, key: str) -> Any:
        """The newest top run with this key, or None."""
        runs = guarded(
            self.client.search_runs,
            [self.experiment_id(experiment)],
            filter_string=f"tags.`{KEY_TAG}` = {quoted(key)}",
            order_by=["attributes.start_time DESC"],
            max_results=10,
        )
        return next((run for run in runs if PARENT_TAG not in run.data.tags), None)

    def children(self, experiment: str, parent: str) -> list[Any]:
        """All runs below a run."""
        found: list[Any] = []
        token = None
        while True:
            page = guarded(
                self.client.search_runs,
                [self.experiment_id(experiment)],
                filter_string=f"tags.`{PARENT_TAG}` = '{parent}'",
                max_results=1000,
                page_token=token,
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

    def create(self, experiment: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        full = {"mlflow.user": _user(), **tags}
        run = guarded(
            self.client.create_run,
            self.experiment_id(experiment),
            start_time=start,
            tags=full,
            run_name=name[:_MAX_KEY],
        )
        return str(run.info.run_id)

    def reopen(self, run_id: str) -> None:
        guarded(self.client.update_run, run_id, status="RUNNING")

    def end(self, run_id: str, status: str, time_ms: int) -> None:
        guarded(self.client.set_terminated, run_id, status=status, end_time=time_ms)

    def steps(self, run_id: str, key: str) -> set[int]:
        """Steps of a metric that the server already has."""
        return {point.step for point in guarded(self.client.get_metric_history, run_id, key)}

    def known_params(self, run_id: str) -> dict[str, str]:
        return dict(guarded(self.client.get_run, run_id).data.params)

    def log(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Send in as few calls as the limits allow.

        Returns:
            sentences about single entries that the server refused; the rest is there.
        """
        refused: list[str] = []
        for part in batches(points, params or {}, tags or {}):
            try:
                self._log_batch(run_id, *part)
            except RecordRefusedError:
                refused += self._log_singly(run_id, *part)
        return refused

    def _log_batch(
        self, run_id: str, points: list[Point], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        guarded(
            self.client.log_batch,
            run_id,
            metrics=[Metric(key, value, time, step) for key, value, time, step in points],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    def _log_singly(
        self, run_id: str, points: list[Point], params: dict[str, str], tags: dict[str, str]
    ) -> list[str]:
        """One entry at a time, so that one bad entry does not take the batch with it."""
        refused: list[str] = []
        known = self.known_params(run_id) if params else {}
        changed = {k: v for k, v in params.items() if k in known and known[k] != v}
        # Parameters are immutable on the server; a resumed run may rightly differ.
        tags = {**tags, **{f"changed.{k}"[:_MAX_KEY]: v for k, v in changed.items()}}
        singles: list[tuple[list[Point], dict[str, str], dict[str, str]]] = [
            *(([point], {}, {}) for point in points),
            *(([], {k: v}, {}) for k, v in params.items() if k not in known),
            *(([], {}, {k: v}) for k, v in tags.items()),
        ]
        for single in singles:
            try:
                self._log_batch(run_id, *single)
            except RecordRefusedError as error:
                refused.append(str(error))
        return refused

    def upload(self, run_id: str, path: Path, folder: str, name: str | None = None) -> None:
        """Send a file, or a folder as `name` (default: its own), below `folder`."""
        if path.is_dir():
            target = "/".join(part for part in (folder, name or path.name) if part)
            guarded(self.client.log_artifacts, run_id, str(path), artifact_path=target)
        else:
            guarded(self.client.log_artifact, run_id, str(path), artifact_path=folder or None)


def quoted(value: str) -> str:
    """A string literal of MLflow's filter language, which knows no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def as_number(value: object) -> float | None:
    """A metric's value, or None for what is no number. NaN and infinities stay."""
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
    """JSON has no NaN and no infinity; they travel as text."""
    return value if math.isfinite(value) else str(value)


def clean_values(values: Mapping[str, object], limit: int) -> dict[str, str]:
    """Params or tags as text: keys cleaned, secrets hidden, cut to `limit` characters."""
    return {clean_key(str(k)): redact(str(v))[:limit] for k, v in values.items()}


def clean_params(values: Mapping[str, object]) -> dict[str, str]:
    return clean_values(values, _MAX_PARAM)


def clean_tags(values: Mapping[str, object]) -> dict[str, str]:
    return clean_values(values, _MAX_TAG)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container user without an entry in passwd
        return "unknown"


def guarded(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call MLflow; what goes wrong becomes one of our two errors, without secrets."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*args, **kwargs)
    except MlflowException as error:
        message = redact(" ".join(str(error).split()))[:500]
        if error.error_code in _REFUSED:
            raise RecordRefusedError(message) from None
        denied = error.error_code in _DENIED or "error code 401" in message
        raise ServerAwayError(message, denied) from None
    except Exception as error:
        # Drivers and artifact stores raise their own types; none may reach a run.
        raise ServerAwayError(redact(f"{type(error).__name__}: {error}")[:500]) from None
