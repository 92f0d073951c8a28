"""Shared fixtures: one Ray and one MLflow server per session, without telemetry."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.paths import PYTHONPATH
from hypothesis import settings

if TYPE_CHECKING:
    from helpers.evaluation_case import EvaluationCase
    from helpers.postgres import Postgres

os.environ.update(
    PYTHONPATH=PYTHONPATH,  # for Ray's workers and for subprocesses
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_raylet_start_wait_time_s="120",
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S="1",  # as `multistill serve` sets it for a Ray of its own
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="90",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="90",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # torch's threads wait for each other actively where cores are shared
)

# No deadline: other processes use the machine too. CI draws the same examples each time, so that it
# fails on a change and not on a draw; every other run looks for new ones.
settings.register_profile("shared-machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared-machine")


SERVER_FIXTURES = {"mlflow_server", "mlflow_database"}
SERVER_FILES = {
    "cluster/test_slurm_queue.py",
    "tracking/test_server.py",
    "tracking/test_team_server.py",
}
SLOW = (
    "cli/test_streams.py::test_the_closing_table",
    "corpora/loaders/test_kemdy_full_size.py",
    "corpora/test_prepare_command.py",
    "docs/test_extending.py",
    "export/test_onnx.py::test_heads",
    "evaluation/test_comparisons.py::test_models_that_differ_by_seed_alone",
    "evaluation/test_trained.py",
    "metrics/test_intervals.py::test_intervals_cover",
    "metrics/test_second_implementations.py",
    "models/test_build.py::test_heads_export",
    "pipeline/test_continual.py",
    "pipeline/test_end_to_end.py",
    "pipeline/test_pretrain.py::test_a_teacher",
    "report/test_html.py",
    "report/test_build.py",
    "test_databases.py::test_a_server_that_accepts",
    "training/test_interrupted.py",
    "training/test_loop.py",
)
"""Beginnings of the names of tests that take seconds each and need neither Ray nor a server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they use, so that `make test-fast` can leave them out."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        if "ray_session" in fixtures:
            item.add_marker(pytest.mark.ray)
        if fixtures & SERVER_FIXTURES or path in SERVER_FILES:
            item.add_marker(pytest.mark.server)
        if f"{path}::{item.name}".startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the session, with 4 logical CPUs (Ray needs one besides the train workers)."""
    import ray

    with tempfile.TemporaryDirectory(prefix="mst-", dir="/tmp", ignore_cleanup_errors=True) as home:
        ray.init(
            address="local",  # otherwise Ray connects to the cluster that last ran on this machine
            num_cpus=4,
            num_gpus=0,
            object_store_memory=300_000_000,
            include_dashboard=True,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=home,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    from helpers.postgres import programs, running_postgres

    if programs() is None:
        pytest.skip("PostgreSQL's programs are not installed")
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def evaluation_case(tmp_path_factory: pytest.TempPathFactory) -> EvaluationCase:
    """An evaluated job with small trained heads; tests write to their own folders only."""
    from helpers.evaluation_case import EvaluationCase

    return EvaluationCase(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database to copy; its migrations take seconds, so they run only once."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[str]:
    """URI of the session's MLflow server; tests that kill a server start one of their own."""
    from helpers.servers import MlflowServer

    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    shutil.copy(mlflow_database, server.folder / "mlflow.db")
    server.start()
    yield server.uri
    server.stop()
