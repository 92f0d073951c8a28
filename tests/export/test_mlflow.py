"""Exported MLflow models answer as `Predictor` does, and hold no pickle."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.exported_clips import write_clip
from helpers.paths import ROOT
from helpers.predictor_case import LABELS, save_predictor

from multistill import Predictor, __version__
from multistill.export.formats import export
from multistill.export.pyfunc import recording
from multistill.inference.source import found_model
from multistill.tracking.registry import digest_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A multimodal model with dimensions, and its MLflow model."""
    folder = tmp_path_factory.mktemp("mlflow")
    model = save_predictor(folder / "model", temperature=1.4, spec={"dimensions": ("valence",)})
    return model, export(model, folder / "out", "mlflow").out


def load(folder: Path) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(folder))


def test_rows_are_predictions(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model, folder = exported
    clip = tmp_path / "clip.wav"
    write_clip(clip)
    content = base64.b64encode(clip.read_bytes()).decode()
    table = pd.DataFrame(
        {
            "audio": [str(clip), content, None, "missing.wav", content[:400], None],
            "text": ["좋은 하루", None, "좋은 하루", "좋은 하루", None, None],
        },
        index=list("abcdef"),
    )
    found = load(folder).predict(table)
    assert list(found.columns) == ["label", *(f"p_{x}" for x in LABELS), "valence", "error"]
    assert list(found.index) == list(table.index)
    predictor = Predictor.load(model, "cpu")
    for row, arguments in {
        "a": (clip, "좋은 하루"), "b": (clip, None), "c": (None, "좋은 하루"),
    }.items():  # fmt: skip
        wanted = predictor.predict(*arguments)
        assert found.label[row] == wanted.label and found.error[row] is None
        shares = [found[f"p_{label}"][row] for label in LABELS]
        np.testing.assert_allclose(shares, list(wanted.distribution.values()), atol=1e-6)
        assert found.valence[row] == pytest.approx(wanted.dimensions["valence"], abs=1e-5)
    for row, reason in {
        "d": "neither a file nor the content of one", "e": "truncated", "f": "nothing to read",
    }.items():  # fmt: skip
        assert reason in found.error[row] and found.p_happy[row] is None


def test_signature_example_and_requirements(exported: tuple[Path, Path]) -> None:
    _, folder = exported
    model = load(folder)
    inputs, outputs = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert inputs.input_names() == ["audio", "text"]
    assert outputs.input_names()[:2] == ["label", "p_happy"]
    assert f"multistill=={__version__}" in (folder / "requirements.txt").read_text().split()
    with np.errstate(all="raise"):
        found = model.predict(model.input_example)
    assert found.label[0] in LABELS and found.p_happy.dtype == float
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["columns"] == ["audio", "text"]


def test_it_is_made_of_code_and_the_model_folder(exported: tuple[Path, Path]) -> None:
    model, folder = exported
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
    text = (folder / "MLmodel").read_text()
    assert str(ROOT) not in text and str(model.parent) not in text
    content = folder / "artifacts" / "model"
    for file in ("model.safetensors", "config.json"):
        assert (content / file).read_bytes() == (model / file).read_bytes()


def test_the_same_weights_have_the_same_digest(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """Whenever and with whichever versions they are written, so they are registered once."""
    model, folder = exported
    again = export(model, tmp_path / "again", "mlflow").out
    assert (again / "MLmodel").read_text() != (folder / "MLmodel").read_text()
    assert digest_of(again) == digest_of(folder)
    (again / "artifacts" / "model" / "config.json").write_text("{}")
    assert digest_of(again) != digest_of(folder)


def test_a_cell_is_a_file_or_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"sound")
    assert recording(str(tmp_path / "a")) == tmp_path / "a"
    assert recording(base64.b64encode(b"sound").decode()) == recording(b"sound") == b"sound"
    assert recording(None) is recording(math.nan) is recording("") is None
    for size in (300, 3_000, 300_000):  # no file name is as long
        assert recording(base64.b64encode(bytes(size)).decode()) == bytes(size)


def test_the_folder_is_a_model_for_this_program_too(exported: tuple[Path, Path]) -> None:
    model, folder = exported
    with found_model(folder, Path("none")) as (found, _):
        assert Predictor.load(found, "cpu").name == Predictor.load(model, "cpu").name
