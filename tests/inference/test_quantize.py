"""Models in 8 bits: as a folder and in memory they answer alike, in a quarter of the space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.encoder_states import random_states

from multistill.inference.quantize import quantize, rounded, stored_bytes
from multistill.models.build import EmotionModel, build
from multistill.models.files import WEIGHTS, ModelInfo, load_model, read_model_config, save_model
from multistill.models.presets import resolve


@pytest.fixture
def model() -> EmotionModel:
    torch.manual_seed(0)
    model = build(resolve("light-student", {}), 80, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_folder_in_8_bits_answers_as_the_model_with_rounded_weights(
    model: EmotionModel, tmp_path: Path
) -> None:
    info = ModelInfo("student", encoders={"speech": {"name": "log-mel"}}, training={"note": "x"})
    save_model(model, tmp_path / "model", info)
    whole, size = quantize(tmp_path / "model", tmp_path / "int8")
    states, mask = random_states([60, 9], 80)
    loaded = load_model(tmp_path / "int8", {"encoders": info.encoders})
    in_8_bits = loaded(states, mask).logits
    torch.testing.assert_close(in_8_bits, rounded(model)(states, mask).logits)
    exact = model(states, mask).logits
    assert 0 < (in_8_bits - exact).abs().max() < 0.05 * exact.abs().max()
    before, after = (read_model_config(tmp_path / name) for name in ("model", "int8"))
    assert {**before, "sha256": ""} == {**after, "sha256": ""}
    file = tmp_path / "int8" / WEIGHTS
    assert size == file.stat().st_size == pytest.approx(stored_bytes(model, int8=True), rel=1e-3)
    assert size < 0.3 * whole == 0.3 * (tmp_path / "model" / WEIGHTS).stat().st_size
