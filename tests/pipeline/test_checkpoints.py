"""`multistill evaluate --all`: the clips of a job, and what models were trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.encoded_jobs import add_model, encode
from helpers.evaluation_case import EvaluationCase

from multistill.cli.app import main
from multistill.pipeline.checkpoints import evaluate_all
from multistill.pipeline.recipes import steps_of
from multistill.workspace import Workspace


def test_models_trained_on_the_clips_are_told_from_those_tested_on_them(
    evaluation_case: EvaluationCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = evaluation_case
    job = encode(case, tmp_path, monkeypatch)
    own = steps_of(job, Workspace(tmp_path))[0].fingerprint({})
    tested = add_model(case, tmp_path, "audio", own)
    # A manifest with other parts: its training part is the test part of the job.
    other = Workspace(tmp_path).make("prepare", "f" * 16, lambda out: _swap(case, out))
    trained = add_model(case, tmp_path, "text", f"{other.fingerprint}")
    gone = add_model(case, tmp_path, "multimodal", "0" * 16)
    copy = tmp_path / "copies" / "audio"
    shutil.copytree(case.folders["audio"], copy)
    facts = evaluate_all(str(tmp_path), job)
    known = {model["folder"]: model["known_clips"] for model in facts["models"]}
    clips = facts["test"]["clips"]
    assert known == {str(tested): 0, str(trained): clips, str(gone): None, str(copy): 0}
    for more in ([], ["--format", "markdown"]):
        with pytest.raises(SystemExit) as end:
            arguments = ["--all", str(tmp_path / "models"), "--workspace", str(tmp_path)]
            main(["evaluate", *arguments, *more])
        assert end.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"{clips} of {clips} were in its training or validation part" in printed
        assert "nobody knows whether these were trained on the clips" in printed


def _swap(case: EvaluationCase, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(case.manifest / "manifest.parquet")
    swapped = {"test": "train", "train": "test", "valid": "test"}
    parts = pa.array([swapped[part] for part in table["split"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("split"), "split", parts)
    pq.write_table(table, out / "manifest.parquet")


def test_a_fold_of_a_cross_validation_is_named(
    evaluation_case: EvaluationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = encode(evaluation_case, tmp_path, monkeypatch, folds=2, protocol={"kind": "k-fold"})
    own = steps_of(job, Workspace(tmp_path))[0].fingerprint({})
    add_model(evaluation_case, tmp_path, "audio", f"{own}-2")
    facts = evaluate_all(str(tmp_path / "models"), job, fold=1)
    assert facts["models"][0]["known_clips"] == 0 and facts["fold"] == 1


def test_models_of_an_experiment(
    evaluation_case: EvaluationCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_database: Path,
) -> None:
    """Those that its runs trained in this workspace, and those that are among its artifacts."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    job = encode(evaluation_case, tmp_path, monkeypatch)
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("all", artifact_location=(tmp_path / "a").as_uri())
    trained, logged = (client.create_run(experiment).info.run_id for _ in range(2))
    for run, name in ((trained, "audio"), (logged, "text")):
        client.log_artifacts(run, str(evaluation_case.folders[name]), artifact_path="model")
    own = steps_of(job, Workspace(tmp_path))[0].fingerprint({})
    add_model(evaluation_case, tmp_path, "audio", own, trained)
    add_model(evaluation_case, tmp_path, "multimodal", own, "a run of another experiment")
    facts = evaluate_all("all", job)
    found = {model["mlflow_run_id"]: model["known_clips"] for model in facts["models"]}
    assert found == {trained: 0, logged: None}
    assert json.dumps(facts, allow_nan=False)
