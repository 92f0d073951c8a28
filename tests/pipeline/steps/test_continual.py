"""The steps of continual learning, with trainings in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.recording_logger import RecordingLogger
from helpers.training_corpus import Corpus, as_two, make_corpus, trained

from multistill.config import JobConfig
from multistill.corpora.manifest import classes_of, manifest_schema, read_manifest, write_manifest
from multistill.evaluation.courses import RESULTS
from multistill.pipeline import jobfile
from multistill.pipeline.step import Artifacts, StepRun
from multistill.pipeline.steps.continual import FISHER, Continual, Forgetting
from multistill.tracking.logger import NullLogger
from multistill.training.task import TrainingTask
from multistill.workspace import Artifact, Workspace, fold_folder, read_json

JOB = """
name: x
recipe: continual
corpora: [{kind: demo, name: first}, {kind: demo, name: second}]
continual:
  %s
  model: {preset: small-student, width: 16, heads: 2, feedforward: 16, classifier: 16}
  train: {epochs: 2, batch_size: 16, learning_rate: 1.0e-2}
evaluation: {resamples: 100, latency_clips: 0}
%s
"""
Run = Callable[[JobConfig, Artifacts], dict[str, Artifact]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return as_two(make_corpus(folder, 160), folder / "two")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were trained, in this order."""
    names: list[str] = []

    def train(tasks: list[TrainingTask], out: Path, logger: object) -> list[dict[str, Any]]:
        for task in tasks:
            names.append(task.name)
            trained(task, task.folder(out))
        return [{"name": task.name, "record_id": None} for task in tasks]

    monkeypatch.setattr("multistill.training.launcher.train", train)
    here = "multistill.pipeline.steps.continual.on_cluster"
    monkeypatch.setattr(here, lambda function, *arguments: function(*arguments))
    return names


def run(job: JobConfig, artifacts: Artifacts, workspace: Workspace) -> dict[str, Artifact]:
    """Both steps."""
    found = dict(artifacts)
    for step in (Continual(job, workspace), Forgetting(job, workspace)):
        step.preflight(found)
        out = workspace.root / step.name
        out.mkdir(parents=True, exist_ok=True)
        summary = step.build(StepRun(found, out, NullLogger(), "x"))
        key = step.fingerprint(found)
        found[step.artifact] = Artifact(step.kind, key, out, {"summary": dict(summary)})
    return found


def artifacts_of(two: Corpus, manifest: Path, **summary: Any) -> dict[str, Artifact]:
    return {
        "manifest": Artifact("prepare", "m", manifest, {"summary": {"splits": {}, **summary}}),
        "features": Artifact("features", "f", two[1], {"summary": {}}),
    }


def test_every_fold_has_models_of_its_own(two: Corpus, done: list[str], tmp_path: Path) -> None:
    """Two folds that test two sessions each, and seeds: chains stay within their fold and seed."""
    table = read_manifest(two[0])
    folds, tested = [], set()
    for number in range(2):
        rows = table.to_pylist()
        for row in rows:
            session = int(row["session"][1:])
            own = session // 2 == number
            row["split"] = "test" if own else "valid" if session > 7 else "train"
            tested |= {row["utterance_id"]} if own else set()
        folder = fold_folder(tmp_path / "manifest", number)
        folder.mkdir(parents=True)
        schema = manifest_schema(classes_of(table))
        write_manifest(pa.Table.from_pylist(rows, schema=schema), folder)
        folds.append({"name": str(number + 1), "splits": {}})
    methods = "methods: [finetune, ewc]\n  orders: [[first, second]]\n  ewc: {clips: 4}"
    job = jobfile.parse(JOB % (methods, "seeds: 2\nprotocol: {kind: k-fold, folds: 2}"), "x.yaml")
    workspace = Workspace(tmp_path / "workspace").open()
    artifacts = artifacts_of(two, tmp_path / "manifest", folds=folds)
    found = run(job, artifacts, workspace)
    trainings = ("alone first", "finetune first:second", "ewc 5000 first:second")
    names = {f"{t}-seed{seed}-cv{fold}" for t in trainings for seed in (0, 1) for fold in (1, 2)}
    assert set(done) == names
    models = found["continual"].summary["models"]
    for name in names:
        if name.startswith("finetune"):
            config = read_json(
                workspace.folder("models", models[name]["fingerprint"]) / "config.json"
            )
            start = name.replace("finetune first:second", "alone first")
            initial = config["training"]["initial"][""]["fingerprint"]
            assert initial == models[start]["fingerprint"]
    assert len(list((workspace.root / FISHER).iterdir())) == 4
    results = read_json(found["forgetting"].path / RESULTS)
    clips = sum(part["clips"] for part in results["corpora"].values())
    known = {r["utterance_id"] for r in table.to_pylist() if r["label"] is not None}
    assert abs(clips - len(known & tested)) <= 2, "all but quarantined clips, each once"
    assert (results["folds"], results["seeds"]) == (2, 2)
    logger = RecordingLogger()
    assert "- ewc 5000 first:second: average 0." in Forgetting(job, workspace).record(
        found["forgetting"], logger
    )
    average = results["courses"][1]["given"]["average"]["uar"]["value"]
    assert (None, {"average_uar_ewc 5000 first:second": average}) in [
        (step, {name: value for name, value in row.items() if name.startswith("average")})
        for step, row in logger.metric_rows
    ]


