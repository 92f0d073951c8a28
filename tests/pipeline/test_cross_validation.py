"""A job under cross-validation: every fold has models of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.without_ray import search_alone

from multistill import pipeline
from multistill.config import JobConfig
from multistill.corpora.manifest import read_manifest
from multistill.distillation.targets import read_soft_targets
from multistill.features.cache import open_store
from multistill.inference.predict import predict_logits
from multistill.metrics.classification import softmax
from multistill.models.files import load_model
from multistill.pipeline import jobfile
from multistill.pipeline.data_check import check_data
from multistill.pipeline.data_check import describe as described
from multistill.pipeline.folds import folds_of
from multistill.pipeline.plan import describe
from multistill.pipeline.seeds import soft_targets_folder, teachers_of
from multistill.search.spec import SearchSpec
from multistill.training.model_store import ModelStore
from multistill.workspace import Workspace, fold_folder, read_json

pytestmark = pytest.mark.timeout(600)

SPEAKERS, CLIPS, SEEDS = 4, 12, 2
WILD = ("p0", "p1", "p1", "p3", "q", "q")
"""Speakers of the clips without labels, most of whom are tested in one of the folds."""

JOB = """
name: crossed
seed: 3
seeds: 2
workspace: {home}/workspace
corpora:
  - {{kind: table, path: {home}/corpus/t.csv}}
  - {{kind: table, path: {home}/corpus/wild.csv, name: wild, unlabelled: true}}
labels: {{classes: [calm, anger]}}
split: {{valid: 0.2, folds: 2}}
protocol: leave-one-out
features: {{speech: log-mel}}
distillation: {{sequence_weight: 0.1, hint_weight: 0.1}}
teacher:
  model: {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16}}
  train: {{epochs: 4, batch_size: 8, learning_rate: 1.0e-2}}
students:
  - name: audio
    model: {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16}}
    train: {{epochs: 4, batch_size: 8, learning_rate: 1.0e-2}}
search:
  trials: 3
  concurrent: 1
  retrain: 2
  seeds: 1
  epochs: 3
  space: {{train.learning_rate: {{low: 1.0e-3, high: 3.0e-2, log: true}}}}
