"""Where people look at a run: the page of the MLflow server, or the command that starts one."""

from __future__ import annotations

import re
import shlex

from multistill.config.secrets import hide

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a database, unless it is told otherwise."""


def without_credentials(uri: str) -> str:
    """An address without its user and password, and without the secrets of its query.

    Examples:
        >>> without_credentials("https://kim:p@ss/w0rd@mlflow.example.org/")
        'https://mlflow.example.org/'
    """
    # A password may hold `@` and `/`, so it is hidden before the user is looked for.
    return re.sub(r"://[^/]*@", "://", hide(uri))


def run_page(uri: str, experiment_id: str | None, run_id: str | None) -> str:
    """Address of a run's page, without credentials; of the server's, while the ids are unknown.

    Examples:
        >>> run_page("https://kim:secret@mlflow.example.org/", "3", "ab12")
        'https://mlflow.example.org/#/experiments/3/runs/ab12'
        >>> run_page("sqlite:////shared/mlflow.db", "1", "ab12")
        'http://127.0.0.1:5000/#/experiments/1/runs/ab12'
    """
    of_server = uri.startswith(("http://", "https://"))
    page = without_credentials(uri).split("?")[0].rstrip("/") if of_server else LOCAL_UI
    known = experiment_id is not None and run_id is not None
    return f"{page}/#/experiments/{experiment_id}/runs/{run_id}" if known else page


def ui_command(uri: str) -> str | None:
    """The command that shows a database; None for a server, which has pages of its own.

    Args:
        uri: without credentials.
    """
    if uri.startswith(("http://", "https://")):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
