"""The distillation stage: whose answers and whose representations each clip gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, make_corpus, make_task

from multistill.config import DistillationConfig
from multistill.corpora.manifest import read_manifest, write_manifest
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import read_pooled, read_soft_targets
from multistill.errors import UsageError
from multistill.features.store import FeatureStore
from multistill.inference.ensemble import combine
from multistill.inference.predict import predict
from multistill.models.build import build
from multistill.models.files import ModelInfo, load_model, save_model
from multistill.pipeline import jobfile
from multistill.pipeline.steps.training import Distill, Teacher
from multistill.search.space import check_space, known_keys
from multistill.tracking.logger import NullLogger
from multistill.training.data import TrainingData
from multistill.training.model_store import FILES, ModelStore
from multistill.training.task import TrainingTask
from multistill.workspace import Artifact, Workspace

Case = tuple[Path, Path, list[Path]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A corpus and four saved teachers with random weights."""
    folder = tmp_path_factory.mktemp("stage")
    manifest, features = make_corpus(folder / "corpus")
    spec = make_task((manifest, features)).spec
    for seed in range(4):
        torch.manual_seed(seed)
        save_model(build(spec, AUDIO_DIM, TEXT_DIM), folder / f"model-{seed}", ModelInfo("teacher"))
    return manifest, features, [folder / f"model-{seed}" for seed in range(4)]


def ask(case: Case, out: Path, **more: object) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, splits and folds of the soft targets' rows."""
    manifest, features, models = case
    settings = {"teachers": models[:2], "folds": {}, "pooled": True, **more}
    soft_targets(
        manifest,
        features,
        settings["teachers"],  # type: ignore[arg-type]
        settings["folds"],  # type: ignore[arg-type]
        bool(settings["pooled"]),
        out,
    )
    table = read_manifest(manifest).to_pandas().set_index("utterance_id")
    ids = read_soft_targets(out).ids
    return ids, table.loc[ids, "split"].to_numpy(), table.loc[ids, "fold"].to_numpy()


def outputs(case: Case, model: int, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    found = predict(load_model(case[2][model]), FeatureStore(case[1]), ids, "cpu")
    assert found.pooled is not None
    return found.logits, found.pooled


def test_an_ensembles_representations_stand_side_by_side(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "soft_targets.parquet"
    ids, split, _ = ask(case, path)
    members = [outputs(case, model, ids) for model in (0, 1)]
    targets = read_soft_targets(path)
    np.testing.assert_allclose(targets.logits, combine([m[0] for m in members]), atol=1e-5)
    rows, pooled = read_pooled(path)
    assert sorted(rows) == np.flatnonzero(split == "train").tolist()  # nobody reads the others
    whole = np.concatenate([m[1] for m in members], axis=1)
    np.testing.assert_allclose(pooled, whole[rows], atol=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "pooled.safetensors"}


def test_out_of_fold_gives_each_clip_the_teacher_that_did_not_train_on_it(
    case: Case, tmp_path: Path
) -> None:
    manifest, features, models = case
    path = tmp_path / "soft_targets.parquet"
    folds = {fold: models[fold] for fold in range(4)}
    ids, split, fold = ask(case, path, folds=folds)
    answers = [outputs(case, model, ids) for model in range(4)]
    targets = read_soft_targets(path)
    rows, pooled = read_pooled(path)
    place = {row: at for at, row in enumerate(rows.tolist())}
    for row, part in enumerate(split):
        own = int(fold[row])
        assert targets.fold[row] == (own if part == "train" else -1)
        if part == "train":
            np.testing.assert_allclose(targets.logits[row], answers[own][0][row], atol=1e-5)
            np.testing.assert_allclose(pooled[place[row]], answers[own][1][row], atol=1e-5)
    # A student reads them row by row, each in the space of its own teacher.
    student = replace(
        make_task((manifest, features)),
        soft_targets=str(path),
        distillation=DistillationConfig(hint_weight=1.0),
    )
    train = TrainingData.open(student).train
    assert train.states is not None
    assert train.states.spaces == 4
    for row in (0, 7, 40):
        at = ids.index(train.ids[row])
        assert train.states.space[row] == fold[at]
        state = train.states.table[train.states.place[row]]
        np.testing.assert_allclose(state, answers[int(fold[at])][1][at], atol=1e-5)


def test_nothing_is_represented_where_nobody_asks(case: Case, tmp_path: Path) -> None:
    ask(case, tmp_path / "soft_targets.parquet", pooled=False)
    assert [file.name for file in tmp_path.iterdir()] == ["soft_targets.parquet"]


JOB = "name: small\ncorpora: [{kind: demo}]\n"


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ("", False),
        ("distillation: {hint_weight: 0.5}\n", True),
        ("distillation: {cka_weight: 0.5}\n", True),
        ("search: {space: {distillation.hint_weight: {low: 0.01, high: 100, log: true}}}\n", True),
        (
            "search: {enabled: false, "
            "space: {distillation.hint_weight: {low: 0.01, high: 100, log: true}}}\n",
            False,
        ),
    ],
)
def test_representations_are_made_for_the_job_or_its_search(
    tmp_path: Path, more: str, asked: bool
) -> None:
    job = jobfile.parse(JOB + more, "job.yaml")
    assert Distill(job, Workspace(tmp_path)).config()["pooled"] is asked