evaluation: {{resamples: 100, latency_clips: 2}}
"""


@pytest.fixture(scope="module")
def finished(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[JobConfig, pipeline.Outcome]]:
    home = tmp_path_factory.mktemp("crossed")
    (home / "corpus").mkdir()
    lines = ["audio_path,text,label,speaker"]
    wild = ["audio_path,speaker"]
    random = np.random.default_rng(0)
    for number in range(SPEAKERS * CLIPS + len(WILD)):
        label = number % 2
        pitch = (1 + label) * random.uniform(200, 240)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(12_000) / 16_000)
        soundfile.write(home / "corpus" / f"{number}.wav", wave, 16_000)
        word = ("Ruhig", "wut")[label]
        if number < SPEAKERS * CLIPS:
            lines.append(f"{number}.wav,text {number},{word},p{number // CLIPS}")
        else:
            wild.append(f"{number}.wav,{WILD[number - SPEAKERS * CLIPS]}")
    for name, table in (("t.csv", lines), ("wild.csv", wild)):
        (home / "corpus" / name).write_text("\n".join(table), encoding="utf-8")
    job = jobfile.parse(JOB.format(home=home), "crossed.yaml")
    before = describe(job)
    assert before["trainings"] is None, "the speakers are not known yet"
    with search_alone():
        yield job, pipeline.run(job)


def metrics_of(outcome: pipeline.Outcome) -> dict[str, Any]:
    found: dict[str, Any] = read_json(outcome.stages["evaluate"].path / "metrics.json")
    return found


def test_every_clip_is_predicted_once_by_every_model(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    outcome = finished[1]
    predictions = pq.read_table(outcome.stages["evaluate"].path / "predictions.parquet").to_pandas()
    for _, rows in predictions.groupby("model"):
        assert sorted(rows["utterance_id"]) == sorted(f"table/{n}" for n in range(SPEAKERS * CLIPS))
    metrics = metrics_of(outcome)
    assert metrics["test"]["speakers"] == SPEAKERS
    assert [fold["name"] for fold in metrics["folds"]] == [f"table/p{n}" for n in range(SPEAKERS)]
    for model in (metrics["baseline"], *metrics["references"], *metrics["models"]):
        values = model["folds"]["accuracy"]["values"]
        assert np.mean(values) == pytest.approx(model["metrics"]["accuracy"]["value"])
        assert model["folds"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    teacher = metrics["models"][0]
    assert teacher["metrics"]["uar"]["value"] > 0.9, "the pitch tells the class"
    assert metrics["baseline"]["metrics"]["uar"]["value"] <= 0.5


def test_predictions_are_of_the_model_that_never_heard_the_speaker(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    artifacts = {
        step: outcome.stages[name]
        for step, name in (("manifest", "prepare"), ("students", "students"))
    }
    store = open_store(outcome.stages["features"].path)
    predictions = pq.read_table(outcome.stages["evaluate"].path / "predictions.parquet").to_pandas()
    audio = predictions[predictions["model"] == "audio"].set_index("utterance_id")
    models = ModelStore(Workspace(job.workspace))
    seen = set()
    for number, fold in enumerate(folds_of(artifacts)):
        rows = read_manifest(fold.artifacts["manifest"].path).to_pandas()
        test = rows[rows["split"] == "test"]
        assert set(test["speaker"]) == {f"table/p{number}"}
        entry = fold.artifacts["students"].summary["models"]["audio-seed0"]
        done = read_json(models.folder(entry) / "done.json")
        assert done["inputs"]["manifest"] == fold.artifacts["manifest"].fingerprint
        seen.add(entry["fingerprint"])
        model = load_model(models.folder(entry))
        ids = test["utterance_id"].tolist()
        expected = softmax(predict_logits(model, store, ids, "cpu"))
        stored = np.stack(audio.loc[ids, "distribution"].to_numpy())
        assert np.allclose(stored, expected, atol=1e-3)
    assert len(seen) == SPEAKERS


def test_soft_targets_of_a_fold_know_nothing_of_its_test_speaker(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    models = ModelStore(Workspace(job.workspace))
    artifacts = {"manifest": outcome.stages["prepare"], "teachers": outcome.stages["teacher"]}
    for number, fold in enumerate(folds_of(artifacts)):
        folder = fold_folder(outcome.stages["distill"].path, number)
        targets = set(pq.read_table(folder / "soft_targets.parquet")["utterance_id"].to_pylist())
        rows = read_manifest(fold.artifacts["manifest"].path).to_pandas()
        assert targets == set(rows[rows["split"] != "test"]["utterance_id"])
        for entry in fold.artifacts["teachers"].summary["models"].values():
            done = read_json(models.folder(entry) / "done.json")
            assert done["inputs"]["manifest"] == fold.artifacts["manifest"].fingerprint


def test_clips_without_labels_teach_the_students_of_the_folds_that_test_nobody_in_them(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    models = ModelStore(Workspace(job.workspace))
    names = {"manifest": "prepare", "teachers": "teacher", "students": "students"}
    for fold in folds_of({artifact: outcome.stages[name] for artifact, name in names.items()}):
        rows = read_manifest(fold.artifacts["manifest"].path).to_pandas()
        trained = {name.split("/")[1] for name in rows[rows["split"] == "train"]["speaker"]}
        wild = rows[rows["split"] == "unlabelled"]
        expected = [name for name in WILD if name in trained | {"q"}]
        assert [name.split("/")[1] for name in wild["speaker"]] == expected
        students = fold.artifacts["students"].summary["models"]
        teachers = fold.artifacts["teachers"].summary["models"]
        for name, entry in {**students, **teachers}.items():
            training = read_json(models.folder(entry) / "config.json")["training"]
            assert training["unlabelled_rows"] == len(expected) * (entry["role"] == "student"), name
            if name in students:
                assert training["labelled_rows"] == int((rows["split"] == "train").sum())
    assert outcome.report is not None
    report = json.loads((outcome.report / "report.json").read_text())
    assert report["corpus"]["unlabelled"]["utterances"] == len(WILD)
    page = " ".join((outcome.report / "report.html").read_text().split())
    assert "neither teacher nor controls are trained on: wild (6; 0 left out" in page
    plan = describe(job)
    assert plan["unlabelled"]["wild"]["clips"] == len(WILD)
    assert "wild: 6 clips without labels, 0.00 h" in described(check_data(job))


def test_students_learn_from_the_teacher_of_their_seed_and_fold(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    names = {"manifest": "prepare", "teachers": "teacher", "soft_targets": "distill"}
    artifacts = {name: outcome.stages[stage] for name, stage in names.items()}
    artifacts["students"] = outcome.stages["students"]
    models, store = (
        ModelStore(Workspace(job.workspace)),
        open_store(outcome.stages["features"].path),
    )
    for fold in folds_of(artifacts):
        rows = read_manifest(fold.artifacts["manifest"].path).to_pandas()
        valid = rows[rows["split"] == "valid"]["utterance_id"].tolist()
        index = {name: fold.artifacts[name].summary["models"] for name in ("teachers", "students")}
        soft_targets = fold.artifacts["soft_targets"]
        for seed, teachers in enumerate(teachers_of(job, index["teachers"])):
            [name] = teachers.ensemble
            file = soft_targets_folder(soft_targets.path, seed) / "soft_targets.parquet"
            targets = read_soft_targets(file)
            found = targets.outputs[[targets.ids.index(clip) for clip in valid]]
            teacher = load_model(models.folder(index["teachers"][name]))
            assert np.allclose(found, predict_logits(teacher, store, valid, "cpu"), atol=1e-4)
            student = index["students"][f"audio-seed{seed}"]
            assert student["seed"] == index["teachers"][name]["seed"] == job.seed + seed
            inputs = read_json(models.folder(student) / "done.json")["inputs"]
            assert inputs["soft_targets"] == soft_targets.summary["seeds"][seed]
    for model in metrics_of(outcome)["models"]:
        if model["name"] in ("teacher", "audio", "audio-control"):
            scores = model["seeds"]["metrics"]["uar"]
            assert len(scores["values"]) == model["seeds"]["count"] == SEEDS
            assert scores["value"] == pytest.approx(np.mean(scores["values"]))


def test_plan_report_and_check_tell_the_folds(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    rows = {row["model"]: row["trainings"] for row in describe(job)["models"]}
    assert rows == {
        "teacher": SEEDS * SPEAKERS,
        "teacher-fold": SEEDS * 2 * SPEAKERS,
        "audio": SEEDS * SPEAKERS,
        "audio-control": SEEDS * SPEAKERS,
        "audio-trial": 3,
        "audio-search": 1 + SPEAKERS,  # two in the first fold, whose winner is trained in all
        "audio-search-control": SPEAKERS,
    }
    assert outcome.report is not None
    report = json.loads((outcome.report / "report.json").read_text())
    assert report["protocol"]["short"] == "leaving one speaker out (4 folds)"
    page = (outcome.report / "report.html").read_text()
    assert page.count("Tested: leaving one speaker out (4 folds).") > 5, "every table says it"
    assert "Over the folds" in page and "folds-narrow" in page
    [warning] = [each for each in report["warnings"] if each["kind"] == "search-first-fold"]
    first = report["protocol"]["folds"][0]
    assert f"Only the {first['clips']} test clips of fold {first['name']}" in warning["text"]
    assert (
        "SEARCH ON THE FIRST FOLD" in page
        and "Trials and validation scores are of the first" in page
    )
    lines = described(check_data(job))
    assert f"fold table/p0: train {2 * CLIPS}, valid {CLIPS}, test {CLIPS}, unlabelled 4" in lines


def test_the_search_reads_the_first_fold_only_and_its_winner_is_trained_in_all(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    artifacts = {"manifest": outcome.stages["prepare"], "search": outcome.stages["search"]}
    folds = folds_of(artifacts)
    found = [fold_folder(artifacts["search"].path, number) for number in range(SPEAKERS)]
    assert [(folder / "study.json").exists() for folder in found] == [True] + 3 * [False]
    spec = SearchSpec.read(found[0])
    assert Path(spec.base.manifest) == folds[0].artifacts["manifest"].path
    models = ModelStore(Workspace(job.workspace))
    winner = artifacts["search"].summary["winner"]
    trained, rates = set(), set()
    for fold in folds:
        index = fold.artifacts["search"].summary["models"]
        assert {winner, "audio-search-control"} <= set(index)
        models.refuse_other_data(index, {"manifest": [fold.artifacts["manifest"].fingerprint]})
        trained.add(index[winner]["fingerprint"])
        rates.add(read_json(models.folder(index[winner]) / "history.json")["learning_rate"])
    assert len(trained) == SPEAKERS and len(rates) == 1
    names = [model["name"] for model in metrics_of(outcome)["models"]]
    assert names[-2:] == ["audio-search-control", "audio-search"]


def test_a_second_run_finds_everything_and_another_fold_count_only_the_features(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    assert not pipeline.run(job).worked
    other = job.model_copy(
        update={"protocol": job.protocol.model_copy(update={"kind": "k-fold", "folds": 3})}
    )
    states = {stage.stage: stage.state for stage in pipeline.status(other)}
    assert states["prepare"] != "done"
    made = pipeline.run(other, until="features")
    assert made.stages["features"].fingerprint == outcome.stages["features"].fingerprint
