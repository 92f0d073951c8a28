"""The teacher's calibration in sample, out of fold, on validation and on test."""

from __future__ import annotations

from helpers.evaluation_case import EvaluationCase


def test_teacher_is_more_accurate_on_clips_it_was_trained_on(
    evaluation_case: EvaluationCase,
) -> None:
    report, page = evaluation_case.default_report
    rows = {row["name"]: row for row in report["teacher_calibration"]}
    assert set(rows) == {
        "training, seen by the teacher",
        "training, out of fold",
        "validation",
        "test",
    }
    assert rows["training, seen by the teacher"]["accuracy"] > rows["test"]["accuracy"]
    assert "out of fold" in page
