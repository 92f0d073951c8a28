"""The end-to-end pipeline on a tiny corpus, through real Ray and a real MLflow server."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from helpers.browser import program
from helpers.champion_doors import invoked, served_twice, shown_by_page
from helpers.doors import AlwaysSpeech, Doors, by_onnx_runtime
from helpers.generators import kemdy20
from helpers.stream_case import RATE, RECORDING

from multistill import pipeline
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.features.identity import store_settings
from multistill.forecast.keys import training_what
from multistill.forecast.rates import Rates, device_name
from multistill.models.files import read_model_config
from multistill.pipeline import jobfile
from multistill.pipeline.garbage import find_garbage
from multistill.pipeline.plan import describe
from multistill.pipeline.runs import list_runs
from multistill.pipeline.searches import join
from multistill.workspace import Workspace

# The first test runs the whole job: eleven trainings and a search.
pytestmark = pytest.mark.timeout(900)

JOB = """
name: tiny
seed: 3
seeds: 2
workspace: {workspace}
tracking: {{uri: "{server}", champion: true}}
corpora:
  - kind: kemdy20
    path: {corpus}
split: {{test: 0.34, valid: 0.2, folds: 2}}
features:
  speech: {{model: log-mel}}
  max_quarantined: 0.2
teacher:
  model:
    {{preset: small-teacher, width: 16, layers: 1, feedforward: 16, classifier: 16, dropout: 0,
      classifier_dropout: 0, wide_dropout: 0, modality_dropout: 0}}
  train: {{epochs: 2, batch_size: 16, learning_rate: 1.0e-9, workers: 2}}  # learns nothing
students:
  - name: audio
    model: {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16}}
    train: {{epochs: 12, batch_size: 8, learning_rate: 1.0e-2}}
