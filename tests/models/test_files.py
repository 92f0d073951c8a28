"""Model folders: round trip, refused files, and no unpickling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from multistill.config import CLASSES
from multistill.errors import MultistillError
from multistill.models.build import EmotionModel, build
from multistill.models.files import (
    DamagedModelError,
    ModelInfo,
    load_model,
    read_model_config,
    save_model,
)
from multistill.models.presets import resolve

ENCODERS = {"speech": {"name": "log-mel", "revision": None}, "text": {"name": "electra"}}

INFO = ModelInfo(
    "student", output="shares", max_frames=512, encoders=ENCODERS, training={"note": "x"}
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[EmotionModel, Path]:
    torch.manual_seed(3)
    model = build(resolve("small-student", {"context_turns": 2}), 12, 9)
    folder = tmp_path / "model"
    save_model(model, folder, INFO)
    return model, folder


def test_a_loaded_model_equals_the_saved_one(saved: tuple[EmotionModel, Path]) -> None:
    model, folder = saved
    loaded = load_model(folder, {"encoders": ENCODERS, "spec": model.spec.to_dict()})
    assert loaded.spec == model.spec
    assert not loaded.training
    inputs = torch.randn(2, 5, 12), None, torch.randn(2, 4, 9), None
    torch.testing.assert_close(loaded(*inputs).logits, model.eval()(*inputs).logits)
    config = read_model_config(folder)
    assert config["labels"] == list(CLASSES)
    assert config["format"] == 3
    assert (config["role"], config["output"], config["max_frames"]) == ("student", "shares", 512)
    assert config["encoders"] == ENCODERS and config["training"] == {"note": "x"}
    assert config["spec"]["context_turns"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_config_that_differs_from_the_expected_one_is_refused_with_the_field(
    saved: tuple[EmotionModel, Path],
) -> None:
    _, folder = saved
    other = {**ENCODERS, "speech": {"name": "wav2vec2", "revision": None}}
    with pytest.raises(MultistillError, match=r"encoders\.speech\.name is 'log-mel' in its config"):
        load_model(folder, {"encoders": other})
    with pytest.raises(MultistillError, match=r"audio_dim is 12 in its config\.json, expected 80"):
        load_model(folder, {"audio_dim": 80})
    config = json.loads((folder / "config.json").read_text())
    config["labels"] = config["labels"][::-1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MultistillError, match="labels is"):
        load_model(folder, {"labels": CLASSES})


def test_weights_of_another_shape_are_refused_with_the_name_of_the_tensor(
    saved: tuple[EmotionModel, Path], tmp_path: Path
) -> None:
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    config["spec"]["classifier"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        MultistillError, match=r"classifier\.1\.bias is \[64\] in the file and \[32"
    ):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_truncated_weights_are_detected(saved: tuple[EmotionModel, Path], keep: int) -> None:
    _, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedModelError, match="checksum"):
        load_model(folder)


def test_a_flipped_bit_is_detected(saved: tuple[EmotionModel, Path]) -> None:
    _, folder = saved
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedModelError, match="checksum"):
        load_model(folder)


def test_a_missing_or_damaged_config_is_refused(saved: tuple[EmotionModel, Path]) -> None:
    _, folder = saved
    (folder / "config.json").write_text('{"spec": ')
    with pytest.raises(DamagedModelError, match="is damaged"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DamagedModelError, match=r"config\.json is missing"):
        load_model(folder)
    with pytest.raises(DamagedModelError, match="is not a model folder"):
        load_model(folder / "nowhere")


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_pickled_checkpoints_are_refused_by_name_and_never_loaded(tmp_path: Path) -> None:
    created = tmp_path / "created"
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save(_Payload(created), folder / "best.pt")
    with pytest.raises(MultistillError, match=r"best\.pt is a pickled checkpoint"):
        load_model(folder)
    assert not created.exists()
