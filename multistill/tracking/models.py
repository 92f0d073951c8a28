"""Models that runs of an MLflow experiment trained or logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multistill.errors import UsageError
from multistill.tracking.redaction import redact
from multistill.tracking.registry import FOLDER, model_in
from multistill.tracking.server import (
    KIND_TAG,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
    call_mlflow,
)

PAGE = 1000


def experiment_runs(uri: str, experiment: str) -> list[Any] | None:
    """All runs of an experiment; None if there is no such experiment.

    Raises:
        UsageError: the server does not answer.
    """
    server = Server(uri, experiment, Path())
    try:
        found = call_mlflow(server.client.get_experiment_by_name, experiment)
        return None if found is None else list(_runs(server, str(found.experiment_id)))
    except (ServerUnavailableError, RecordRejectedError) as error:
        raise UsageError(
            f"the experiment `{experiment}` cannot be read from {redact(uri)} "
            f"({redact(str(error))}); start the server, or give a folder of models"
        ) from error


def _runs(server: Server, experiment_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = call_mlflow(
            server.client.search_runs, [experiment_id], max_results=PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def download_models(uri: str, runs: list[Any], into: Path) -> dict[str, Path]:
    """Model folders that these runs logged as artifacts, by run id.

    Trials of a search are not asked: they log none, and there are thousands.

    Args:
        into: an existing folder for the files.
    """
    server, found = Server(uri, "", Path()), {}
    for run in runs:
        if run.data.tags.get(KIND_TAG) == "trial":
            continue
        run_id = str(run.info.run_id)
        names = {file.path for file in call_mlflow(server.client.list_artifacts, run_id)}
        if FOLDER in names:
            target = into / run_id
            target.mkdir()
            call_mlflow(server.client.download_artifacts, run_id, FOLDER, str(target))
            found[run_id] = model_in(target / FOLDER)
    return found


def download_model(uri: str, model: str, into: Path) -> tuple[Path, str | None]:
    """Copy one model of the server into a folder.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID`.
        into: an existing folder for the files.

    Returns:
        the copy, and the registered name with its version, if there is one.

    Raises:
        UsageError: the server has no such model, or does not answer.
    """
    server, title = Server(uri, "", Path()), None
    scheme, _, rest = model.partition(":/")
    name, at, alias = rest.rpartition("@")
    try:
        if scheme == "runs":
            run_id, source = rest.split("/")[0], f"runs:/{rest.strip('/')}"
            if "/" not in rest.strip("/"):
                source = f"runs:/{run_id}/{FOLDER}"
        else:
            if at:
                version = call_mlflow(server.client.get_model_version_by_alias, name, alias)
            else:
                name, _, number = rest.rpartition("/")
                version = call_mlflow(server.client.get_model_version, name, number)
            title, source = f"{name} version {version.version}", str(version.source)
        path = call_mlflow(_download, artifact_uri=source, dst_path=str(into), tracking_uri=uri)
    except (ServerUnavailableError, RecordRejectedError) as error:
        raise UsageError(
            f"{model} cannot be read from {redact(uri)} ({redact(str(error))}); check the name, "
            "and that the server runs"
        ) from error
    return Path(path), title


def _download(**arguments: str) -> str:
    from mlflow.artifacts import download_artifacts

    return str(download_artifacts(**arguments))