search: {{trials: 2, epochs: 2, startup_trials: 1, grace_epochs: 1, seeds: 2}}
evaluation: {{resamples: 100, latency_clips: 2}}
"""

STAGES = (
    "prepare",
    "features",
    "statistics",
    "teacher",
    "distill",
    "students",
    "search",
    "evaluate",
    "report",
)
REPORT_KEYS = {"job", "created", "versions", "corpus", "baseline", "models", "search", "stages"}
MODEL_KEYS = {
    "name",
    "role",
    "modality",
    "params_trainable",
    "params_end_to_end",
    "metrics",
    "mlflow_run_id",
}


@pytest.fixture(scope="module")
def finished(
    ray_session: None, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobConfig, pipeline.Outcome]:
    home = tmp_path_factory.mktemp("chain")
    corpus = kemdy20.make(
        home / "corpus",
        sessions=range(1, 7),
        segments_per_session=12,
        glitches=False,
        samples=12_000,
    )
    for utterance in corpus.utterances:  # one pitch per class, so that training can succeed
        pitch = 200 * (1 + int(np.argmax(utterance.votes)))
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(12_000) / 16_000)
        soundfile.write(utterance.audio_path, wave, 16_000)
    broken = next((home / "corpus" / "wav" / "Session01").glob("*.wav"))
    broken.write_bytes(broken.read_bytes()[:2000])  # header promises more than there is
    text = JOB.format(workspace=home / "workspace", server=mlflow_server, corpus=home / "corpus")
    job = jobfile.parse(text, "tiny.yaml")
    return job, pipeline.run(job)


def report_of(outcome: pipeline.Outcome) -> dict[str, Any]:
    assert outcome.report is not None
    found: dict[str, Any] = json.loads((outcome.report / "report.json").read_text())
    return found


def test_every_stage_leaves_a_complete_artifact(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    assert tuple(outcome.stages) == STAGES
    for artifact in outcome.stages.values():
        assert (artifact.path / "done.json").exists()
        assert artifact.meta["provenance"]["job"]["name"] == "tiny"
    left = list(Path(job.workspace).glob("*/.*partial"))
    assert left == [], "no partial artifact is left"


def test_nothing_of_a_finished_job_may_be_collected_and_others_see_who_ran_it(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    root = Path(job.workspace)
    assert find_garbage(root, 0.0).items == []
    [row] = [row for row in list_runs(root) if row["job"] == "tiny"]
    assert row["state"] == "finished" and row["owner"] and row["host"]
    assert row["links"]["mlflow"] == outcome.links["mlflow"]
    assert "/#/experiments/" in str(outcome.links["mlflow"])


def test_report_has_the_keys_of_the_contract(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    report = report_of(finished[1])
    assert set(report) >= REPORT_KEYS
    assert set(report["corpus"]) >= {"counts", "splits", "class_shares", "leaks"}
    for model in report["models"]:
        assert set(model) >= MODEL_KEYS, model["name"]
        for metric in ("accuracy", "uar", "macro_f1", "weighted_f1"):
            assert set(model["metrics"][metric]) >= {"value", "low", "high"}
    roles = {model["role"] for model in report["models"]}
    assert roles == {"teacher", "student", "control"}
    assert report["search"]["trials"] == 2
    assert {"distillation.temperature", "distillation.weight"} <= set(
        json.loads(json.dumps(report["search"]["best"]["params"]))
    )
    page = (finished[1].report / "report.html").read_text()  # type: ignore[operator]
    for loads in ("<script src", "<link", 'src="http', "url(http", "@import"):
        assert loads not in page, "the page opens offline"


def test_forecast_and_truth_stand_side_by_side(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    """Without a probe: stages are forecast once the stages before them have shown a rate."""
    job, outcome = finished
    both = report_of(outcome)["forecast"]
    took = {entry["stage"]: entry["seconds"] for entry in both["stages"]}
    assert {"search", "evaluate"} <= set(took)
    for name, seconds in took.items():
        assert seconds == outcome.stages[name].seconds
    assert both["total"]["seconds"] == pytest.approx(sum(took.values()))
    planned = describe(job)
    assert planned["forecast"] is None  # nothing is left to run
    assert [each["stage"] for each in planned["forecast_and_truth"]["stages"]][: len(took)] == [
        entry["stage"] for entry in both["stages"]
    ]
    spent = Rates(Path(job.workspace)).find(
        training_what(_rate_of(planned, "audio")), device_name()
    )
    assert spent is not None
    assert spent.source == "run"


def _rate_of(planned: dict[str, Any], model: str) -> str:
    return next(row["rate"] for row in planned["models"] if row["model"] == model)


def test_truncated_clip_is_accounted_for(finished: tuple[JobConfig, pipeline.Outcome]) -> None:
    _, outcome = finished

    prepared = outcome.stages["prepare"].summary
    rejected = pq.read_table(outcome.stages["prepare"].path / "rejected.parquet").to_pylist()
    features = outcome.stages["features"]
    quarantined = pq.read_table(features.path / "quarantine.parquet").to_pylist()
    assert prepared["utterances"] + len(rejected) == 72
    assert features.summary["clips"] + len(quarantined) == prepared["utterances"]
    assert len(rejected) + len(quarantined) == 1
    assert all(row["reason"] for row in [*rejected, *quarantined])


def test_tracking_server_shows_the_run_tree(
    finished: tuple[JobConfig, pipeline.Outcome], mlflow_server: str
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    parent_of = {r.info.run_id: r.data.tags.get("mlflow.parentRunId") for r in runs}
    top = [r for r in runs if parent_of[r.info.run_id] is None]
    assert len(top) == 1
    assert all(r.info.status == "FINISHED" for r in runs)
    below = [r for r in runs if parent_of[r.info.run_id] == top[0].info.run_id]
    stages = {r.data.tags["multistill.stage"]: r for r in below}
    assert set(stages) == set(STAGES)
    encoding = stages["features"].data
    rates = {"clips_per_second", "audio_hours_per_hour", "real_time_factor"}
    assert rates | {"clips", "quarantined"} <= encoding.metrics.keys()
    assert encoding.tags["multistill.fingerprint"] == finished[1].stages["features"].fingerprint
    assert {"speech_weights", "text_weights"} <= encoding.tags.keys()
    searching = stages["search"].info.run_id
    trials = [r for r in runs if parent_of[r.info.run_id] == searching]
    trials = [r for r in trials if r.data.tags.get("multistill.kind") == "trial"]
    assert len(trials) == 2
    for trial in trials:
        history = client.get_metric_history(trial.info.run_id, "valid_macro_f1")
        assert [point.step for point in history] == list(range(1, len(history) + 1))
        assert history
    listed = {model["name"]: model["mlflow_run_id"] for model in report_of(finished[1])["models"]}
    known = {r.info.run_id for r in runs}
    assert all(run_id in known for run_id in listed.values()), listed


def test_the_top_level_run_shows_what_people_compare_jobs_by(
    finished: tuple[JobConfig, pipeline.Outcome], mlflow_server: str
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names), names
    top = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert str(top.info.run_name).startswith("tiny seed 3 (")
    assert top.data.params == {
        "recipe": "distillation",
        "seed": "3",
        "corpus": "kemdy20",
        "split": "session, test 0.34, valid 0.2, folds 2",
        "speech_encoder": "log-mel",
        "text_encoder": finished[0].features.text.model,
        "teacher_preset": "small-teacher",
        "seeds": "2",
        "student_presets": "audio: small-audio-student",
    }
    report = report_of(finished[1])
    by_role = {model["role"]: model for model in report["models"]}
    teacher = by_role["teacher"]["seeds"]
    for who, model in {"teacher": teacher, "majority": report["baseline"]}.items():
        for metric in ("macro_f1", "uar"):
            score = model["metrics"][metric]
            assert top.data.metrics[f"test_{who}_{metric}"] == pytest.approx(score["value"])
    best = top.data.tags["best_student"]
    student = next(model for model in report["models"] if model["name"] == best)
    for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high"), ("sd", "_sd")):
        expected = student["seeds"]["metrics"]["macro_f1"][end]
        if expected is not None:
            shown = top.data.metrics[f"test_best_student_macro_f1{suffix}"]
            assert shown == pytest.approx(expected)
    note = top.data.tags["mlflow.note.content"]
    assert "| majority baseline |" in note and "report/report.html" in note
    listed = {item.path for item in client.list_artifacts(top.info.run_id, "report")}
    assert listed == {"report/report.html", "report/report.json"}


def test_the_winner_becomes_the_champion_without_pickles(
    finished: tuple[JobConfig, pipeline.Outcome], mlflow_server: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    from multistill.models.files import load_model

    _, outcome = finished
    client = MlflowClient(mlflow_server)
    champion = client.get_model_version_by_alias("tiny-audio", "champion")
    summary = outcome.stages["search"].summary
    winner = next(f for f in summary["finalists"] if f["name"] == summary["winner"])
    assert float(champion.tags["valid_macro_f1"]) == pytest.approx(winner["mean"])
    local = Path(client.download_artifacts(champion.run_id, "model", str(tmp_path)))
    assert "MLmodel" in {path.name for path in local.iterdir()}
    assert {path.suffix for path in local.rglob("*")} <= {"", ".json", ".py", ".safetensors",
                                                          ".txt", ".yaml"}  # fmt: skip
    assert load_model(local / "artifacts" / "model").spec.modality == "audio"


def test_predict_says_what_evaluate_says(
    finished: tuple[JobConfig, pipeline.Outcome],
    mlflow_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Digit for digit, by the folder; the best student of the job and the champion have names."""
    from multistill.cli.app import main
    from multistill.corpora.manifest import MANIFEST
    from multistill.inference.predictor import Predictor

    job, outcome = finished
    workspace = Workspace(job.workspace)
    scored = pq.read_table(outcome.stages["evaluate"].path / "predictions.parquet").to_pylist()
    manifest = pq.read_table(outcome.stages["prepare"].path / MANIFEST)
    columns = ["utterance_id", "audio_path", "text"]
    for stage, name, exact in (("students", "audio", True), ("teacher", "teacher", False)):
        wanted = {row["utterance_id"]: row for row in scored if row["model"] == name}
        chosen = [row for row in manifest.select(columns).to_pylist()
                  if row["utterance_id"] in wanted]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(chosen), tmp_path / "clips.parquet")
        index = outcome.stages[stage].summary["models"]
        first = next(model for model in index.values() if model["fold"] is None)
        folder = workspace.folder("models", first["fingerprint"])
        arguments = [str(folder), "--audio", str(tmp_path / "clips.parquet"), "--temperature", "1"]
        with pytest.raises(SystemExit) as end:
            main(["predict", *arguments, "--out", str(tmp_path / "out.parquet")])
        assert end.value.code == 0
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert [row["id"] for row in found] == [row["utterance_id"] for row in chosen]
        for row in found:
            expected = wanted[row["id"]]
            shares = np.float32([row[key] for key in row if key.startswith("p_")])
            if exact:
                assert shares.tolist() == expected["distribution"]
            np.testing.assert_allclose(shares, expected["distribution"], atol=1e-5)
            assert row["label"] == expected["label"]
    clip = chosen[0]["audio_path"]
    assert Predictor.load("tiny", workspace=job.workspace).predict(clip).label is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    again = Predictor.load("models:/tiny-audio/1")
    champion = Predictor.load("models:/tiny-audio@champion")
    assert again.predict(clip).distribution == champion.predict(clip).distribution


