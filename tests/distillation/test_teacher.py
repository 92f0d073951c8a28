"""Outputs of a saved teacher, computed in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoder_states import AUDIO_DIM, TEXT_DIM, make_store

from multistill.distillation.teacher import Teacher
from multistill.inference.predict import Outputs, predict
from multistill.models.build import build
from multistill.models.files import ModelInfo, save_model
from multistill.models.presets import resolve

LENGTHS = [(7, 2), (50, 0), (1, 1), (12, 9), (0, 4), (31, 3), (7, 7), (2, 0), (90, 20)]
IDS = [f"u{row}" for row in range(9)]


def test_an_interrupted_prediction_resumes_after_its_finished_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished parts are not computed again; a truncated part is."""
    torch.manual_seed(0)
    model = build(resolve("small-student", {}), AUDIO_DIM, TEXT_DIM)
    store = make_store(tmp_path / "store", LENGTHS)
    save_model(model, tmp_path / "model", ModelInfo("teacher"))
    parts, calls = tmp_path / "parts", []

    def recorded(*arguments: object, **more: object) -> Outputs:
        calls.append(list(arguments[2]))  # type: ignore[call-overload]
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("multistill.distillation.teacher.predict", recorded)

    def teacher(**more: bool) -> Teacher:
        return Teacher(tmp_path / "model", store, tmp_path, parts, **more)

    with pytest.raises(KeyboardInterrupt):
        teacher(keep_pooled=True).predict(IDS, part_rows=4)
    first = sorted(parts.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-8])
    outputs = teacher(keep_pooled=True).predict(IDS, part_rows=4)
    assert sorted(map(len, calls)) == [1, 1, 4, 4, 4]  # one of the two finished parts was reused
    expected = predict(model, store, IDS, "cpu")
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(outputs.pooled, expected.pooled, atol=1e-5)
    assert teacher().predict(IDS, part_rows=4).pooled is None