def test_what_methods_share_is_trained_once(two: Corpus, done: list[str], tmp_path: Path) -> None:
    """Another lambda trains one model more, another first training all that stand on it."""
    workspace = Workspace(tmp_path / "workspace").open()
    artifacts = artifacts_of(two, two[0].parent)

    def learn(methods: str) -> list[str]:
        done.clear()
        run(jobfile.parse(JOB % (methods, ""), "x.yaml"), artifacts, workspace)
        return sorted(done)

    order = "orders: [[first, second]]"
    ewc = "{weights: [%s], clips: 3}"
    known = learn(f"methods: [ewc, joint]\n  {order}\n  ewc: {ewc % 1}")
    assert known == ["alone first", "ewc 1 first:second", "joint first:second"]
    assert learn(f"methods: [ewc]\n  {order}\n  ewc: {ewc % '1, 2'}") == ["ewc 2 first:second"]
    assert learn("methods: [finetune, joint]") == [
        "alone second",
        "finetune first:second",
        "finetune second:first",
    ]
    again = learn(f"methods: [finetune]\n  {order}\n  head: per-task")
    assert again == ["finetune first:second"]


def test_three_corpora_are_held_by_all_before(two: Corpus, done: list[str], tmp_path: Path) -> None:
    """The third training of EWC reads the information of both corpora before it."""
    rows = read_manifest(two[0]).to_pylist()
    for number, row in enumerate(rows):
        row["corpus"] = ("first", "second", "third")[number // 10 % 3]
    folder = tmp_path / "manifest"
    folder.mkdir()
    schema = manifest_schema(classes_of(read_manifest(two[0])))
    write_manifest(pa.Table.from_pylist(rows, schema=schema), folder)
    text = JOB % ("methods: [ewc]\n  orders: [[first, second, third]]\n  ewc: {clips: 3}", "")
    text = text.replace("name: second}", "name: second}, {kind: demo, name: third}")
    job, workspace = jobfile.parse(text, "x.yaml"), Workspace(tmp_path / "workspace").open()
    found = run(job, artifacts_of(two, folder), workspace)
    assert done == ["alone first", "ewc 5000 first:second", "ewc 5000 first:second:third"]
    summed = [
        read_json(each / "done.json")["inputs"] for each in (workspace.root / FISHER).iterdir()
    ]
    assert sum("earlier" in inputs for inputs in summed) == 1
    course = read_json(found["forgetting"].path / RESULTS)["courses"][0]
    assert len(course["given"]["matrix"]) == 3
    last, matrix = course["given"]["matrix"][-1], course["given"]["matrix"]
    changes = [
        last[name]["uar"]["value"] - matrix[step][name]["uar"]["value"]
        for step, name in enumerate(("first", "second"))
    ]
    assert course["given"]["backward"]["uar"]["value"] == pytest.approx(sum(changes) / 2)
