"""The result table of the terminal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from helpers.evaluation_case import EvaluationCase, make_job
from rich.console import Console

from multistill.metrics.intervals import choose_clusters
from multistill.report.build import warnings
from multistill.report.html import render
from multistill.report.terminal import count, score, table


def test_table_shows_baseline_warnings_and_intervals(evaluation_case: EvaluationCase) -> None:
    report, _ = evaluation_case.default_report
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(report))
    text = captured.get()
    for expected in (
        "SYNTHETIC CORPUS",
        "always ",
        "untrained stand-in",
        "linear probe",
        "weighted",
    ):
        assert expected in text
    uar = report["models"][0]["metrics"]["uar"]
    assert f"{uar['value']:.3f}" in text
    assert f"{uar['low']:.2f}–{uar['high']:.2f}" in text
    assert "…" not in text, "nothing is truncated at 80 columns"
    unwrapped = " ".join(text.split())
    assert "distillation helped" in unwrapped
    assert "best of 40 trials has temperature" in unwrapped


def test_scores_and_parameter_counts_are_formatted_for_reading() -> None:
    assert score({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert score({"value": None, "low": None, "high": None}) == "-"
    assert [count(n) for n in (None, 907, 41_234, 15_755_783)] == ["-", "907", "41.2 k", "15.8 M"]


def printed(report: Mapping[str, Any]) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(report))
    text: str = captured.get()
    assert "…" not in text, "nothing is truncated at 80 columns"
    return text


def test_the_first_lines_are_the_floor(evaluation_case: EvaluationCase) -> None:
    report = evaluation_case.default_report[0]
    words = report["floor"]["sentence"].split()
    assert printed(report).split()[: len(words)] == words


def test_seeds_are_shown_as_mean_and_deviation(evaluation_case: EvaluationCase) -> None:
    report = copy.deepcopy(evaluation_case.default_report[0])
    scores = {"value": 0.4321, "low": 0.4, "high": 0.5, "sd": 0.0123, "values": [0.42, 0.44]}
    metrics = dict.fromkeys(("uar", "macro_f1", "weighted_f1", "accuracy"), scores)
    report["models"][0]["seeds"] = {"count": 2, "metrics": metrics}
    text = printed(report)
    assert "0.432" in text and "SD 0.012" in text
    assert "2 seeds" in text


def test_what_was_not_trained_or_never_seen_is_said_with_names(
    evaluation_case: EvaluationCase,
) -> None:
    report = copy.deepcopy(evaluation_case.default_report[0])
    metrics = copy.deepcopy(evaluation_case.metrics)
    model = metrics["models"][0]
    model["not_trained"] = report["models"][0]["not_trained"] = "not trained: raise the rate"
    metrics["class_counts"]["train"] |= {"sad": 0}
    metrics["class_counts"]["test"] |= {"sad": 4, "angry": 0}
    report["warnings"] = warnings(report["corpus"], metrics, make_job(), {})
    words = " ".join(printed(report).split())
    assert "NOT TRAINED" in words and "raise the rate" in words
    assert "CLASSES NEVER TRAINED: Sad: " in words
    assert "CLASSES NEVER TESTED: Angry: " in words


def test_one_test_group_is_said_with_what_it_is(evaluation_case: EvaluationCase) -> None:
    report = copy.deepcopy(evaluation_case.default_report[0])
    assert "ONE TEST GROUP" not in printed(report)
    metrics = copy.deepcopy(evaluation_case.metrics)
    clusters = choose_clusters(["p"] * 4, ["a", "a", "b", "c"], ["p"] * 4, "speaker")
    metrics["test"]["resampled"] |= clusters.describe()
    report["test"] = metrics["test"]
    report["warnings"] = warnings(report["corpus"], metrics, make_job(), {})
    words = " ".join(printed(report).split())
    assert "ONE TEST GROUP: The test clips are of one speaker, so intervals are over its 3" in words
    assert "intervals over 3 sessions" in words
    assert "FEW TEST" not in words
    page = render(report, trials=[], histories={}, quality=None, job=make_job())
    assert "ONE TEST GROUP" in page and "of one speaker" in page


def test_parameters_that_change_no_output_are_told(evaluation_case: EvaluationCase) -> None:
    report = copy.deepcopy(evaluation_case.default_report[0])
    assert "unused" not in printed(report)
    report["models"][0]["params_unused"] = 786_432
    assert "786 k unused" in printed(report)
    page = render(report, trials=[], histories={}, quality=None, job=make_job())
    assert page.count("786 k unused") == 2, "in both tables of parameters"
