"""A job as MLflow recorded it: its job file, what it ran with and what came out.

Everything is read as text and numbers. Nothing that a run holds is executed or unpickled.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.databases import problem_of, sqlite_file
from multistill.errors import UsageError
from multistill.tracking.redaction import redact
from multistill.tracking.registry import DATA_TAG
from multistill.tracking.runs import OWNER_TAG
from multistill.tracking.server import (
    KEY_TAG,
    PARENT_TAG,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
    call_mlflow,
)

JOB_FOLDER = "job"
COMMIT_TAG = "multistill.commit"
VERSION_TAG = "version."
FIGURE = "test_"
"""What the names of the figures of a whole job start with."""

_MAX_JOB_FILE_BYTES = 1_000_000
_MAX_DEPTH = 8


@dataclass(frozen=True)
class RecordedRun:
    """The top-level run of a job.

    Attributes:
        id: MLflow's.
        name: e.g. `emodb seed 1024 (3f9a1c)`.
        owner: who ran it.
        address: of the tracking server, without passwords.
        job: text of the job file.
        versions: of libraries, `python` and `multistill`; and `commit`, where one was known.
        data: digest of the recordings, transcripts, votes and split; empty if the run did not get
            that far.
        figures: the metrics `test_*`.
    """

    id: str
    name: str
    owner: str
    address: str
    job: str
    versions: dict[str, str]
    data: str
    figures: dict[str, float]


def recorded_run(uri: str, run: str) -> RecordedRun:
    """Read the job that a run belongs to.

    Args:
        uri: MLflow tracking URI.
        run: id of the job's top-level run or of any run below it; `runs:/ID` is the same.

    Raises:
        UsageError: there is no such run, it holds no job file, or the server does not answer.
    """
    file = sqlite_file(uri)
    if file is not None and (not file.exists() or problem_of(uri)):
        reason = problem_of(uri) if file.exists() else "there is no such file"
        raise UsageError(
            f"the tracking database {redact(uri)} cannot be read: {reason}; name the database or "
            "server that holds the run with --tracking"
        )
    server = Server(uri, "", Path())
    run_id = run.removeprefix("runs:/").strip("/")
    try:
        found = _top_level(server, run_id)
        text = _job_file(server, found)
    except RecordRejectedError as error:
        raise UsageError(
            f"there is no run `{redact(run_id)}` on {redact(uri)} ({error}); copy its id from its "
            "page in MLflow, or name its server with --tracking"
        ) from None
    except ServerUnavailableError as error:
        raise UsageError(
            f"the run `{redact(run_id)}` cannot be read from {redact(uri)} ({error}); check that "
            "the server runs and lets you read, or name another with --tracking"
        ) from None
    if text is None:
        raise UsageError(
            f"the run `{found.info.run_name}` on {redact(uri)} holds no job file below "
            f"`{JOB_FOLDER}/` that this machine can read; choose a run that `multistill run` "
            "recorded"
        )
    tags = found.data.tags
    versions = {
        key.removeprefix(VERSION_TAG): str(value)
        for key, value in tags.items()
        if key.startswith(VERSION_TAG)
    }
    if tags.get(COMMIT_TAG, "unknown") != "unknown":
        versions["commit"] = tags[COMMIT_TAG]
    return RecordedRun(
        id=str(found.info.run_id),
        name=str(found.info.run_name),
        owner=str(tags.get(OWNER_TAG, "")),
        address=redact(uri),
        job=text,
        versions=versions,
        data=str(tags.get(DATA_TAG, "")),
        figures={
            key: float(value) for key, value in found.data.metrics.items() if key.startswith(FIGURE)
        },
    )


def _top_level(server: Server, run_id: str) -> Any:
    """The run that has no parent, from any run below it."""
    found = call_mlflow(server.client.get_run, run_id)
    for _ in range(_MAX_DEPTH):
        parent = found.data.tags.get(PARENT_TAG)
        if parent is None:
            break
        found = call_mlflow(server.client.get_run, parent)
    return found


def _job_file(server: Server, run: Any) -> str | None:
    """Text of the job file that a run holds; of several, the one named by the run's key."""
    run_id, key = str(run.info.run_id), run.data.tags.get(KEY_TAG, "")
    listed = call_mlflow(server.client.list_artifacts, run_id, JOB_FOLDER)
    files = [
        file
        for file in listed
        if file.path.endswith((".yaml", ".yml"))
        and not file.is_dir
        and (file.file_size or 0) <= _MAX_JOB_FILE_BYTES
    ]
    files.sort(key=lambda file: (key and key in file.path, file.path))
    if not files:
        return None
    with tempfile.TemporaryDirectory(prefix="multistill-") as into:
        local = call_mlflow(server.client.download_artifacts, run_id, files[-1].path, into)
        return Path(local).read_bytes().decode("utf-8", "replace")
