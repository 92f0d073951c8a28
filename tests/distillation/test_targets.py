"""Soft targets: predictions in batches equal single ones; the file comes back or says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.models_store import AUDIO_DIM, TEXT_DIM, make_store

from multistill.corpora.manifest import MANIFEST_SCHEMA
from multistill.distillation.targets import (
    read_pooled,
    read_soft_targets,
    write_pooled,
    write_soft_targets,
)
from multistill.distillation.teacher import Teacher
from multistill.errors import MultistillError
from multistill.features.store import FeatureStore
from multistill.inference.predict import Outputs, dialogue_context, predict, predict_logits
from multistill.models.build import EmotionModel, build
from multistill.models.context import DialogueContext
from multistill.models.files import ModelInfo, save_model
from multistill.models.presets import resolve

IDS = [f"u{row}" for row in range(9)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    lengths = [(7, 2), (50, 0), (1, 1), (12, 9), (0, 4), (31, 3), (7, 7), (2, 0), (90, 20)]
    return make_store(tmp_path_factory.mktemp("targets"), lengths)


def small(**overrides: object) -> EmotionModel:
    torch.manual_seed(0)
    return build(resolve("small-student", overrides), AUDIO_DIM, TEXT_DIM)


@pytest.mark.parametrize("batch_frames", [1, 64, 100_000])
def test_batches_of_any_size_give_the_logits_of_single_utterances(
    store: FeatureStore, batch_frames: int
) -> None:
    model = small().train()
    found = predict(model, store, IDS, "cpu", max_frames=40, batch_frames=batch_frames)
    assert model.training
    model.eval()
    assert found.logits.dtype == np.float32
    for row, name in enumerate(IDS):
        audio = torch.from_numpy(np.array(store.audio(name)[:40], dtype=np.float32))[None]
        text = torch.from_numpy(np.array(store.text(name), dtype=np.float32))[None]
        with torch.inference_mode():
            alone = model(
                audio if audio.shape[1] else None, None, text if text.shape[1] else None, None
            )
        np.testing.assert_allclose(found.logits[row], alone.logits[0], atol=1e-5)
        assert found.pooled is not None
        np.testing.assert_allclose(found.pooled[row], alone.pooled[0], atol=1e-5)


def test_rows_follow_the_order_asked_for(store: FeatureStore) -> None:
    model = small()
    forward = predict_logits(model, store, IDS, "cpu")
    np.testing.assert_allclose(
        predict_logits(model, store, IDS[::-1], "cpu")[::-1], forward, atol=1e-5
    )
    assert predict_logits(model, store, [], "cpu").shape == (0, 7)


def test_a_model_with_context_is_given_it_or_refuses(store: FeatureStore, tmp_path: Path) -> None:
    model = small(context_turns=2)
    columns = {"utterance_id": IDS, "dialogue": ["d"] * 9, "turn": list(range(9))}
    context = DialogueContext(store, columns, 2)
    with_past = predict_logits(model, store, IDS, "cpu", context=context)
    apart = DialogueContext(store, {**columns, "dialogue": IDS}, 2)
    alone = predict_logits(model, store, IDS, "cpu", context=apart)
    np.testing.assert_allclose(with_past[0], alone[0], atol=1e-5)
    assert np.abs(with_past[1:] - alone[1:]).max(axis=1).min() > 1e-5
    whole = {name: columns.get(name, [None] * len(IDS)) for name in MANIFEST_SCHEMA.names}
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(pa.table(whole), manifest)
    read = dialogue_context(model, store, tmp_path)
    np.testing.assert_array_equal(predict_logits(model, store, IDS, "cpu", context=read), with_past)
    assert dialogue_context(small(), store, manifest) is None
    with pytest.raises(ValueError, match="DialogueContext"):
        predict_logits(model, store, IDS, "cpu")


def test_soft_targets_come_back_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(9, 7)).astype(np.float32)
    fold = np.array([0, 1, 2, 0, 1, 2, 0, 1, -1])
    path = tmp_path / "a" / "soft_targets.parquet"
    write_soft_targets(path, IDS, logits, "teacher", fold)
    found = read_soft_targets(path)
    assert found.ids == IDS
    assert found.teacher == "teacher"
    np.testing.assert_array_equal(found.logits, logits)
    np.testing.assert_array_equal(found.fold, fold)
    assert pq.read_schema(path).names == ["utterance_id", "logits", "teacher", "fold"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    write_soft_targets(path, [], np.zeros((0, 7)), "nobody", [])
    assert read_soft_targets(path).logits.shape == (0, 7)


def test_missing_damaged_and_foreign_files_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "soft_targets.parquet"
    with pytest.raises(MultistillError, match="run the distillation stage"):
        read_soft_targets(path)
    write_soft_targets(path, IDS, np.zeros((9, 7)), "t", np.zeros(9))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MultistillError, match="is damaged"):
        read_soft_targets(path)
    pq.write_table(pq.read_table(_rewritten(path)).drop_columns(["fold"]), path)
    with pytest.raises(MultistillError, match="column fold is missing"):
        read_soft_targets(path)
    with pytest.raises(ValueError, match=r"shape \(9, 7\), not \(9, 6\)"):
        write_soft_targets(path, IDS, np.zeros((9, 6)), "t", np.zeros(9))


def test_representations_come_back_by_row_or_say_why_not(tmp_path: Path) -> None:
    path = tmp_path / "soft_targets.parquet"
    with pytest.raises(MultistillError, match=r"pooled\.safetensors is missing.*hint_weight"):
        read_pooled(path)
    pooled = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_pooled(path, [5, 0, 8], pooled)
    rows, found = read_pooled(path)
    assert rows.tolist() == [5, 0, 8]
    np.testing.assert_array_equal(found.numpy(), pooled)
    assert [file.name for file in tmp_path.iterdir()] == ["pooled.safetensors"]
    file = tmp_path / "pooled.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(MultistillError, match="damaged"):
        read_pooled(path)


def test_answers_go_on_after_the_parts_that_are_there(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after some parts: what is there is not computed again, a part cut short is."""
    model = small()
    save_model(model, tmp_path / "model", ModelInfo("teacher"))
    parts, asked = tmp_path / "parts", []

    def counted(*arguments: object, **more: object) -> Outputs:
        asked.append(list(arguments[2]))  # type: ignore[call-overload]
        if len(asked) == 3:
            raise KeyboardInterrupt
        return predict(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("multistill.distillation.teacher.predict", counted)

    def teacher(**more: bool) -> Teacher:
        return Teacher(tmp_path / "model", store, tmp_path, parts, **more)

    with pytest.raises(KeyboardInterrupt):
        teacher(keep_pooled=True).predict(IDS, part_rows=4)
    first = sorted(parts.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-8])
    found = teacher(keep_pooled=True).predict(IDS, part_rows=4)
    assert sorted(map(len, asked)) == [1, 1, 4, 4, 4]  # of two finished parts, the whole one once
    whole = predict(model, store, IDS, "cpu")
    np.testing.assert_allclose(found.logits, whole.logits, atol=1e-5)
    np.testing.assert_allclose(found.pooled, whole.pooled, atol=1e-5)
    assert teacher().predict(IDS, part_rows=4).pooled is None


def _rewritten(path: Path) -> Path:
    write_soft_targets(path, IDS, np.zeros((9, 7)), "t", np.zeros(9))
    return path
