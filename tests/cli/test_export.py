"""`multistill export`: what it prints, for people and as JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.predictor_case import save_predictor

from multistill.cli.app import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    return int(end.value.code or 0)


def test_sizes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multistill.export.programs.trace", lambda folder, head_only: None)
    model, out = save_predictor(tmp_path / "model"), tmp_path / "out"
    assert run(model, "--format", "folder", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    size = (model / "model.safetensors").stat().st_size
    assert f"{out / 'model.safetensors'}: {size / 1e6:.2f} MB" in lines
    assert any("no finished job has this model" in line for line in lines)
    assert run(model, "--format", "folder", "--out", tmp_path / "again", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"]["model.safetensors"] == size and found["reads"] is None


def test_wrong_use_is_told_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_predictor(tmp_path / "model")
    assert run(model, "--format", "onnx", "--out", model) == 2
    assert "is in use" in capsys.readouterr().err
    assert run(model, "--format", "torchscript", "--out", tmp_path / "out") == 2
    assert run(tmp_path / "none", "--format", "mlflow", "--out", tmp_path / "out") == 2
    (tmp_path / "foreign").mkdir()
    assert run(tmp_path / "foreign", "--format", "mlflow", "--out", tmp_path / "out") == 1
    assert "is not a model folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
