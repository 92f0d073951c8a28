"""A champion on a real MLflow server, loaded and served by MLflow's own commands."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.exported_clips import write_clip
from helpers.predictor_case import LABELS, save_predictor
from helpers.servers import free_ports

from multistill import Predictor
from multistill.export.formats import export

NAME = "served-emotion"


@pytest.fixture
def champion(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The model folder of a champion that is registered as a search registers it."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    model = save_predictor(tmp_path / "model", "light-student-s", temperature=1.5)
    folder = export(model, tmp_path / "mlflow", "mlflow").out
    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment("export"))
    client.log_artifacts(run.info.run_id, str(folder), artifact_path="model")
    client.create_registered_model(NAME)
    version = client.create_model_version(NAME, f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias(NAME, "champion", version.version)
    yield model


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`mlflow models serve` of the champion, once it answers."""
    [port] = free_ports(1)
    log = folder / "serve.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    # MLflow starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=folder, env={**os.environ, "PATH": path},
            start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask(address: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(
        f"{address}/invocations", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read().decode()
    assert "NaN" not in text, "JSON has no such value"
    found: list[dict[str, Any]] = json.loads(text)["predictions"]
    return found


@pytest.mark.timeout(600)
def test_the_champion_answers_in_python_and_by_http(champion: Path, tmp_path: Path) -> None:
    import mlflow

    clip = tmp_path / "clip.wav"
    write_clip(clip)
    wanted = Predictor.load(champion, "cpu").predict(clip)
    named = Predictor.load(f"models:/{NAME}@champion", "cpu")
    assert named.name == f"{NAME} version 1"
    assert named.predict(clip).distribution == wanted.distribution
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    [row] = loaded.predict(pd.DataFrame({"audio": [str(clip)]})).to_dict("records")
    content = base64.b64encode(clip.read_bytes()).decode()
    with serving(tmp_path) as address:
        served, failed = ask(address, [{"audio": content}, {"audio": "missing.wav"}])
    for found in (row, served):
        assert found["label"] == wanted.label
        shares = [found[f"p_{label}"] for label in LABELS]
        np.testing.assert_allclose(shares, list(wanted.distribution.values()), atol=1e-6)
    assert failed["label"] is None and "neither a file nor" in failed["error"]
