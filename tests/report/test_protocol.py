"""The pages of a cross-validation: folds, repetitions, and what a search on the first fold knew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import PREPARE_SUMMARY, EvaluationCase, artifact, make_job, make_search

from multistill.corpora.manifest import MANIFEST
from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.report.build import write_report
from multistill.workspace import fold_folder, read_json

SEARCHED = ("multimodal-search", "multimodal-search-control")


def crossed_folds(case: EvaluationCase, home: Path, count: int) -> list[EvaluatedFold]:
    """Folds by session; the models, of the case's own training part, are the same in all."""
    table = pq.read_table(case.manifest / MANIFEST)
    sessions = [int(name[-2:]) for name in table["session"].to_pylist()]
    folds = []
    for number in range(count):
        part = [
            "test" if n % count == number else "valid" if n % count == (number + 1) % count else ""
            for n in sessions
        ]
        at = table.column_names.index("split")
        folder = fold_folder(home / "manifest", number)
        folder.mkdir(parents=True)
        parts = pa.array([name or "train" for name in part])
        pq.write_table(table.set_column(at, "split", parts), folder / MANIFEST)
        student, control = SEARCHED
        searched = [
            replace(case.candidate("multimodal"), name=student, compare_to=control),
            replace(case.candidate("multimodal-control", role="control"), name=control),
        ]
        folds.append(EvaluatedFold(folder, [*case.candidates, *searched], f"f{number}"))
    return folds


def crossed_report(
    case: EvaluationCase, home: Path, count: int, nested: bool
) -> tuple[dict[str, Any], str]:
    out = home / "evaluation"
    out.mkdir()
    job = make_job(
        protocol={"kind": "k-fold", "by": "session", "folds": count}, search={"nested": nested}
    )
    evaluate(crossed_folds(case, home, count), case.store, job.evaluation, out, seed=5)
    summary: dict[str, Any] = make_search(fold_folder(home / "search", 0))
    summary = {"folds": [summary] * count} if nested else {**summary, "folds": [{}] * count}
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
    assert read_json(home / "report.json")["protocol"] == report["protocol"]
    return report, (home / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("nested", [False, True])
def test_a_search_on_the_first_fold_says_what_its_settings_know(
    evaluation_case: EvaluationCase, tmp_path: Path, nested: bool
) -> None:
    report, page = crossed_report(evaluation_case, tmp_path, 4, nested)
    found = [each["text"] for each in report["warnings"] if each["kind"] == "search-first-fold"]
    assert len(found) == (not nested)
    assert ("SEARCH ON THE FIRST FOLD" in page) == (not nested)
    if nested:
        assert "Every fold was searched on its own training and validation clips" in page
        assert len(report["search"]["chosen"]) == 4
        return
    first = report["protocol"]["folds"][0]
    searched = next(each for each in report["models"] if each["name"] == SEARCHED[0])
    [text] = found
    assert f"{first['train']} training clips of fold f0" in text
    assert f"its {first['valid']} validation clips" in text
    assert f"Only the {first['clips']} test clips of fold f0 played no part" in text
    assert f"is {searched['folds']['uar']['values'][0]:.3f})" in text
    assert sum(fold["clips"] for fold in report["protocol"]["folds"]) == report["test"]["decided"]
