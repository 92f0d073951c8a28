"""The cross-corpus matrix: every cell is the figure of its models on its clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import EvaluationCase, artifact, make_job
from sklearn.metrics import f1_score, recall_score

from multistill.evaluation.candidates import Candidate
from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.paired import read_answers, why_not_paired
from multistill.report import terminal
from multistill.report.build import write_report
from multistill.report.errors import listed
from multistill.workspace import read_json

CORPORA = ("even", "odd")


def fold_of(case: EvaluationCase, folder: Path, trained_on: str) -> Path:
    """The manifest of the case, whose sessions are of two corpora by their parity."""
    table = pq.read_table(case.manifest / "manifest.parquet")
    corpora = [CORPORA[int(name[-2:]) % 2] for name in table["session"].to_pylist()]
    parts = [
        part if corpus == trained_on else "test"
        for part, corpus in zip(table["split"].to_pylist(), corpora, strict=True)
    ]
    for name, values in (("corpus", corpora), ("split", parts)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    folder.mkdir()
    pq.write_table(table, folder / "manifest.parquet")
    return folder


@pytest.fixture(scope="module")
def crossed(
    evaluation_case: EvaluationCase, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Folder of the evaluation and metrics.json; the folds' models differ."""
    case, home = evaluation_case, tmp_path_factory.mktemp("crossed")
    models = {"even": ("teacher", "audio"), "odd": ("teacher-2", "text")}
    folds = [
        EvaluatedFold(
            fold_of(case, home / name, name),
            [
                Candidate("teacher", "teacher", [case.folders[models[name][0]]]),
                Candidate("small", "student", [case.folders[models[name][1]]]),
                Candidate(
                    "both",
                    "student",
                    [case.folders[models[name][1]]],
                    repeats=[[case.folders[models[name][0]]]],
                ),
            ],
            name,
            trained_on=name,
        )
        for name in CORPORA
    ]
    out = home / "evaluation"
    out.mkdir()
    config = make_job().evaluation.model_copy(update={"latency_clips": 0})
    evaluate(folds, case.store, config, out, seed=5)
    return out, read_json(out / "metrics.json")


def test_cells_are_the_figures_of_their_clips(crossed: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = crossed
    matrix = metrics["cross_corpus"]
    assert matrix["corpora"] == list(CORPORA)
    names = [
        "majority baseline",
        *(m["name"] for m in metrics["references"]),
        "teacher",
        "small",
        "both",
    ]
    assert [model["name"] for model in matrix["models"]] == names
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    even = pq.read_table(out.parent / "even" / "manifest.parquet").to_pandas()
    tested = even[even["split"] == "test"]["utterance_id"]
    size = int(tested.isin(table["utterance_id"]).sum())  # rows of the first fold
    *single, both = matrix["models"]
    for model in single:
        rows = table[table["model"] == model["name"]].reset_index()
        parity = rows["session"].str[-2:].astype(int) % 2
        first = np.arange(len(rows)) < size
        for row, trained in enumerate(CORPORA):
            for column in range(2):
                clips = rows[(parity == column) & (first == (trained == "even"))]
                clips = clips[clips["truth"].notna()]
                cell = model["rows"][row][column]
                assert cell["clips"] == len(clips)
                truth, label = clips["truth"], clips["label"]
                uar = recall_score(
                    truth, label, labels=truth.unique(), average="macro", zero_division=0
                )
                f1 = f1_score(truth, label, labels=truth.unique(), average="macro", zero_division=0)
                assert cell["uar"]["value"] == pytest.approx(uar)
                assert cell["macro_f1"]["value"] == pytest.approx(f1)
    teacher, small = single[-2:]
    for row, column in np.ndindex(2, 2):
        cell, *seeds = (model["rows"][row][column]["uar"] for model in (both, small, teacher))
        assert cell["value"] == pytest.approx(np.mean([seed["value"] for seed in seeds]))
        assert min(s["low"] for s in seeds) <= cell["low"] < cell["value"] < cell["high"]
    own, other = small["rows"][0]
    assert other["clips"] > 3 * own["clips"]
    assert other["uar"]["high"] > other["uar"]["value"] > other["uar"]["low"]


def test_page_shows_a_matrix_per_model_and_lists_clips_once(
    evaluation_case: EvaluationCase, crossed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, metrics = crossed
    job = make_job(
        corpora=[{"kind": "demo", "name": name} for name in CORPORA], protocol="cross-corpus"
    )
    report = write_report(
        tmp_path,
        job=job,
        artifacts={
            "manifest": artifact("prepare", evaluation_case.manifest, {"leaks": {}, "rejected": 0}),
            "features": artifact("features", evaluation_case.store),
            "evaluation": artifact("evaluate", out),
        },
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<table class="heat">') == len(metrics["cross_corpus"]["models"])
    assert report["protocol"]["short"] == "cross-corpus (2 corpora)"
    assert terminal.table(report).row_count == len(metrics["cross_corpus"]["models"])
    # A clip is tested by the models of several corpora: nothing that takes clips as independent.
    assert all(model["speakers"] is None for model in report["models"])
    counts = pq.read_table(evaluation_case.manifest / "manifest.parquet").to_pandas()["label"]
    assert sum(report["class_counts"]["test"].values()) <= counts.notna().sum()
    missed = [clip["id"] for clip in report["errors"]["missed"]["clips"]]
    assert len(missed) == len(set(missed)) and listed(report["errors"])


def test_a_cross_corpus_job_has_no_paired_differences(
    evaluation_case: EvaluationCase, crossed: tuple[Path, dict[str, Any]]
) -> None:
    answers = read_answers(crossed[0] / "predictions.parquet")
    plain = read_answers(evaluation_case.out / "predictions.parquet")
    assert "several corpora" in str(why_not_paired(plain, answers))
    assert evaluation_case.metrics["cross_corpus"] is None
