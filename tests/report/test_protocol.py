"""The pages of a cross-validation: folds, repetitions, and what a search on the first fold knew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import PREPARE_SUMMARY, EvaluationCase, artifact, make_job, make_search

from multistill.corpora.manifest import MANIFEST
from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.report.build import write_report
from multistill.report.repetitions import repetition_lines
from multistill.report.search import search_on_first_fold
from multistill.workspace import fold_folder

SEARCHED = ("multimodal-search", "multimodal-search-control")


def crossed_folds(
    case: EvaluationCase, home: Path, count: int, repeats: int = 1
) -> list[EvaluatedFold]:
    """Folds by session; the models, of the case's own training part, are the same in all."""
    table = pq.read_table(case.manifest / MANIFEST)
    at = table.column_names.index("split")
    sessions = [int(name[-2:]) for name in table["session"].to_pylist()]
    student, control = SEARCHED
    searched = [
        replace(case.candidate("multimodal"), name=student, compare_to=control),
        replace(case.candidate("multimodal-control", role="control"), name=control),
    ]
    folds = []
    for number in range(count * repeats):
        repetition, place = divmod(number, count)
        turn = [(n // count if repetition else n) % count for n in sessions]
        later = (place + 1) % count
        part = ["test" if n == place else "valid" if n == later else "train" for n in turn]
        folder = fold_folder(home / "manifest", number)
        folder.mkdir(parents=True)
        pq.write_table(table.set_column(at, "split", pa.array(part)), folder / MANIFEST)
        candidates = [*case.candidates, *searched]
        # Models that differ by repetition, so that a mean over them can be told.
        if repetition:
            weak = case.folders["multimodal-control"]
            candidates = [
                replace(each, folders=[weak]) if each.name == "multimodal" else each
                for each in candidates
            ]
        folds.append(EvaluatedFold(folder, candidates, f"f{number}", repetition=repetition))
    return folds


def crossed_report(
    case: EvaluationCase, home: Path, count: int, nested: bool = False, repeats: int = 1
) -> tuple[dict[str, Any], str]:
    """report.json and the page of an evaluation by folds; written once per kind."""
    out = home / "evaluation"
    out.mkdir(parents=True)
    job = make_job(
        protocol={"kind": "k-fold", "by": "session", "folds": count, "repeats": repeats},
        search={"nested": nested},
        evaluation={"resamples": 200, "latency_clips": 0},
    )
    folds = crossed_folds(case, home, count, repeats)
    evaluate(folds, case.store, job.evaluation, out, seed=5)
    summary: dict[str, Any] = make_search(fold_folder(home / "search", 0))
    number = count * repeats
    summary = {"folds": [summary] * number} if nested else {**summary, "folds": [{}] * number}
    report = write_report(
        home,
        job=job,
        artifacts={
            "manifest": artifact("prepare", case.manifest, PREPARE_SUMMARY),
            "features": artifact("features", case.store, {"clips": 384, "quarantined": 1}),
            "evaluation": artifact("evaluate", out),
            "search": artifact("search", home / "search", summary),
        },
    )
    return report, (home / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def once(
    evaluation_case: EvaluationCase, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    return crossed_report(evaluation_case, tmp_path_factory.mktemp("once"), 4)


def test_a_search_on_the_first_fold_says_what_its_settings_know(
    once: tuple[dict[str, Any], str],
) -> None:
    report, page = once
    [text] = [each["text"] for each in report["warnings"] if each["kind"] == "search-first-fold"]
    assert "SEARCH ON THE FIRST FOLD" in page
    assert (
        "multimodal-search and its control were chosen on the first fold"
        in (report["protocol"]["sentence"])
    )
    first = report["protocol"]["folds"][0]
    searched = next(each for each in report["models"] if each["name"] == SEARCHED[0])
    assert f"{first['train']} training clips of fold f0" in text
    assert f"its {first['valid']} validation clips" in text
    assert f"Only the {first['clips']} test clips of fold f0 played no part" in text
    assert f"is {searched['folds']['uar']['values'][0]:.3f})" in text
    assert sum(fold["clips"] for fold in report["protocol"]["folds"]) == report["test"]["decided"]
    assert all(model["repetitions"] is None for model in report["models"])
    assert "Over the repetitions" not in page and repetition_lines(report) == []


def test_a_nested_search_and_repeated_folds(
    evaluation_case: EvaluationCase, tmp_path: Path, once: tuple[dict[str, Any], str]
) -> None:
    """Folds drawn twice: every clip counts once, with the mean of its two predictions' counts."""
    report, page = crossed_report(evaluation_case, tmp_path, 4, nested=True, repeats=2)
    assert "Every fold was searched on its own training and validation clips" in page
    assert "SEARCH ON THE FIRST FOLD" not in page and len(report["search"]["chosen"]) == 8
    assert report["protocol"]["short"] == "2 x 4-fold by session"
    assert "chosen on the first fold" not in report["protocol"]["sentence"]
    clips = report["test"]["decided"]
    assert sum(report["class_counts"]["test"].values()) == clips
    assert sum(fold["clips"] for fold in report["protocol"]["folds"]) == 2 * clips
    models = {model["name"]: model for model in report["models"]}
    strong, weak, mixed = (models[n] for n in (SEARCHED[0], "multimodal-control", "multimodal"))
    for metric in ("accuracy", "uar", "macro_f1", "weighted_f1"):
        found = mixed["repetitions"][metric]
        expected = [each["metrics"][metric]["value"] for each in (strong, weak)]
        assert found["values"] == pytest.approx(expected), "the weak model was in the second"
        assert found["mean"] == pytest.approx(np.mean(expected))
        assert found["sd"] == pytest.approx(np.std(expected, ddof=1))
        assert strong["repetitions"][metric]["sd"] == pytest.approx(0, abs=1e-12)
        assert len(mixed["folds"][metric]["values"]) == 8
        if metric in ("accuracy", "uar"):
            assert mixed["metrics"][metric]["value"] == pytest.approx(np.mean(expected))
        # Equal models in all repetitions: their number narrows no interval.
        for end, bound in strong["metrics"][metric].items():
            single = next(each for each in once[0]["models"] if each["name"] == SEARCHED[0])
            assert bound == pytest.approx(single["metrics"][metric][end], abs=1e-12)
    counts = [row["count"] for row in mixed["classes"]]
    assert counts == [row["count"] for row in strong["classes"]] and sum(counts) == clips
    predictions = pq.read_table(tmp_path / "evaluation" / "predictions.parquet")
    assert len(predictions) == report["test"]["clips"] * len(set(predictions["model"].to_pylist()))
    lines = repetition_lines(report)
    assert len(lines) == len(models) and "multimodal, 2 repetitions of the folds" in "\n".join(
        lines
    )
    assert "Over the repetitions" in page and "2 x 4-fold by session" in page


def test_the_warning_of_a_search_names_the_score_of_its_task() -> None:
    """A job of dimensions alone has no UAR."""
    job = make_job(tasks=["valence"], protocol="k-fold", search={"metric": "ccc"})
    fold = {"name": "f0", "train": 9, "valid": 3, "clips": 4}
    model = {"name": "multimodal-search", "folds": {"ccc": {"values": [0.25, 0.5]}}}
    metrics = {"folds": [fold, fold], "classes": [], "models": [model]}
    [(_, _, text)] = search_on_first_fold(metrics, job)
    assert "there the CCC of multimodal-search is 0.250" in text
