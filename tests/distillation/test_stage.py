"""The distill stage: which teacher's logits and pooled states each utterance gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, make_corpus, make_task

from multistill.config import DistillationConfig
from multistill.corpora.manifest import read_manifest
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import read_pooled, read_soft_targets
from multistill.features.store import FeatureStore
from multistill.inference.ensemble import combine
from multistill.inference.predict import predict
from multistill.models.build import build
from multistill.models.files import ModelInfo, load_model, save_model
from multistill.training.data import TrainingData

Case = tuple[Path, Path, list[Path]]
"""Manifest, feature store and model folders."""


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


def run_stage(case: Case, out: Path, **more: object) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Run the stage; returns ids, splits and folds of the rows of its soft targets."""
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
    result = predict(load_model(case[2][model]), FeatureStore(case[1]), ids, "cpu")
    assert result.pooled is not None
    return result.logits, result.pooled


def test_the_pooled_states_of_an_ensemble_are_concatenated(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "soft_targets.parquet"
    ids, split, _ = run_stage(case, path)
    members = [outputs(case, model, ids) for model in (0, 1)]
    targets = read_soft_targets(path)
    np.testing.assert_allclose(targets.outputs, combine([m[0] for m in members]), atol=1e-5)
    rows, pooled, _ = read_pooled(path)
    assert sorted(rows) == np.flatnonzero(split == "train").tolist()  # students read no others
    expected = np.concatenate([m[1] for m in members], axis=1)
    np.testing.assert_allclose(pooled, expected[rows], atol=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "pooled.safetensors"}


def test_out_of_fold_targets_come_from_the_teacher_that_was_not_trained_on_the_clip(
    case: Case, tmp_path: Path
) -> None:
    manifest, features, models = case
    path = tmp_path / "soft_targets.parquet"
    folds = {fold: models[fold] for fold in range(4)}
    ids, split, fold = run_stage(case, path, folds=folds)
    predictions = [outputs(case, model, ids) for model in range(4)]
    targets = read_soft_targets(path)
    rows, pooled, _ = read_pooled(path)
    state_index = {row: index for index, row in enumerate(rows.tolist())}
    for row, name in enumerate(split):
        own = int(fold[row])
        assert targets.fold[row] == (own if name == "train" else -1)
        if name == "train":
            logits, states = predictions[own]
            np.testing.assert_allclose(targets.outputs[row], logits[row], atol=1e-5)
            np.testing.assert_allclose(pooled[state_index[row]], states[row], atol=1e-5)
    # A student reads the states by row, with the index of the teacher that computed each.
    student = replace(
        make_task((manifest, features)),
        soft_targets=str(path),
        distillation=DistillationConfig(hint_weight=1.0),
    )
    train = TrainingData.open(student).train
    teacher = train.teacher_states
    assert teacher is not None
    assert teacher.num_spaces == 4
    for row in (0, 7, 40):
        target_row = ids.index(train.ids[row])
        own = int(fold[target_row])
        assert teacher.space[row] == own
        state = teacher.states[teacher.row_index[row]]
        np.testing.assert_allclose(state, predictions[own][1][target_row], atol=1e-5)


def test_pooled_states_are_written_on_request_only(case: Case, tmp_path: Path) -> None:
    run_stage(case, tmp_path / "soft_targets.parquet", pooled=False)
    assert [file.name for file in tmp_path.iterdir()] == ["soft_targets.parquet"]
