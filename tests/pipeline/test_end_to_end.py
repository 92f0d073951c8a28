"""A job whose teacher is MESM, with a text encoder that it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.tiny_encoders import save_text_model
from helpers.without_ray import without_ray

from multistill import pipeline
from multistill.inference.predictor import Predictor
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import JointModel
from multistill.pipeline import jobfile
from multistill.workspace import Workspace, read_json

pytestmark = pytest.mark.timeout(600)

SPEAKERS, CLIPS = 5, 8
TINY = "width: 8, heads: 2, layers: 1, feedforward: 16, front_channels: 4, chunk_hidden: 16"
JOB = """
name: end-to-end
seed: 3
workspace: {home}/workspace
corpora: [{{kind: table, path: {home}/corpus/t.csv}}]
labels: {{classes: [calm, anger]}}
split: {{by: speaker, valid: 0.2, test: 0.2}}
features:
  speech: {{model: log-mel}}
  text: {{model: {home}/bert, train: {{kind: full, learning_rate: 1.0e-3}}}}
distillation: {{targets: in-sample, hint_weight: 0.1, sequence_weight: 0.1}}
teacher:
  model: {{preset: small-mesm, chunk_frames: 16, {tiny}}}
  train:
    {{epochs: 4, batch_size: 8, learning_rate: 1.0e-2, loss: one-vs-rest, class_weights: odds}}
students:
  - name: dense
    model: {{preset: small-fe2e, train_encoder: false, chunk_frames: 16, {tiny}}}
    train: {{epochs: 2, batch_size: 8, learning_rate: 1.0e-2}}
evaluation: {{resamples: 100, latency_clips: 2}}
"""


def test_mesm_teaches_and_reaches_the_report(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    save_text_model(tmp_path / "bert", "bert")
    lines = ["audio_path,text,label,speaker"]
    random = np.random.default_rng(0)
    for number in range(SPEAKERS * CLIPS):
        pitch = (1 + number % 2) * random.uniform(200, 240)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8_000 + 200 * number) / 16_000)
        soundfile.write(corpus / f"{number}.wav", wave, 16_000)
        label, word = (("Ruhig", "good day"), ("wut", "bad night"))[number % 2]
        said = "" if number % 7 == 0 else word
        lines.append(f"{number}.wav,{said},{label},p{number // CLIPS}")
    (corpus / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    job = jobfile.parse(JOB.format(home=tmp_path, tiny=TINY), "end-to-end.yaml")
    with without_ray():
        outcome = pipeline.run(job)

    workspace = Workspace(job.workspace)
    [teacher] = outcome.stages["teacher"].summary["models"].values()
    folder = workspace.folder("models", teacher["fingerprint"])
    config = read_model_config(folder)
    assert config["spec"]["network"] == "mesm" and config["output"] == "one-vs-rest"
    assert len(config["thresholds"]) == 2
    model = load_model(folder)
    assert isinstance(model, JointModel) and model.trained_encoder_state()
    metrics = read_json(outcome.stages["evaluate"].path / "metrics.json")
    entries = {each["name"]: each for each in metrics["models"]}
    assert [row["class"] for row in entries["teacher"]["detection"]] == metrics["classes"]
    assert entries["dense"].get("detection") is None
    assert all("balanced_accuracy" in row for row in entries["dense"]["classes"])
    page = (outcome.stages["report"].path / "report.html").read_text(encoding="utf-8")
    assert "Balanced accuracy by class" in page
    assert "thresholds of validation" in page
    counts = entries["teacher"]["multiply_accumulates"]
    assert 0 < counts["active"] < counts["dense"]
    assert "as a sparse implementation would compute" in page
    answer = Predictor.load(folder).predict(corpus / "3.wav", "bad night")
    assert answer.label in metrics["classes"]
