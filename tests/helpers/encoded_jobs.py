"""A job whose clips are prepared and encoded in a workspace, with models, without running it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.evaluation_case import EvaluationCase
from helpers.finished_jobs import note_as_run
from multistill.config import JobConfig
from multistill.pipeline.recipes import steps_of
from multistill.workspace import Workspace, fold_folder, read_json


def encode(
    case: EvaluationCase,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    folds: int = 0,
    **settings: Any,
) -> JobConfig:
    """A job with the manifest and the features of the case.

    Args:
        folds: of a cross-validation; each has the split of the case.
    """
    # The case's manifest has no digests of recordings to compare, and its recordings lie elsewhere.
    monkeypatch.setattr("multistill.corpora.prepare.is_current", lambda *_: True)
    monkeypatch.setattr("multistill.corpora.roots.stays_inside", lambda *_: True)
    (workspace / "corpus").mkdir(parents=True)
    corpora = [{"kind": "emodb", "path": str(workspace / "corpus")}]
    job, root = note_as_run(workspace, corpora=corpora, **settings), Workspace(workspace)
    prepare, features = steps_of(job, root)[:2]

    def copy_manifest(out: Path) -> dict[str, Any]:
        for folder in [out, *(fold_folder(out, number) for number in range(folds))]:
            shutil.copytree(case.manifest, folder, dirs_exist_ok=True)
        summary: dict[str, Any] = {"content": "case"}
        return summary | ({"folds": [{"name": str(n)} for n in range(folds)]} if folds else {})

    manifest = root.make(prepare.kind, prepare.fingerprint({}), copy_manifest)
    name = features.fingerprint({"manifest": manifest})
    root.make(features.kind, name, lambda out: _copy(case.store, out))
    return job


def _copy(source: Path, out: Path) -> None:
    shutil.copytree(source, out, dirs_exist_ok=True)


def add_model(
    case: EvaluationCase, workspace: Path, name: str, manifest: str, run_id: str | None = None
) -> Path:
    """A model of the case in the workspace's model store.

    Args:
        manifest: fingerprint of the one that it was trained on.
        run_id: of MLflow.
    """
    fingerprint = str(read_json(case.folders[name] / "config.json")["sha256"])[:16]
    made = Workspace(workspace).make(
        "models",
        fingerprint,
        lambda out: _copy(case.folders[name], out),
        inputs={"manifest": manifest},
        provenance={"record_id": run_id},
    )
    return made.path