def test_the_champion_gives_a_recording_one_answer_by_each_door(
    finished: tuple[JobConfig, pipeline.Outcome],
    mlflow_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Class, command, stream, MLflow, ONNX Runtime, and as programs both servers and a browser."""
    import mlflow

    from multistill.audio.reading import read_sound
    from multistill.export.formats import export
    from multistill.export.to_onnx import MODEL
    from multistill.inference import streaming
    from multistill.inference.predictor import Predictor

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(streaming, "SileroVoiceActivity", AlwaysSpeech)
    name, clip = "models:/tiny-audio@champion", tmp_path / "clip.wav"
    samples = read_sound(str(RECORDING)).samples[: 2 * RATE]
    soundfile.write(clip, samples, RATE, subtype="PCM_16")
    predictor = Predictor.load(name, "cpu")
    assert predictor.name == "tiny-audio version 1" and predictor.temperature != 1.0
    with served_twice(name, tmp_path) as (http, mlflow_address):
        doors = Doors(name, predictor, http, mlflow.pyfunc.load_model(name), capsys)
        wanted = doors.by_class(clip)
        assert wanted.label is not None
        for door in (doors.by_command, doors.by_stream, doors.by_mlflow, doors.by_mlflow_content):
            door(clip).assert_same(wanted, 0.0)
        doors.by_http(clip).assert_same(wanted, 0.0)
        served, failed = invoked(mlflow_address, [clip, "missing.wav"])
        doors.pyfunc_answer(served).assert_same(wanted, 1e-6)
        assert "neither a file nor" in doors.pyfunc_answer(failed).error
        if program() is not None:
            shown = shown_by_page(http.address, clip, tmp_path / "browser")
            assert shown == f"{wanted.label}, {round(100 * wanted.distribution[wanted.label])} %"
    export(name, tmp_path / "onnx", "onnx")
    by_onnx_runtime(tmp_path / "onnx" / MODEL, clip).assert_same(wanted, 1e-4)
    if program() is None:
        pytest.skip("every door but the page, for which no Chromium is installed, gave the same")


def test_the_search_is_evaluated_over_seeds_with_out_of_fold_targets(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    report = report_of(finished[1])
    seeds = report["search"]["seeds"]
    assert seeds["count"] == 2
    assert all(len(line["test"]["values"]) == 2 for line in seeds["lines"])
    verdict = next(v for v in report["distillation"] if v["model"] == "audio-search")
    assert verdict["seeds"] == 2
    assert report["targets"] == "out-of-fold"
    ece = {line["name"]: line["ece"] for line in report["teacher_calibration"]}
    assert {"training, seen by the teacher", "training, out of fold"} <= set(ece)


def test_students_and_controls_are_reported_as_means_over_seeds(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    report = report_of(finished[1])
    models = {model["name"]: model for model in report["models"]}
    for name in ("audio", "audio-control"):
        assert models[name]["seeds"]["count"] == 2
        score = models[name]["seeds"]["metrics"]["macro_f1"]
        assert score["value"] == pytest.approx(sum(score["values"]) / 2)
        assert score["sd"] is not None
        assert [entry["seed"] for entry in models[name]["training"]] == [3, 4]
        assert models[name]["not_trained"] is None
    verdict = next(v for v in report["distillation"] if v["model"] == "audio")
    assert verdict["seeds"] == 2
    assert report["split"] == {"by": "session", "seed": 1024}


def test_a_teacher_that_learns_nothing_is_called_not_trained(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    report = report_of(finished[1])
    teacher = next(model for model in report["models"] if model["name"] == "teacher")
    assert teacher["not_trained"].startswith("not trained: ")
    assert report["warnings"][0]["kind"] == "not-trained"
    assert teacher["not_trained"] in report["warnings"][0]["text"]


def test_a_second_run_does_nothing_and_reports_it_within_seconds(
    finished: tuple[JobConfig, pipeline.Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    job, first = finished
    started = time.monotonic()
    again = pipeline.run(job.model_copy(update={"tracking": job.tracking}))
    assert time.monotonic() - started < 5
    assert not again.worked
    assert "nothing to do" in capsys.readouterr().err
    assert {k: a.fingerprint for k, a in again.stages.items()} == {
        k: a.fingerprint for k, a in first.stages.items()
    }


def test_plan_knows_what_is_done_and_what_an_edit_costs(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, _ = finished
    assert {stage.state for stage in pipeline.status(job)} == {"done"}
    text = job.to_yaml()
    edited = jobfile.parse(text, "t", ["students.audio.train.epochs=3"])
    states = {stage.stage: stage.state for stage in pipeline.status(edited)}
    assert states["teacher"] == states["distill"] == "done"
    assert states["students"] == states["evaluate"] == "to do"
    done = {row["model"]: row["state"] for row in describe(edited)["models"]}
    assert done["teacher"] == "done" and done["audio"] == "to do"
    assert describe(job)["trainings"] == 0
    other_split = jobfile.parse(text, "t", ["split.test=0.5"])
    assert pipeline.status(other_split)[1].state == "after prepare"


def test_models_that_were_deleted_are_noticed(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, _ = finished
    model_store = Path(job.workspace) / "models"
    away = model_store.rename(model_store.with_name("away"))
    states = {stage.stage: stage.state for stage in pipeline.status(job)}
    away.rename(model_store)
    assert states["features"] == "done"
    assert states["teacher"] == states["students"] == states["search"] == "to do"


def test_the_winner_is_evaluated_with_its_own_control_and_settings(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    report = report_of(outcome)
    winner = next(model for model in report["models"] if model["name"] == "audio-search")
    assert winner["compare_to"] == "audio-search-control", "of the winner's seeds"
    summary = outcome.stages["search"].summary
    assert summary["control"]["seeds"] == summary["finalists"][0]["seeds"] == [4, 5]
    chosen = summary["models"][summary["finalists"][0]["members"][0]]
    training = read_model_config(Path(job.workspace) / "models" / chosen["fingerprint"])["training"]
    assert training["metric"] == job.search.metric
    assert training["epochs"] == job.students[0].train.epochs


def test_models_are_known_by_their_role_and_their_folders_are_complete(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    teachers = outcome.stages["teacher"].summary["models"]
    assert {m["role"] for m in teachers.values()} == {"teacher"}
    expected = [(seed, fold) for seed in (3, 4) for fold in (-1, 0, 1)]
    folds = [-1 if m["fold"] is None else m["fold"] for m in teachers.values()]
    seeds = [m["seed"] for m in teachers.values()]
    assert sorted(zip(seeds, folds, strict=True)) == expected
    students = outcome.stages["students"].summary["models"]
    assert {name: (m["role"], m["seed"]) for name, m in students.items()} == {
        "audio-seed0": ("student", 3),
        "audio-seed1": ("student", 4),
        "audio-control-seed0": ("control", 3),
        "audio-control-seed1": ("control", 4),
    }
    stored = store_settings(job.features)
    for index in (teachers, students, outcome.stages["search"].summary["models"]):
        for model in index.values():
            config = read_model_config(Path(job.workspace) / "models" / model["fingerprint"])
            assert config["role"] == model["role"] and config["training"]["seed"] == model["seed"]
            assert config["output"] == "logits" and config["max_frames"] is None
            assert config["encoders"]["speech"]["settings"] == stored["speech"]
            assert config["encoders"]["text"]["settings"] == stored["text"]


def test_a_second_recipe_uses_the_same_features(
    finished: tuple[JobConfig, pipeline.Outcome], mlflow_server: str
) -> None:
    from mlflow import MlflowClient

    job, first = finished
    text = job.model_copy(update={"name": "probed", "recipe": "features-only"}).to_yaml()
    values = yaml.safe_load(text)
    for section in ("teacher", "students", "distillation", "seeds"):
        del values[section]
    values |= {"search": False}
    probed = jobfile.parse(yaml.safe_dump(values), "probed.yaml")
    stages = [entry["stage"] for entry in describe(probed)["stages"]]
    assert stages == ["prepare", "features", "probe", "report"]
    outcome = pipeline.run(probed)
    assert outcome.stages["features"].fingerprint == first.stages["features"].fingerprint
    report = report_of(outcome)
    assert report["models"] == [] and report["search"] is None and report["distillation"] == []
    assert [probe["modality"] for probe in report["references"]] == ["multimodal", "text", "audio"]
    assert report["baseline"]["metrics"] == report_of(first)["baseline"]["metrics"]
    page = (outcome.report / "report.html").read_text()  # type: ignore[operator]
    assert "linear probe, audio" in page and 'id="distillation"' not in page
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("probed")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.data.tags.get("multistill.stage") for run in runs} - {None}
    assert names == {"probe", "report"}, "the other stages exist already"


def test_only_a_running_search_can_be_joined(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    from multistill.search.spec import SearchSpec

    job, outcome = finished
    with pytest.raises(UsageError, match="has ended"):
        join(job)
    larger = jobfile.parse(job.to_yaml(), "t", ["search.trials=3"])
    with pytest.raises(UsageError, match="no search of `tiny` is running"):
        join(larger)
    fingerprint = next(
        stage.fingerprint for stage in pipeline.status(larger) if stage.stage == "search"
    )
    folder = Workspace(job.workspace).partial("search", str(fingerprint))
    folder.mkdir()
    asked = SearchSpec.read(outcome.stages["search"].path)
    replace(asked, config=larger.search, study="joined").write(folder)
    assert join(larger) == 3
    shutil.rmtree(folder)


def test_latency_of_a_trial_is_from_the_recording_to_the_logits(
    finished: tuple[JobConfig, pipeline.Outcome], tmp_path: Path
) -> None:
    from multistill.search.cost import cost, time_encoders
    from multistill.search.spec import SearchSpec

    task = SearchSpec.read(finished[1].stages["search"].path).base
    encoders = time_encoders(task, tmp_path)["milliseconds"]
    assert 0 < encoders["audio"] < encoders["multimodal"]
    assert encoders["text"] < encoders["multimodal"]
    whole = cost("latency", task, tmp_path)
    assert encoders["audio"] < whole < encoders["audio"] + 1000, "with the head's own time"


def test_another_split_finds_the_same_features(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, first = finished
    other = jobfile.parse(job.to_yaml(), "t", ["split.test=0.5"])
    outcome = pipeline.run(other, until="features")
    assert outcome.stages["prepare"].fingerprint != first.stages["prepare"].fingerprint
    assert outcome.stages["features"].fingerprint == first.stages["features"].fingerprint


def test_a_stage_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    job = jobfile.parse(f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n", "job.yaml")
    with pytest.raises(UsageError, match="did you mean `teacher`"):
        pipeline.run(job, until="techer")
