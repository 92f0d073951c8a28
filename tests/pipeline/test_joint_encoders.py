"""A job whose encoder is trained with its models, through real Ray: from waves to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.joint_case import save_wav2vec2

from multistill import pipeline
from multistill.features.cache import open_store
from multistill.inference.predict import predict_logits
from multistill.metrics.classification import softmax
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import JointModel
from multistill.pipeline import jobfile
from multistill.workspace import Workspace, read_json

pytestmark = pytest.mark.timeout(600)

SPEAKERS, CLIPS = 5, 12
JOB = """
name: joint
seed: 3
workspace: {home}/workspace
corpora: [{{kind: table, path: {home}/corpus/t.csv}}]
labels: {{classes: [calm, anger]}}
split: {{by: speaker, valid: 0.2, test: 0.2}}
features:
  speech: {{model: {home}/wav2vec2, train: {{kind: last-1, learning_rate: 3.0e-3}}}}
distillation: {{targets: in-sample, hint_weight: 0.1}}
teacher:
  model:
    {{preset: small-audio-teacher, width: 16, feedforward: 16, classifier: 16, dropout: 0.0,
     classifier_dropout: 0.0, wide_dropout: 0.0}}
  train: {{epochs: 8, batch_size: 8, learning_rate: 1.0e-2, workers: 2}}
students:
  - name: trained
    model: {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16}}
    train: {{epochs: 6, batch_size: 8, learning_rate: 3.0e-3, cpus_per_worker: 3}}
  - name: frozen
    model:
      {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16,
       train_encoder: false}}
    train: {{epochs: 2, batch_size: 8, learning_rate: 3.0e-3, cpus_per_worker: 3}}
evaluation: {{resamples: 100, latency_clips: 2}}
"""


def test_a_trained_encoder_reaches_the_report(ray_session: None, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    save_wav2vec2(tmp_path / "wav2vec2")
    lines = ["audio_path,text,label,speaker"]
    random = np.random.default_rng(0)
    for number in range(SPEAKERS * CLIPS):
        pitch = (1 + number % 2) * random.uniform(200, 240)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8_000 + 100 * number) / 16_000)
        soundfile.write(corpus / f"{number}.wav", wave, 16_000)
        word = ("Ruhig", "wut")[number % 2]
        lines.append(f"{number}.wav,text {number},{word},p{number // CLIPS}")
    (corpus / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    job = jobfile.parse(JOB.format(home=tmp_path), "joint.yaml")
    outcome = pipeline.run(job)

    workspace = Workspace(job.workspace)
    store = open_store(outcome.stages["features"].path)
    index = {
        **outcome.stages["teacher"].summary["models"],
        **outcome.stages["students"].summary["models"],
    }
    folders = {
        name: workspace.folder("models", each["fingerprint"]) for name, each in index.items()
    }
    metrics = read_json(outcome.stages["evaluate"].path / "metrics.json")
    entries = {model["name"]: model for model in metrics["models"]}
    table = pq.read_table(outcome.stages["evaluate"].path / "predictions.parquet").to_pandas()
    for name, folder in folders.items():
        model = load_model(folder)
        assert isinstance(model, JointModel)
        trained = model.trained_encoder_state()
        assert (folder / "encoder.safetensors").exists() == bool(trained)
        assert bool(trained) == (not name.startswith("frozen"))
        rows = table[table["model"] == name]
        answers = softmax(predict_logits(model, store, rows["utterance_id"].tolist(), "cpu"))
        stored = np.stack(rows["distribution"].to_numpy())
        np.testing.assert_allclose(answers, stored, atol=1e-3)
        entry = entries[name]
        head = sum(parameter.numel() for parameter in model.head.parameters())
        own = sum(tensor.numel() for tensor in trained.values())
        assert entry["params_trainable"] == head + own
        assert entry["params_end_to_end"] > head + sum(
            parameter.numel() for parameter in model.encoders.parameters()
        )
        assert entry["latency_end_to_end_ms"]["p50"] > entry["latency_ms"]["p50"]
    first, *_, last = read_json(folders["teacher"] / "history.json")["epochs"]
    assert last["train_loss"] < first["train_loss"] / 2
    assert last["valid_uar"] > 0.5
    base = read_model_config(folders["teacher"])["encoders"]["speech"]["training"]
    assert base["base"] == str(tmp_path / "wav2vec2")
    assert pipeline.run(job).stages["students"].path == outcome.stages["students"].path
