"""The result table of the terminal."""

from __future__ import annotations

from helpers.evaluation_case import EvaluationCase
from rich.console import Console

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
