"""Outputs of a model over a feature store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.encoder_states import AUDIO_DIM, TEXT_DIM, make_store

from multistill.config import CLASSES
from multistill.corpora.manifest import MANIFEST_COLUMNS, with_classes
from multistill.features.store import FeatureStore
from multistill.inference.predict import dialogue_context, predict, predict_logits
from multistill.models.build import EmotionModel, build
from multistill.models.context import DialogueContext
from multistill.models.presets import resolve

IDS = [f"u{row}" for row in range(9)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    lengths = [(7, 2), (50, 0), (1, 1), (12, 9), (0, 4), (31, 3), (7, 7), (2, 0), (90, 20)]
    return make_store(tmp_path_factory.mktemp("targets"), lengths)


def small_model(**overrides: object) -> EmotionModel:
    torch.manual_seed(0)
    return build(resolve("small-student", overrides), AUDIO_DIM, TEXT_DIM)


@pytest.mark.parametrize("batch_frames", [1, 64, 100_000])
def test_the_batch_size_does_not_change_the_outputs(store: FeatureStore, batch_frames: int) -> None:
    model = small_model().train()
    outputs = predict(model, store, IDS, "cpu", max_frames=40, batch_frames=batch_frames)
    assert model.training
    model.eval()
    assert outputs.logits.dtype == np.float32
    for row, name in enumerate(IDS):
        audio = torch.from_numpy(np.array(store.audio(name)[:40], dtype=np.float32))[None]
        text = torch.from_numpy(np.array(store.text(name), dtype=np.float32))[None]
        with torch.inference_mode():
            single = model(
                audio if audio.shape[1] else None, None, text if text.shape[1] else None, None
            )
        np.testing.assert_allclose(outputs.logits[row], single.logits[0], atol=1e-5)
        assert outputs.pooled is not None
        np.testing.assert_allclose(outputs.pooled[row], single.pooled[0], atol=1e-5)


def test_one_batch_is_asked_for_and_read_without_a_thread(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "multistill.features.collate.will_need", lambda values: asked.append(len(values))
    )
    monkeypatch.delattr("multistill.inference.predict.read_ahead")
    predict_logits(small_model(), store, IDS[:1], "cpu")
    assert asked == [7, 2]


def test_outputs_are_in_the_order_of_the_ids(store: FeatureStore) -> None:
    model = small_model()
    forward = predict_logits(model, store, IDS, "cpu")
    np.testing.assert_allclose(
        predict_logits(model, store, IDS[::-1], "cpu")[::-1], forward, atol=1e-5
    )
    assert predict_logits(model, store, [], "cpu").shape == (0, 7)


def test_a_model_with_context_requires_a_dialogue_context(
    store: FeatureStore, tmp_path: Path
) -> None:
    model = small_model(context_turns=2, paths="deep")
    columns = {"utterance_id": IDS, "dialogue": ["d"] * 9, "turn": list(range(9))}
    context = DialogueContext(store, columns, 2)
    with_context = predict_logits(model, store, IDS, "cpu", context=context)
    separate_dialogues = DialogueContext(store, {**columns, "dialogue": IDS}, 2)
    without_turns = predict_logits(model, store, IDS, "cpu", context=separate_dialogues)
    np.testing.assert_allclose(with_context[0], without_turns[0], atol=1e-5)
    assert np.abs(with_context[1:] - without_turns[1:]).max(axis=1).min() > 1e-5
    all_columns = {name: columns.get(name, [None] * len(IDS)) for name in MANIFEST_COLUMNS}
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(pa.table(all_columns, metadata=with_classes(CLASSES)), manifest)
    from_manifest = dialogue_context(model, store, tmp_path)
    logits = predict_logits(model, store, IDS, "cpu", context=from_manifest)
    np.testing.assert_array_equal(logits, with_context)
    assert dialogue_context(small_model(), store, manifest) is None
    with pytest.raises(ValueError, match="DialogueContext"):
        predict_logits(model, store, IDS, "cpu")
