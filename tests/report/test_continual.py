"""Corpora learnt one after another on page and terminal, beside what is published."""

from __future__ import annotations

import re
from typing import Any

from helpers.evaluation_case import EvaluationCase, make_job
from rich.console import Console

from multistill.config import JobConfig
from multistill.pipeline import jobfile
from multistill.report.continual import FAULTS, METHODS, PUBLISHED, describe_continual, table
from multistill.report.html import render

CORPORA = ("KEMDy19", "KEMDy20")
JOB = """
name: x
recipe: continual
corpora: [{kind: kemdy19, path: /a, name: KEMDy19}, {kind: %s, path: /b, name: KEMDy20}]
"""


def job(second: str = "kemdy20") -> JobConfig:
    return jobfile.parse(JOB % second, "x.yaml")


def cell(value: float) -> dict[str, Any]:
    metric = {"value": value, "low": value - 0.01, "high": value + 0.01}
    return dict.fromkeys(("uar", "macro_f1", "weighted_f1"), metric)


def results() -> dict[str, Any]:
    """Of `finetune`, which shares a classifier, and `ewc`, which has one per corpus."""
    courses = []
    for order in (CORPORA, CORPORA[::-1]):
        for number, method in enumerate(("finetune", "ewc 5000")):
            matrix = [{name: cell(0.5 + 0.01 * number) for name in CORPORA} for _ in range(2)]
            scores = {
                "matrix": matrix,
                "average": cell(0.6),
                "backward": cell(-0.123),
                "forgetting": cell(0.123),
            }
            several = {"task_accuracy": 0.75 if number else None}
            courses.append(
                {
                    "method": method,
                    "order": list(order),
                    "head": ("one", "one per corpus")[number],
                    "parameters": {"trained": 790, "total": 3_800},
                    "given": scores,
                    "predicted": {**scores, **several},
                    "validation": 0.4,
                    "chosen": bool(number),
                }
            )
    corpora = {
        name: {"clips": 9, "majority": {"label": "neutral", "metrics": cell(0.25)}}
        for name in CORPORA
    }
    return {"corpora": corpora, "confidence": 0.95, "metric": "uar", "seeds": 1, "folds": 5} | {
        "courses": courses
    }


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_page_and_terminal_show_every_method_and_what_is_published(
    evaluation_case: EvaluationCase,
) -> None:
    report, page = evaluation_case.default_report
    assert report["continual"] is None
    assert 'id="continual"' not in page
    report = {**report, "search": None, "continual": describe_continual(results(), job())}
    page = render(report, trials=[], histories={}, quality=None, job=make_job())
    section = re.search(r'<section id="continual">.*?</section>', page, re.DOTALL)
    assert section is not None
    shown = words(section[0])
    for part in (
        "KEMDy19, then KEMDy20",
        "KEMDy20, then KEMDy19",
        "one per corpus",
        "75.0 %",
        "\u22120.123",
        "790",
        "0.525",
        FAULTS[3],
        "ewc 5000 chosen on validation one per corpus",
        "the one chosen on validation has the best UAR there",
    ):
        assert part in shown
    assert "0.704" not in shown, "published rows are of the methods that ran"
    assert "did distillation help" not in page.lower()
    console = Console(width=120, record=True)
    console.print(table(report["continual"]))
    printed = console.export_text()
    for part in (
        "majority of the corpus",
        "KEMDy20 then KEMDy19",
        "-0.123",
        "0.525 / 0.500",
        "chosen on",
    ):
        assert part in printed


def test_published_figures_stand_beside_both_of_their_corpora_only() -> None:
    published = describe_continual(results(), job())["published"]
    assert [(row["corpus"], row["method"]) for row in published["rows"]] == [
        (name, method) for name in CORPORA for method in ("finetune", "ewc 5000")
    ]
    for row in published["rows"]:
        kind = row["corpus"].lower()
        for metric, found in row["published"].items():
            assert found == PUBLISHED[metric][kind][METHODS[row["method"]]]
            assert row["own"][metric]["value"] in (0.5, 0.51)
    assert describe_continual(results(), job("table"))["published"] is None


def test_figures_of_other_classes_do_not_stand_beside_published_ones(
    evaluation_case: EvaluationCase,
) -> None:
    labels = "labels: {classes: [neutral, joy, anger, sad], leave_out: [surprise, disgust, fear]}\n"
    found = describe_continual(results(), jobfile.parse(JOB % "kemdy20" + labels, "x.yaml"))
    assert found["published"] is None
    report, _ = evaluation_case.default_report
    report = {**report, "search": None, "continual": found}
    page = render(report, trials=[], histories={}, quality=None, job=make_job())
    assert found["unlike_published"] in page
    assert "seven classes, and this job tells neutral, joy, anger, sad apart" in page
    console = Console(width=120, record=True)
    console.print(table(found))
    assert "seven classes" in console.export_text()
    renamed = "labels: {classes: [sad, joy, fear, anger, neutral, surprise, disgust]}\n"
    same = describe_continual(results(), jobfile.parse(JOB % "kemdy20" + renamed, "x.yaml"))
    assert same["published"] is not None
    assert same["unlike_published"] is None
