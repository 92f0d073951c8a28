"""The recipe `pretrain`: branches, the teacher on them, and its students."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.without_ray import without_ray

from multistill import pipeline
from multistill.errors import MultistillError, UsageError
from multistill.models.files import read_model_config
from multistill.pipeline import jobfile
from multistill.pipeline.data_check import check_data
from multistill.training.model_store import ModelStore
from multistill.workspace import Workspace, read_json

SPEAKERS, CLIPS = 6, 8
JOB = """
name: first
recipe: pretrain
seed: 3
workspace: {home}/workspace
corpora: [{{kind: table, path: {home}/corpus/t.csv}}]
labels: {{classes: [calm, anger]}}
tasks: {{classes: 1.0, valence: 0.2, arousal: 0.2}}
split: {{by: speaker, valid: 0.2, test: 0.2, folds: 2}}
features: {{speech: {{model: log-mel, bands: 16, window_ms: 128, hop_ms: 32}}}}
pretrain:
  audio: {{epochs: 3, batch_size: 8, learning_rate: 3.0e-3, dimension_loss: rmse}}
  text: {{epochs: 3, batch_size: 8, learning_rate: {rate}}}
teacher:
  model:
    {{preset: va-fusion, width: 24, heads: 3, layers: 1, feedforward: 16, va_recurrent: 8,
     va_audio_layers: 1, va_text_layers: 1, va_branch_heads: 2, va_branch_feedforward: 16,
     va_branch_recurrent: 6, front_channels: 2, audio_stride: 2}}
  train:
    epochs: 4
    batch_size: 8
    learning_rate: 3.0e-3
    augmentation: {{only: [anger], feature_masks: 1, word_swap: 0.2}}
students:
  - name: audio
    model: {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16}}
    train: {{epochs: 3, batch_size: 8, learning_rate: 3.0e-3}}
evaluation: {{resamples: 100, latency_clips: 2}}
"""


def write_corpus(folder: Path, columns: str = "valence,arousal") -> None:
    folder.mkdir()
    lines = [f"audio_path,text,label,speaker,{columns}".rstrip(",")]
    random = np.random.default_rng(0)
    for number in range(SPEAKERS * CLIPS):
        angry = number % 2
        pitch = (1 + angry) * random.uniform(200, 240)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8_000 + 100 * number) / 16_000)
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        values = {"valence": 4 - 2 * angry, "arousal": 2 + 2 * angry}
        noisy = [
            f"{values[name] + random.uniform(-0.5, 0.5):.2f}" for name in columns.split(",") if name
        ]
        word = ("Ruhig", "wut")[angry]
        lines.append(",".join([f"{number}.wav", f"t {word}", word, f"p{number // CLIPS}", *noisy]))
    (folder / "t.csv").write_text("\n".join(lines), encoding="utf-8")


def indexes(outcome: Any) -> dict[str, Any]:
    return {
        name: each["fingerprint"]
        for stage in ("pretrain", "teacher", "students")
        for name, each in outcome.stages[stage].summary["models"].items()
    }


@pytest.fixture
def no_ray() -> Iterator[None]:
    with without_ray():
        yield


@pytest.mark.timeout(600)
def test_a_teacher_stands_on_branches_of_its_own_fold(no_ray: None, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    job = jobfile.parse(JOB.format(home=tmp_path, rate=3.0e-3), "first.yaml")
    first = pipeline.run(job)
    fingerprints = indexes(first)
    folds = ("", "-fold0", "-fold1")
    assert set(fingerprints) == {
        *(f"teacher{kind}{fold}" for kind in ("", "-audio", "-text") for fold in folds),
        "audio",
        "audio-control",
    }
    store = ModelStore(Workspace(job.workspace))
    for fold in folds:
        teacher = store.folder({"fingerprint": fingerprints[f"teacher{fold}"]})
        initial = read_model_config(teacher)["training"]["initial"]
        assert {name: each["fingerprint"] for name, each in initial.items()} == {
            name: fingerprints[f"teacher-{name}{fold}"] for name in ("audio", "text")
        }
    scores = first.stages["pretrain"].summary["scores"]
    assert scores["teacher-audio"]["dimension"] == "arousal"
    assert scores["teacher-text"]["dimension"] == "valence"
    assert all(each["clips"] > 0 and each["rmse"] < 2 for each in scores.values())
    metrics = read_json(first.stages["evaluate"].path / "metrics.json")
    assert {"teacher", "audio", "audio-control"} <= {model["name"] for model in metrics["models"]}
    assert first.report is not None
    shown = read_json(first.report / "report.json")["pretraining"]
    assert [(each["model"], each["rmse"]) for each in shown] == [
        (name, each["rmse"]) for name, each in scores.items()
    ]

    changed = indexes(
        pipeline.run(jobfile.parse(JOB.format(home=tmp_path, rate=2.0e-3), "first.yaml"))
    )
    kept = {name for name, value in changed.items() if value == fingerprints[name]}
    assert kept == {*(f"teacher-audio{fold}" for fold in folds), "audio-control"}


def test_a_dimension_without_values_is_refused_by_validate(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", "arousal")
    text = JOB.format(home=tmp_path, rate=3.0e-3).replace("valence: 0.2, arousal: 0.2", "")
    with pytest.raises(MultistillError, match="`valence`: the train part has 0 values"):
        check_data(jobfile.parse(text, "first.yaml"))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("dimension_loss: rmse", "metric: uar", "`metric: uar` is of classes"),
        ("dimension_loss: rmse", "oversample: true", "a branch predicts a dimension; remove them"),
        ("dimension_loss: rmse", "workers: 2", "is over the batch that one worker sees"),
        (
            "dimension_loss: rmse",
            "augmentation: {word_swap: 0.1}",
            "pretrain.audio: .* changes text states, and the model reads none",
        ),
        ("only: [anger]", "only: [joy]", "`joy` is not a class of the job; use some of calm"),
        ("only: [anger], feature_masks: 1, word_swap: 0.2", "only: [anger]", "has no effect"),
        ("model: log-mel, bands: 16, window_ms: 128, hop_ms: 32", "model: smart-turn", "va-fusion"),
        ("model: log-mel, bands: 16", "model: smart-turn, bands: 16", "a setting of `log-mel`"),
        ("va_branch_heads: 2", "va_branch_heads: 5", "is not divisible by va_branch_heads 5"),
        ("audio_stride: 2", "fusion: mixer", "va-fusion does not use `fusion`"),
        ("audio_stride: 2", "va_text_dimension: arousal", "both branches predict arousal"),
        ("recipe: pretrain", "recipe: pretraining", "did you mean `pretrain`"),
        ("recipe: pretrain", "recipe: distillation", "no stage of .* reads `pretrain`"),
    ],
)
def test_what_the_recipe_cannot_do_is_refused(before: str, after: str, sentence: str) -> None:
    text = JOB.format(home="/nowhere", rate=3.0e-3)
    assert before in text
    with pytest.raises(UsageError, match=sentence):
        jobfile.parse(text.replace(before, after), "first.yaml")


def test_a_teacher_without_branches_is_refused() -> None:
    text = "{name: a, recipe: pretrain, corpora: [{kind: demo}], teacher: {model: small-teacher}}"
    with pytest.raises(UsageError, match="`small-teacher` has none; use `va-fusion` or"):
        jobfile.parse(text, "first.yaml")
