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
from multistill.distillation.targets import read_soft_targets, read_states
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
    settings = {"teachers": models[:2], "folds": {}, "states": True, "sequences": False, **more}
    soft_targets(
        manifest,
        features,
        settings["teachers"],  # type: ignore[arg-type]
        settings["folds"],  # type: ignore[arg-type]
        bool(settings["states"]),
        bool(settings["sequences"]),
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
    stored = read_states(path)
    rows, pooled = stored.rows, stored.pooled
    assert sorted(rows) == np.flatnonzero(split == "train").tolist()  # students read no others
    expected = np.concatenate([m[1] for m in members], axis=1)
    np.testing.assert_allclose(pooled, expected[rows], atol=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "states.safetensors"}


def test_out_of_fold_targets_come_from_the_teacher_that_was_not_trained_on_the_clip(
    case: Case, tmp_path: Path
) -> None:
    manifest, features, models = case
    path = tmp_path / "soft_targets.parquet"
    folds = {fold: [models[fold]] for fold in range(4)}
    ids, split, fold = run_stage(case, path, folds=folds)
    predictions = [outputs(case, model, ids) for model in range(4)]
    targets = read_soft_targets(path)
    stored = read_states(path)
    rows, pooled = stored.rows, stored.pooled
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


def test_states_are_written_on_request_only(case: Case, tmp_path: Path) -> None:
    run_stage(case, tmp_path / "soft_targets.parquet", states=False)
    assert [file.name for file in tmp_path.iterdir()] == ["soft_targets.parquet"]


def test_sequences_are_what_the_teacher_pools_in_segments(case: Case, tmp_path: Path) -> None:
    _, features, models = case
    path = tmp_path / "soft_targets.parquet"
    folds = {fold: [models[fold]] for fold in range(4)}
    ids, _, fold = run_stage(case, path, folds=folds, sequences=True)
    stored, store = read_states(path), FeatureStore(features)
    starts = {
        name: np.concatenate([[0], np.cumsum(lengths)])
        for name, (_, lengths) in stored.sequences.items()
    }
    for index in (0, 17, 50):
        name = ids[int(stored.rows[index])]
        model = load_model(models[int(fold[stored.rows[index]])]).eval()
        model.keeps_sequences = True
        audio, text = (torch.tensor(np.array(get(name)))[None] for get in (store.audio, store.text))
        with torch.no_grad():
            output = model(audio, None, text if text.shape[1] else None)
        assert output.sequences is not None
        for modality, count in (("audio", -(-audio.shape[1] // 10)), ("text", text.shape[1])):
            states = stored.sequences[modality][0]
            own = states[starts[modality][index] : starts[modality][index + 1]].float()
            assert len(own) == count
            if count:
                mean = torch.nn.functional.adaptive_avg_pool1d(
                    output.sequences[modality][0].mT, count
                ).mT[0]
                torch.testing.assert_close(own, mean, atol=5e-3, rtol=1e-2)


def test_the_sequences_of_an_ensemble_are_side_by_side(case: Case, tmp_path: Path) -> None:
    whole, parts = tmp_path / "both", [tmp_path / "0", tmp_path / "1"]
    for folder in (whole, *parts):
        folder.mkdir()
    run_stage(case, whole / "soft_targets.parquet", sequences=True)
    for number, folder in enumerate(parts):
        teachers = [case[2][number]]
        run_stage(case, folder / "soft_targets.parquet", sequences=True, teachers=teachers)
    both, *members = (
        read_states(folder / "soft_targets.parquet").sequences for folder in (whole, *parts)
    )
    for modality, (states, _) in both.items():
        torch.testing.assert_close(states, torch.cat([m[modality][0] for m in members], dim=1))


def test_an_ensemble_of_a_fold_and_members_of_different_modalities(
    case: Case, tmp_path: Path
) -> None:
    manifest, features, models = case
    spec = make_task((manifest, features)).spec
    text = tmp_path / "text"
    save_model(
        build(replace(spec, modality="text", width=8), AUDIO_DIM, TEXT_DIM),
        text,
        ModelInfo("teacher"),
    )
    path = tmp_path / "out" / "soft_targets.parquet"
    path.parent.mkdir()
    folds = {fold: [models[fold], text] for fold in range(4)}
    teachers = [models[0], text]
    ids, split, fold = run_stage(case, path, folds=folds, sequences=True, teachers=teachers)
    everything = (*case[:2], [*models, text])
    predictions = [outputs(everything, model, ids)[0] for model in range(5)]
    targets = read_soft_targets(path)
    for row in (0, 3, 40):
        own = int(fold[row]) if split[row] == "train" else 0
        expected = combine([predictions[own], predictions[4]])[row]
        np.testing.assert_allclose(targets.outputs[row], expected, atol=1e-5)
    stored = read_states(path)
    assert {name: states.shape[1] for name, (states, _) in stored.sequences.items()} == {
        "audio": spec.width,
        "text": spec.width + 8,
    }
