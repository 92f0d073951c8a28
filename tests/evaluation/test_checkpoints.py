"""Model folders scored on one set of clips: their figures, and those that do not fit."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.evaluation_case import EvaluationCase, make_job
from sklearn.metrics import precision_recall_fscore_support

from multistill.evaluation.checkpoints import (
    Checkpoint,
    model_folders,
    published_figures,
    score_checkpoints,
)
from multistill.report import checkpoints as tables
from multistill.workspace import read_json, write_json


def changed(case: EvaluationCase, folder: Path, **values: Any) -> Path:
    """A copy of a model with other values in config.json."""
    shutil.copytree(case.folders["audio"], folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | values)
    return folder


def test_figures_are_those_of_the_evaluation_and_misfits_have_reasons(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    case = evaluation_case
    labels = case.metrics["classes"]
    config = read_json(case.folders["audio"] / "config.json")
    bad = {
        "order": changed(case, tmp_path / "order", labels=labels[::-1]),
        "dimension": changed(case, tmp_path / "dimension", audio_dim=3),
        "encoder": changed(case, tmp_path / "encoder", encoders={"speech": {"name": "other"}}),
        "damaged": changed(case, tmp_path / "damaged", sha256="0"),
    }
    # An audio model does not read text: another text encoder is none of its business.
    text = {"text": {"name": "other"}}
    good = changed(case, tmp_path / "good", text_dim=99, encoders=config["encoders"] | text)
    known = frozenset(["case-12-00", "case-12-01", "not a test clip"])
    checkpoints = [
        Checkpoint("audio", case.folders["audio"], known),
        *(Checkpoint(name, folder) for name, folder in bad.items()),
        Checkpoint("multimodal", case.folders["multimodal"], frozenset()),
    ]
    settings = make_job().evaluation
    facts = score_checkpoints(checkpoints, case.manifest, case.store, settings, seed=5)
    assert [model["name"] for model in facts["models"]] == ["audio", "multimodal"]
    evaluated = {model["name"]: model for model in case.metrics["models"]}
    for model in facts["models"]:
        assert model["metrics"] == evaluated[model["name"]]["metrics"]
        assert model["params_trainable"] == evaluated[model["name"]]["params_trainable"]
        assert model["published"]["f1"] == pytest.approx(model["metrics"]["weighted_f1"]["value"])
        assert model["inference_s"] > 0 and model["latency_ms"]["p50"] > 0
    assert [model["known_clips"] for model in facts["models"]] == [2, 0]
    reasons = {refused["name"]: refused["reason"] for refused in facts["refused"]}
    assert reasons.keys() == bad.keys()
    assert "in this order" in reasons["order"] and "checksum" in reasons["damaged"]
    assert "dimension is 3, and 12 in" in reasons["dimension"]
    assert "other speech states: name is other, and log-mel in" in reasons["encoder"]
    assert facts["baseline"]["metrics"] == case.metrics["baseline"]["metrics"]
    again = score_checkpoints(
        [Checkpoint("good", good)], case.manifest, case.store, settings, seed=5
    )
    assert [model["name"] for model in again["models"]] == ["good"]
    _assert_tables({"source": "models", "job": "case", "fold": None, **facts})


def _assert_tables(facts: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.text(facts, "csv"))))
    assert [row["model"] for row in rows][1:3] == ["audio", "multimodal"] and len(rows) == 7
    assert float(rows[1]["uar"]) == facts["models"][0]["metrics"]["uar"]["value"]
    assert rows[3]["uar"] == "" and rows[3]["not_scored"]
    for text in (tables.text(facts, "markdown"), tables.text(facts, "latex")):
        assert "TRAINED ON THESE CLIPS" in text and "not scored: damaged" in text
    page = tables.text(facts, "html")
    assert "TRAINED ON THESE CLIPS" in page and page.count("its checksum differs") == 1


def test_hidden_folders_and_folders_without_config_hold_no_model(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    source = evaluation_case.folders["audio"]
    for name in ("b", "a/deep", ".x.partial", "c"):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "c" / "config.json").unlink()
    assert list(model_folders(tmp_path)) == [tmp_path / "a" / "deep", tmp_path / "b"]
    assert list(model_folders(tmp_path / "b")) == [tmp_path / "b"]


@pytest.mark.parametrize("seed", range(3))
def test_published_figures_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 3, 40), rng.integers(0, 4, 40)  # one class never occurs
    confusion = np.zeros((5, 5))
    np.add.at(confusion, (truth, predicted), 1)
    found = published_figures(confusion)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, average="weighted", zero_division=0
    )
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(
        [precision, recall, f1]
    )
    per_class = precision_recall_fscore_support(truth, predicted, labels=[0, 1, 2], zero_division=0)
    assert found["recall_sd"] == pytest.approx(np.std(per_class[1]))
    assert found["f1_sd"] == pytest.approx(np.std(per_class[2]))
    assert set(published_figures(np.zeros((2, 2))).values()) == {None}
