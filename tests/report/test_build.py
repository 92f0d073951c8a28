"""report.json: its keys, its warnings, and a job without a search."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.evaluation_case import PREPARE_SUMMARY, EvaluationCase, artifact, make_job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from multistill.config import CLASSES
from multistill.metrics.intervals import Clusters
from multistill.report.build import warnings, write_report
from multistill.report.terminal import table
from multistill.workspace import write_json

INDEX = np.zeros(0, int)
STABLE_KEYS = {"job", "created", "versions", "corpus", "baseline", "models", "search", "stages"}


def test_report_has_the_documented_keys(evaluation_case: EvaluationCase) -> None:
    report, _ = evaluation_case.default_report
    assert set(report) >= STABLE_KEYS
    assert {"counts", "splits", "class_shares", "leaks"} <= set(report["corpus"])
    assert {"trials", "best", "study"} <= set(report["search"])
    assert {"name", "fingerprint", "seconds", "cached"} <= set(report["stages"][0])
    for model in report["models"]:
        assert {"name", "role", "modality", "params_trainable", "params_end_to_end"} <= set(model)
        assert {"metrics", "mlflow_run_id"} <= set(model)
        for metric in ("accuracy", "uar", "macro_f1", "weighted_f1"):
            assert set(model["metrics"][metric]) == {"value", "low", "high"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_warnings_follow_the_counts_of_the_corpus(evaluation_case: EvaluationCase) -> None:
    def kinds(sessions: int, synthetic: bool, **leaks: int) -> set[str]:
        corpus = {
            "leaks": {"sessions": sessions, "speakers": 0, **leaks},
            "synthetic": synthetic,
            "splits": {"test": {"utterances": 96}},
        }
        return {
            warning["kind"] for warning in warnings(corpus, evaluation_case.metrics, make_job(), {})
        }

    always = {"untrained", "few-groups", "small-validation", "left-out"}
    assert kinds(0, False) == always
    assert kinds(2, False) == always | {"leak"}
    assert kinds(0, True) == always | {"synthetic"}
    assert kinds(0, False, recordings=1) == always | {"recordings"}
    assert kinds(0, False, transcript_rows=96) == always | {"transcripts"}


@pytest.mark.parametrize(
    ("modality", "expected"),
    [
        ("audio", ["speech-stand-in"]),
        ("text", ["text-stand-in", "SHARED TRANSCRIPTS"]),
        ("multimodal", ["speech-stand-in", "text-stand-in", "SHARED TRANSCRIPTS"]),
    ],
)
def test_warnings_of_words_and_encoders_are_of_those_that_models_read(
    evaluation_case: EvaluationCase, modality: str, expected: list[str]
) -> None:
    metrics = evaluation_case.metrics | {"references": [], "models": []}
    metrics["references"] = [{"modality": modality}]
    metrics["encoders"] = {
        name: {"name": f"{name}-stand-in", "trained": False} for name in ("speech", "text")
    }
    corpus = {
        "leaks": {"transcript_rows": 9},
        "synthetic": False,
        "splits": {"test": {"utterances": 96}},
    }
    said = " ".join(f"{w['title']} {w['text']}" for w in warnings(corpus, metrics, make_job(), {}))
    every = ["speech-stand-in", "text-stand-in", "SHARED TRANSCRIPTS"]
    assert [name for name in every if name in said] == expected


@pytest.mark.parametrize(
    ("shared", "crossed", "sliced", "expected"),
    [
        (9, False, True, "set: 9. Models that read text may have seen it; results without these"),
        (9, False, False, "set: 9. Models that read text may have seen it; no results without"),
        (96, False, False, "set: all. Models"),
        (96, True, True, "set: 96, counted for each corpus that trains. Models"),
        (192, True, True, "set: all. Models"),
    ],
)
def test_shared_transcripts_are_counted_and_their_slices_named_where_there_are_some(
    evaluation_case: EvaluationCase, shared: int, crossed: bool, sliced: bool, expected: str
) -> None:
    corpus = {
        "leaks": {"transcript_rows": shared},
        "synthetic": False,
        "splits": {"test": {"utterances": 96}},
    }
    slices = [{"by": "transcript", "name": "also in training"}] if sliced else []
    metrics = evaluation_case.metrics | {"baseline": {"slices": slices}}
    job = make_job()
    if crossed:
        protocol = job.protocol.model_copy(update={"kind": "cross-corpus"})
        job = job.model_copy(update={"protocol": protocol, "corpora": [*job.corpora] * 2})
    assert len(job.corpora) == 1 + crossed
    [text] = [w["text"] for w in warnings(corpus, metrics, job, {}) if w["kind"] == "transcripts"]
    assert expected in text


@pytest.mark.parametrize("model", range(3))
def test_a_model_that_learnt_nothing_is_the_first_warning(
    evaluation_case: EvaluationCase, model: int
) -> None:
    metrics = copy.deepcopy(evaluation_case.metrics)
    metrics["models"][model]["not_trained"] = "not trained: raise the rate"
    corpus = evaluation_case.default_report[0]["corpus"]
    first = warnings(corpus, metrics, make_job(), {})[0]
    assert first["kind"] == "not-trained"
    assert metrics["models"][model]["name"] in first["text"] and "raise the rate" in first["text"]


@given(part=st.sampled_from(["train", "valid", "test"]), name=st.sampled_from(CLASSES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_class_that_one_part_lacks_is_a_warning(
    evaluation_case: EvaluationCase, part: str, name: str
) -> None:
    metrics = copy.deepcopy(evaluation_case.metrics)
    metrics["class_counts"] = {
        each: dict.fromkeys(CLASSES, 5) | ({name: 0} if each == part else {})
        for each in ("train", "valid", "test")
    }
    corpus = evaluation_case.default_report[0]["corpus"]
    found = [
        w for w in warnings(corpus, metrics, make_job(), {}) if w["kind"].startswith("classes-")
    ]
    kinds = {"train": "trained", "valid": "validated", "test": "tested"}
    assert [w["kind"] for w in found] == [f"classes-not-{kinds[part]}"]
    assert name in found[0]["text"].lower()


@pytest.mark.parametrize("count", [1, 9, 10])
def test_a_class_with_fewer_than_ten_test_clips_is_a_warning(
    evaluation_case: EvaluationCase, count: int
) -> None:
    metrics = copy.deepcopy(evaluation_case.metrics)
    metrics["test"]["rare_classes"] = []
    metrics["class_counts"]["test"] = dict.fromkeys(CLASSES, 40) | {"sad": count}
    corpus = evaluation_case.default_report[0]["corpus"]
    found = [w for w in warnings(corpus, metrics, make_job(), {}) if w["kind"] == "few-clips"]
    assert [f"sad ({count})" in warning["text"] for warning in found] == [True] * (count < 10)


@pytest.mark.parametrize(
    ("speech", "corpora", "named"),
    [
        ("a/wav2vec2-large-emotion-detection-german", [{"kind": "emodb", "path": "/d"}], "EMO-DB"),
        (
            "superb/hubert-base-superb-er",
            [{"kind": "table", "path": "/d/iemocap/t.csv"}],
            "IEMOCAP",
        ),
        ("superb/hubert-base-superb-er", [{"kind": "emodb", "path": "/d"}], None),
        ("log-mel", [{"kind": "emodb", "path": "/d"}], None),
    ],
)
def test_an_encoder_that_was_trained_on_the_corpus_is_named_in_head_and_terminal(
    evaluation_case: EvaluationCase, speech: str, corpora: list[dict[str, str]], named: str | None
) -> None:
    job = make_job(corpora=corpora, features={"speech": {"model": speech}})
    report, page = evaluation_case.report(job)
    found = [w for w in report["warnings"] if w["kind"] == "encoder-data"]
    assert len(found) == (named is not None)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(report))
    words = " ".join(captured.get().split())
    assert ("ENCODER KNOWS THE CORPUS" in words) == ("ENCODER KNOWS" in page) == bool(named)
    for warning in found:
        assert speech in warning["text"] and str(named) in warning["text"]
        assert speech.split("/")[1] in page
        assert "it may know the clips that this job tests on" in words


@pytest.mark.parametrize(
    ("part", "changes", "kind", "said"),
    [
        ("test", {"resampled": Clusters("session", INDEX, 30).describe()}, None, ""),
        ("test", {"resampled": Clusters("speaker", INDEX, 7).describe()}, "few-groups", "7 sp"),
        (
            "test",
            {"speakers": 5},
            "few-speakers",
            "has 5 speakers in 30 sessions. The intervals are",
        ),
        *(
            ("test", {"resampled": Clusters(unit, INDEX, 25, only).describe()}, "one-group", text)
            for unit, only, text in (
                ("utterance", "speaker", "of one speaker, so intervals are over its 25 clips"),
                ("session", "speaker", "of one speaker, so intervals are over its 25 sessions"),
                ("speaker", "session", "of one session, so intervals are over its 25 speakers"),
                ("session", "group", "of one group, so intervals are over its 25 sessions"),
            )
        ),
        (
            "test",
            {"rare_classes": [{"class": "fear", "clips": 2, "groups": 1}]},
            "rare-classes",
            "fear (2)",
        ),
        ("validation", {"clips": 30, "groups": 1, "unit": "speaker"}, "small-validation", "30 cli"),
        ("validation", {"clips": 900, "groups": 9, "unit": "speaker"}, None, ""),
    ],
)
def test_warnings_follow_the_counts_of_test_and_validation(
    evaluation_case: EvaluationCase,
    part: str,
    changes: dict[str, Any],
    kind: str | None,
    said: str,
) -> None:
    enough = {
        "test": {
            "resampled": Clusters("session", INDEX, 30).describe(),
            "rare_classes": [],
            "speakers": 30,
        },
        "validation": {"clips": 900, "groups": 9, "unit": "session"},
    }
    metrics = dict(evaluation_case.metrics)
    for name, values in enough.items():
        metrics[name] = {**metrics[name], **values} | (changes if name == part else {})
    corpus = {"leaks": {"sessions": 0, "speakers": 0}, "synthetic": False}
    found = {w["kind"]: w["text"] for w in warnings(corpus, metrics, make_job(), {})}
    assert set(found) - {"untrained", "left-out"} == ({kind} if kind else set())
    assert said in found.get(kind or "", "")


def test_a_job_without_a_search_has_no_search_section(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    report = write_report(
        tmp_path,
        job=make_job(search={"enabled": False}),
        artifacts={
            "manifest": artifact("prepare", evaluation_case.manifest, PREPARE_SUMMARY),
            "features": artifact("features", evaluation_case.store),
            "soft_targets": artifact("distill", evaluation_case.distill),
            "evaluation": artifact("evaluate", evaluation_case.out),
        },
    )
    assert report["search"] is None
    assert 'id="search"' not in (tmp_path / "report.html").read_text()


def without_intervals(value: Any) -> Any:
    """A copy of metrics.json in which no mean over classes has an interval."""
    if isinstance(value, list):
        return [without_intervals(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    copied = {key: without_intervals(entry) for key, entry in value.items()}
    for name in ("uar", "macro_f1"):
        if isinstance(copied.get(name), dict) and "low" in copied[name]:
            copied[name] |= {"low": None, "high": None}
    return copied


def test_the_report_shows_metrics_that_have_no_interval(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    """As where a class is too rare in the test set."""
    out, evaluation = tmp_path / "report", tmp_path / "evaluation"
    out.mkdir()
    shutil.copytree(evaluation_case.out, evaluation)
    metrics = without_intervals(evaluation_case.metrics)
    write_json(evaluation / "metrics.json", metrics)
    report = write_report(
        out,
        job=make_job(search={"enabled": False}),
        artifacts={
            "manifest": artifact("prepare", evaluation_case.manifest, PREPARE_SUMMARY),
            "features": artifact("features", evaluation_case.store),
            "soft_targets": artifact("distill", evaluation_case.distill),
            "evaluation": artifact("evaluate", evaluation),
        },
    )
    difference = report["distillation"][0]["differences"]["macro_f1"]["value"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"<b>{difference:+.3f}</b>".replace("-", "\u2212") in page
    assert table(report).row_count > 3
