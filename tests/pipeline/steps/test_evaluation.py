"""The evaluation is told how the job splits, so that it names the unit of its intervals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multistill.pipeline import jobfile
from multistill.pipeline.step import StepRun
from multistill.pipeline.steps import evaluation
from multistill.tracking.logger import NullLogger
from multistill.workspace import Artifact, Workspace


@pytest.mark.parametrize("by", ["session", "speaker", "column"])
def test_the_evaluation_knows_what_the_split_keeps_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    asked: list[dict[str, Any]] = []

    def on_cluster(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        asked.append(inspect.signature(function).bind(*arguments).arguments)
        return {}

    monkeypatch.setattr(evaluation, "on_cluster", on_cluster)
    text = f"name: t\nseed: 3\ncorpora: [{{kind: demo}}]\nsplit: {{by: {by}}}\n"
    step = evaluation.Evaluate(jobfile.parse(text, "t.yaml"), Workspace(tmp_path))
    artifacts = {
        name: Artifact(name, "0" * 16, tmp_path / name, {}) for name in ("manifest", "features")
    }
    out = tmp_path / "out"
    out.mkdir()
    step.build(StepRun(artifacts=artifacts, out=out, logger=NullLogger(), fingerprint=""))
    assert asked[0]["split_by"] == by
    assert asked[0]["seed"] == 3


def test_the_folds_of_a_cross_corpus_job_say_which_corpus_trained_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def on_cluster(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        asked.append(inspect.signature(function).bind(*arguments).arguments)
        return {}

    monkeypatch.setattr(evaluation, "on_cluster", on_cluster)
    corpora = "corpora: [{kind: demo, name: a}, {kind: demo, name: b}]"
    text = f"name: t\n{corpora}\nsplit: {{by: session}}\nprotocol: cross-corpus\n"
    step = evaluation.Evaluate(jobfile.parse(text, "t.yaml"), Workspace(tmp_path))
    folds = [{"name": name, "trained_on": name} for name in "ab"]
    artifacts = {
        "manifest": Artifact("manifest", "0" * 16, tmp_path / "m", {"summary": {"folds": folds}}),
        "features": Artifact("features", "0" * 16, tmp_path / "f", {}),
    }
    out = tmp_path / "out"
    out.mkdir()
    step.build(StepRun(artifacts=artifacts, out=out, logger=NullLogger(), fingerprint=""))
    assert asked[0]["split_by"] == "session"
    assert [fold.trained_on for fold in asked[0]["folds"]] == ["a", "b"]
    assert [fold.manifest.name for fold in asked[0]["folds"]] == ["001", "002"]
