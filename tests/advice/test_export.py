"""What `export` tells the user to do helps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from helpers.advice import told
from helpers.features_case import save_wav2vec2
from helpers.predictor_case import save_predictor

from multistill.errors import UsageError
from multistill.export import to_onnx
from multistill.export.formats import export
from multistill.inference.quantize import quantize


def test_where_it_is_written(tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "model", "light-student-s")
    with told("--out {} is in use; give a folder that is empty or does not exist", UsageError):
        export(model, model, "mlflow")
    (tmp_path / "file").write_text("")
    with told("--out {} cannot be written ({}); give another folder", UsageError):
        export(model, tmp_path / "file" / "out", "mlflow")
    (tmp_path / "out").mkdir()
    assert "MLmodel" in export(model, tmp_path / "out", "mlflow").files


def test_options_of_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_predictor(tmp_path / "model", "light-student-s")
    out = tmp_path / "out"
    with told("are for graphs; leave them out with --format mlflow", UsageError):
        export(model, out, "mlflow", head_only=True)
    with told("for a folder, export what `multistill quantize` writes", UsageError):
        export(model, out, "folder", int8=True)
    quantize(model, tmp_path / "int8")
    monkeypatch.setattr("multistill.export.programs.trace", lambda folder, head_only: None)
    assert "README.md" in export(tmp_path / "int8", out, "folder").files


def test_models_with_an_encoder_of_their_own(tmp_path: Path) -> None:
    encoder = save_wav2vec2(tmp_path / "encoder")
    features = {"speech": {"model": str(encoder), "train": "full"}}
    model = save_predictor(tmp_path / "model", "small-audio-student", features)
    with told(
        "the model {} does not become a graph: {}; use `--format folder` or `--format mlflow`",
        UsageError,
    ):
        export(model, tmp_path / "out", "onnx")
    assert "encoder.safetensors" in export(model, tmp_path / "folder", "folder").files
    assert "MLmodel" in export(model, tmp_path / "mlflow", "mlflow").files


@pytest.mark.parametrize("preset", ["va-text", "small-mesm"])
def test_networks_of_one_length(preset: str, tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "model", preset, {"text": {"model": "hashed-ngrams"}})
    with told("the model {} does not become a graph: {}; use `--format folder`", UsageError):
        export(model, tmp_path / "out", "onnx")
    done = export(model, tmp_path / "folder", "folder")
    assert "README.md" in done.files and "program.pt2" not in done.files


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        return None if name == "onnxscript" else importlib.util.find_spec(name)

    monkeypatch.setattr(to_onnx, "find_spec", without)
    with told("the package {} is not installed; run `pip install 'multistill[onnx]'`", UsageError):
        to_onnx.require_packages()
    monkeypatch.undo()
    to_onnx.require_packages()