def test_the_weights_are_searched_like_any_field() -> None:
    assert {"distillation.hint_weight", "distillation.cka_weight"} <= set(known_keys())
    job = jobfile.parse(
        JOB + "search: {space: {distillation.cka_weight: {choices: [0, 0.3, 1.0]}}}\n", "job.yaml"
    )
    assert check_space(job.search.space, job.searched_student()) == []


def prepared(folder: Path, sessions: set[int]) -> tuple[Teacher, dict[str, Artifact]]:
    """The teacher's step after `prepare`, with these sessions (fold: session % 4)."""
    make_corpus(folder)
    table = read_manifest(folder)
    keep = [int(name[1:]) in sessions for name in table["session"].to_pylist()]
    write_manifest(table.filter(keep), folder)
    teacher = Teacher(jobfile.parse(JOB, "job.yaml"), Workspace(folder))
    return teacher, {name: Artifact(name, name, folder, {}) for name in ("manifest", "features")}


def test_only_folds_that_hold_training_rows_get_a_teacher(tmp_path: Path) -> None:
    teacher, artifacts = prepared(tmp_path, {1, 3, 8, 9})  # 8 is validation, of fold 0
    tasks = teacher.tasks(artifacts)
    assert [task.name for task in tasks] == ["teacher", "teacher-fold1", "teacher-fold3"]
    assert [task.leave_out_fold for task in tasks] == [None, 1, 3]
    assert {task.role for task in tasks} == {"teacher"}


def test_one_fold_is_refused_before_the_features_are_made(tmp_path: Path) -> None:
    teacher, artifacts = prepared(tmp_path, {3, 7, 8, 9})
    teacher.preflight({})  # nothing is known before the manifest exists
    with pytest.raises(UsageError, match=r"split\.folds.*distillation\.targets: in-sample"):
        teacher.preflight({"manifest": artifacts["manifest"]})


def test_two_names_for_one_training_are_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(tasks: list[TrainingTask], work: Path, logger: object) -> list[dict[str, str]]:
        for task in tasks:
            trained.append(task.name)
            (work / task.name).mkdir(parents=True)
            for file in FILES:
                (work / task.name / file).write_text(task.name)
        return [{"name": task.name, "record_id": task.name} for task in tasks]

    monkeypatch.setattr("multistill.training.launcher.train", train)
    base = make_task(make_corpus(tmp_path / "corpus"), "a")
    tasks = [base, replace(base, name="b"), replace(base, name="c", seed=9)]
    model_store = ModelStore(Workspace(tmp_path / "workspace").open())
    models = model_store.train(tasks, {}, tmp_path / "out", NullLogger())["models"]
    assert trained == ["a", "c"]
    assert models["a"] == models["b"] != models["c"]
    model_store.train(tasks, {}, tmp_path / "out", NullLogger())
    assert trained == ["a", "c"]
