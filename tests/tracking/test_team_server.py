"""The team's server of `deploy/mlflow`: a real PostgreSQL, logins, and every fault of either."""

from __future__ import annotations

import filecmp
import http.client
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_proxy import FAULTS, faulty_proxy
from helpers.postgres import Postgres, programs, running_postgres
from helpers.team_mlflow import TeamServer, python_block
from mlflow.exceptions import MlflowException

from multistill.config import TrackingConfig
from multistill.errors import MultistillError
from multistill.tracking import Tracker, open_tracker, recorder
from multistill.tracking.journal import Journal

if programs() is None:
    pytest.skip(
        "PostgreSQL's programs are not installed: apt-get install postgresql",
        allow_module_level=True,
    )
pytest.importorskip("flask_wtf", reason="logins are missing: pip install 'mlflow[auth]'")

PASSWORDS = {name: f"a-long-password-of-{name}" for name in ("ann", "ben")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    """The server after all commands of the README, with its users `ann` and `ben`."""
    with running_postgres() as postgres:
        server = TeamServer(tmp_path_factory.mktemp("team"), postgres)
        server.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.admin.items():
                patch.setenv(name, value)
            exec(python_block().replace("http://127.0.0.1:5000", server.uri), {})
        yield server
        server.kill()


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(name: str, password: str | None = None) -> None:
        for key, value in TeamServer.login(name, password or PASSWORDS[name]).items():
            monkeypatch.setenv(key, value)

    return use


@pytest.fixture(autouse=True)
def ann(login: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    login("ann")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(recorder, "RETRY_SECONDS", (0.3,))


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def start(folder: Path, uri: str, job: str = "emotion", key: str = "k1", **config: Any) -> Tracker:
    return open_tracker(TrackingConfig(uri=uri, **config), folder, job, key, {"commit": "abc"})


def wait(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def record(top: Tracker, folder: Path, fault: AbstractContextManager[None], failing: bool) -> None:
    """Record a job whose second half meets a fault, which ends before the job does."""
    model = top.child("model", "m", "model")
    model.params({"width": 8})
    for epoch in range(1, 4):
        model.metrics({"loss": 1 / epoch, "f1": epoch / 10}, step=epoch)
    wait(lambda: top._recorder.flush(5))
    started = time.monotonic()
    with fault:
        model.tags({"note": "meanwhile"})
        for epoch in range(4, 7):
            model.metrics({"loss": 1 / epoch, "f1": epoch / 10}, step=epoch)
        note = folder / "note.txt"
        note.write_text("written meanwhile")
        model.artifact(note, "files")
        late = top.child("late", "l", "model")
        late.params({"width": 16})
        late.metrics({"loss": 0.5}, step=1)
        late.close()
        assert time.monotonic() - started < 10, "the run does not wait for the server"
        if failing:  # long enough for records to be sent one by one
            wait(lambda: top._recorder._failures > recorder.MAX_BATCH_FAILURES + 1)
        else:
            wait(lambda: top._recorder.flush(5))
    wait(lambda: top._recorder.flush(5))
    model.close()
    top.close()


VOLATILE = {"multistill.lease", "multistill.heartbeat", "multistill.request"}


def records(uri: str, experiment: str, folder: Path) -> dict[str, Any]:
    """Everything that the server has of an experiment, with names in place of ids."""
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert max(Counter(names.values()).values()) == 1, names
    found = {}
    for run in runs:
        run_id, tags = run.info.run_id, dict(run.data.tags)
        parent = tags.pop("mlflow.parentRunId", None)
        local = folder / f"artifacts-{run_id}"
        local.mkdir()
        client.download_artifacts(run_id, "", str(local))
        found[run.info.run_name] = {
            "status": run.info.status,
            "parent": names.get(parent),
            "params": run.data.params,
            "tags": {k: v for k, v in tags.items() if k not in VOLATILE and "mlflow." not in k},
            "metrics": {
                key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key))
                for key in run.data.metrics
            },
            "files": {
                path.relative_to(local).as_posix(): path.read_bytes()
                for path in local.rglob("*")
                if path.is_file()
            },
        }
    return found


@pytest.fixture(scope="module")
def undisturbed(server: TeamServer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TeamServer.login("ann", PASSWORDS["ann"]).items():
            patch.setenv(name, value)
        top = start(folder, server.uri, "undisturbed")
        record(top, folder, nullcontext(), failing=False)
        return records(server.uri, "undisturbed", folder)


def same(found: Mapping[str, Any], undisturbed: Mapping[str, Any], job: str) -> None:
    renamed = {("undisturbed" if name == job else name): run for name, run in found.items()}
    for run in renamed.values():
        run["parent"] = "undisturbed" if run["parent"] == job else run["parent"]
    assert renamed == undisturbed
    assert {run["status"] for run in renamed.values()} == {"FINISHED"}


def left(workspace: Path) -> list[str]:
    """Journals with records to send."""
    return [j.name for j in Journal.read_all(workspace / "tracking") if j.unsent]


def test_who_may_read_and_who_may_edit(
    server: TeamServer, login: Callable[..., None], tmp_path: Path
) -> None:
    top = start(tmp_path, server.uri)
    top.metrics({"f1": 0.5}, step=1)
    assert top._recorder.flush(30)
    run_id = top.record_id
    top.close()
    login("ben")
    with pytest.raises(MultistillError, match="does not let ben write to the experiment `emotion`"):
        start(tmp_path / "ben", server.uri)
    assert client_of(server.uri).get_run(run_id).data.metrics == {"f1": 0.5}
    own = start(tmp_path / "ben", server.uri, "experiment of ben")
    assert own.record_id is not None
    own.close()
    login("ben", "not-the-password-of-ben")
    with pytest.raises(MultistillError, match="rejects the credentials"):
        start(tmp_path / "ben", server.uri)


def test_only_the_hosts_of_the_settings_are_answered(server: TeamServer) -> None:
    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(
            "GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host}
        )
        return connection.getresponse().status

    assert status("elsewhere.example.org") == 403
    assert status("mlflow.example.org") == 401, "a known host needs a login"


@contextmanager
def stopped(postgres: Postgres) -> Iterator[None]:
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


@pytest.mark.parametrize("fault", ["stopped", "full"])
def test_after_a_fault_of_the_database_the_records_are_those_of_an_undisturbed_run(
    fault: str, server: TeamServer, undisturbed: Mapping[str, Any], tmp_path: Path
) -> None:
    postgres = server.postgres
    faults = {"stopped": stopped(postgres), "full": postgres.read_only()}
    top = start(tmp_path, server.uri, f"database {fault}")
    record(top, tmp_path, faults[fault], failing=True)
    same(records(server.uri, f"database {fault}", tmp_path), undisturbed, f"database {fault}")
    assert left(tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_of_the_network_the_records_are_those_of_an_undisturbed_run(
    fault: str, server: TeamServer, undisturbed: Mapping[str, Any], tmp_path: Path
) -> None:
    with faulty_proxy(server.uri) as proxy:

        @contextmanager
        def faulty() -> Iterator[None]:
            proxy.fault = fault
            yield
            proxy.fault = None

        top = start(tmp_path, proxy.uri, f"network {fault}")
        record(top, tmp_path, faulty(), failing=fault != "slow")
    same(records(server.uri, f"network {fault}", tmp_path), undisturbed, f"network {fault}")
    assert left(tmp_path) == []


@pytest.mark.parametrize("room_again", ["meanwhile", "before the next run"])
def test_files_for_which_the_server_has_no_room_wait_and_nothing_waits_for_them(
    room_again: str, server: TeamServer, tmp_path: Path
) -> None:
    experiment = f"room {room_again}"
    messages: list[str] = []
    config = TrackingConfig(uri=server.uri)
    top = open_tracker(config, tmp_path, experiment, "k1", {}, log=messages.append)
    model = top.child("model", "m", "model")
    wait(lambda: top._recorder.flush(5))
    files = {name: bytes([number]) * 2**21 for number, name in enumerate(("a.bin", "b.bin"))}
    with server.without_room(2**20):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            model.artifact(tmp_path / name)
        model.metrics({"loss": 0.5}, step=1)
        model.close()
        wait(lambda: len(top._recorder.journal.deferred) == 2)
        wait(lambda: top._recorder.flush(5))
        [run] = [r for r in runs_of(server.uri, experiment) if r.info.run_name == "model"]
        assert run.data.metrics == {"loss": 0.5} and run.info.status == "FINISHED"
        if room_again == "before the next run":
            top.close()
    if room_again == "meanwhile":
        top.close()
    else:
        assert left(tmp_path)
        other = start(tmp_path, server.uri, "the next run", key="k2")
        wait(lambda: not left(tmp_path))
        other.close()
    assert sum("a.bin" in text and "free some space" in text for text in messages) == 1, messages
    assert records(server.uri, experiment, tmp_path)["model"]["files"] == files
    assert left(tmp_path) == []


def runs_of(uri: str, experiment: str) -> list[Any]:
    client = client_of(uri)
    found: list[Any] = []

    def answered() -> bool:
        with suppress(MlflowException):  # a connection that the busy server reset
            experiment_id = client.get_experiment_by_name(experiment).experiment_id
            found[:] = client.search_runs([experiment_id])
            return True
        return False

    wait(answered)
    return found


def test_a_model_of_200_mb_passes_through_the_server_whose_memory_stays_flat(
    server: TeamServer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    block = random.Random(1).randbytes(2**20)
    with (folder / "model.safetensors").open("wb") as stream:
        for _ in range(200):
            stream.write(block)
    top = start(tmp_path, server.uri, "large")
    wait(lambda: top._recorder.flush(5))
    before = server.memory_peak()
    top.register("large", folder, "valid_uar", 0.5)
    wait(lambda: top._recorder.flush(15))
    top.close()
    assert left(tmp_path) == []
    client = client_of(server.uri)
    version = client.get_model_version_by_alias("large", "champion")
    local = client.download_artifacts(version.run_id, "model", str(tmp_path))
    assert filecmp.cmp(Path(local) / "model.safetensors", folder / "model.safetensors", False)
    assert server.memory_peak() - before < 100 * 2**20


# Alembic warns of the settings that MLflow gives it.
@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
def test_the_commands_of_the_upgrade_bring_older_tables_to_the_newest(
    server: TeamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = server.postgres
    postgres.query("CREATE DATABASE older OWNER mlflow", "postgres")
    settings = server.settings
    for name in ("PGHOST", "PGPORT", "PGPASSWORD"):
        monkeypatch.setenv(name, settings[name])
    address = "postgresql+psycopg://mlflow@/older"
    make_older_tables(address)
    postgres.query(
        "INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')", "older"
    )
    newest = {
        table: postgres.query(f"SELECT version_num FROM {table}", "mlflow")
        for table in ("alembic_version", "alembic_version_auth")
    }
    for table, version in newest.items():
        assert postgres.query(f"SELECT version_num FROM {table}", "older") != version
    (tmp_path / "server.env").write_text(
        "".join(f"{k}={v}\n" for k, v in settings.items() if "URI" not in k)
        + f"MLFLOW_BACKEND_STORE_URI={address}\n"
    )
    pip = tmp_path / "bin" / "pip"  # what it would install is installed
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    server.run("upgrade", ETC=str(tmp_path), VERSION="3.17", programs=pip.parent)
    for table, version in newest.items():
        assert postgres.query(f"SELECT version_num FROM {table}", "older") == version
    assert postgres.query("SELECT name FROM experiments", "older") == "kept"


def make_older_tables(address: str) -> None:
    """The tables of MLflow as they were one migration earlier, those of its logins at the first."""
    import mlflow.server.auth.db.utils as logins
    import mlflow.store.db.utils as tables
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(address)
    Base.metadata.create_all(engine)
    config = tables._get_alembic_config(address)
    script = ScriptDirectory.from_config(config)
    command.upgrade(config, str(script.get_revision(script.get_current_head()).down_revision))
    logins.migrate(engine, logins.INITIAL_REVISION)
    engine.dispose()


def test_a_restored_backup_has_runs_files_users_and_permissions(
    server: TeamServer, undisturbed: Mapping[str, Any], login: Callable[..., None], tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    backup.mkdir()
    server.run("backup", BACKUP=str(backup))
    late = start(tmp_path, server.uri, "after the backup")
    late.close()
    server.kill()
    shutil.rmtree(server.data / "artifacts")
    server.run("restore", BACKUP=str(backup))
    server.start()
    assert records(server.uri, "undisturbed", tmp_path) == undisturbed
    assert client_of(server.uri).get_experiment_by_name("after the backup") is None
    login("ben")
    with pytest.raises(MultistillError, match="does not let ben write to the experiment `emotion`"):
        start(tmp_path / "ben", server.uri)
    login("ann")
    start(tmp_path, server.uri).close()
