"""The top-level MLflow run shows the figures of the report, whatever seeds and models there are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.label_share_points import point
from helpers.recording_logger import RecordingLogger
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.evaluation.figures import over_seeds, single_numbers
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.record import (
    MAIN_METRICS,
    figures_table,
    floor_figures,
    label_share_figures,
    main_figures,
    parameters,
)
from multistill.pipeline.steps.evaluation import Evaluate
from multistill.report.terminal import score
from multistill.workspace import Artifact, Workspace, write_json

HARD = ("accuracy", "uar", "macro_f1", "weighted_f1")


def metric(value: float | None, **more: Any) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {"value": value, "low": ends[0], "high": ends[1], **more}


def model(
    name: str, values: list[float], role: str = "student", not_trained: str | None = None
) -> dict[str, Any]:
    """As in metrics.json: `metrics` of the first seed, `seeds` over all where there are several."""
    found: dict[str, Any] = {
        "name": name,
        "role": role,
        "not_trained": not_trained,
        "metrics": {**{m: metric(values[0]) for m in HARD}, "ece": metric(0.07)},
    }
    if len(values) > 1:
        mean = sum(values) / len(values)
        sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        over = {m: metric(mean, sd=sd, values=values) for m in HARD}
        found["seeds"] = {"count": len(values), "metrics": over}
    return found


def metrics_of(*models: dict[str, Any], student: str | None = None) -> dict[str, Any]:
    """As in metrics.json; `student` is the one that validation chose."""
    baseline = {"name": "majority baseline", "metrics": {m: metric(0.1) for m in HARD}}
    return {
        "confidence": 0.95,
        "baseline": baseline,
        "references": [],
        "models": list(models),
        "label_shares": [],
        "robustness": None,
        "floor": {"metric": "macro_f1", "student": student, "models": [], "sentence": "no head"},
    }


def test_the_best_student_is_the_one_that_validation_chose() -> None:
    """Not the one that is best on test, which is optimistic."""
    metrics = metrics_of(
        model("teacher", [0.7], "teacher"),
        model("multimodal", [0.60, 0.40, 0.35]),
        model("audio", [0.50, 0.55, 0.60]),
        model("text", [0.80, 0.85, 0.90]),
        student="audio",
    )
    figures, best = main_figures(metrics)
    assert best == "audio"
    assert figures["test_best_student_macro_f1"] == pytest.approx(0.55)
    assert figures["test_best_student_macro_f1_sd"] == pytest.approx(0.05)
    assert figures["test_best_student_uar_low"] == pytest.approx(0.45)
    assert figures["test_teacher_macro_f1"] == 0.7
    assert "test_teacher_macro_f1_sd" not in figures, "one training has no deviation"
    table = figures_table(metrics)
    assert "| multimodal (3 seeds) | 0.450 [0.350, 0.550] SD 0.132 |" in table
    assert "| teacher | 0.700 [0.600, 0.800] |" in table


@given(
    students=st.lists(
        st.tuples(
            st.lists(st.floats(0.01, 1).map(lambda v: round(v, 3)), min_size=1, max_size=5),
            st.booleans(),
        ),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_record_terminal_and_evaluation_show_the_same_figures(
    students: list[tuple[list[float], bool]],
) -> None:
    models = [
        model(f"s{number}", values, not_trained="not trained: why" if bad else None)
        for number, (values, bad) in enumerate(students)
    ]
    trained = [m["name"] for m in models if not m["not_trained"]]
    # As `best_student` chooses: one that learnt nothing only if all did.
    chosen = next(iter(trained or [m["name"] for m in models]), None)
    figures, best = main_figures(metrics_of(*models, student=chosen))
    table = figures_table(metrics_of(*models))
    assert best == (chosen if trained else "")
    assert any(name.startswith("test_best_student") for name in figures) == bool(trained)
    for entry in models:
        numbers = single_numbers(entry)
        for name in MAIN_METRICS:
            assert score(over_seeds(entry, name)) in table
            assert numbers[name] == over_seeds(entry, name)["value"]
            assert (f"{name}_sd" in numbers) == ("seeds" in entry)
        assert numbers["ece"] == 0.07
        if entry["name"] == best:
            assert figures["test_best_student_macro_f1"] == over_seeds(entry, "macro_f1")["value"]
    assert table.count("NOT TRAINED") == sum(bad for _, bad in students)


def test_models_that_learnt_nothing_are_not_the_best_student(tmp_path: Path) -> None:
    """As `Evaluate` records it: no tag and no metric of a best student."""
    job = jobfile.parse(f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n", "t.yaml")
    folder = tmp_path / "evaluation"
    folder.mkdir()
    lucky = model("a", [0.9, 0.8], not_trained="not trained: the loss did not fall")
    metrics = metrics_of(lucky, model("b", [0.3, 0.4]), student="b")
    write_json(folder / "metrics.json", metrics)
    artifact = Artifact("evaluate", "0" * 16, folder, {})
    logger = RecordingLogger()
    Evaluate(job, Workspace(tmp_path)).record(artifact, logger)
    assert logger.logged_tags["best_student"] == "b"
    write_json(folder / "metrics.json", metrics_of(lucky, student="a"))
    logger = RecordingLogger()
    Evaluate(job, Workspace(tmp_path)).record(artifact, logger)
    assert "best_student" not in logger.logged_tags


def test_seeds_are_among_the_parameters_of_a_job_that_trains_students(tmp_path: Path) -> None:
    head = f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n"
    for text, expected in (("seeds: 4\n", 4), ("", 1), ("recipe: features-only\n", None)):
        job = jobfile.parse(head + text, "t.yaml")
        assert parameters(job, steps_of(job, Workspace(tmp_path))).get("seeds") == expected


def test_floor_figures_are_of_the_teacher_and_of_the_student_chosen_on_validation() -> None:
    def row(name: str, role: str, above: float) -> dict[str, Any]:
        probe = metric(above) if above else None
        return {"model": name, "role": role, "to_probe": probe, "to_majority": metric(above + 0.2)}

    rows = [row("t", "teacher", 0.1), row("a", "student", 0.3), row("b", "student", 0.0)]
    floor = {"metric": "macro_f1", "student": "a", "models": rows}
    figures = floor_figures(floor)
    assert figures["test_teacher_macro_f1_above_probe"] == pytest.approx(0.1)
    assert figures["test_teacher_macro_f1_above_probe_low"] == metric(0.1)["low"]
    assert figures["test_teacher_macro_f1_above_majority_high"] == metric(0.1 + 0.2)["high"]
    assert figures["test_student_macro_f1_above_probe"] == pytest.approx(0.3)
    without_probe = floor_figures({**floor, "student": "b"})
    assert "test_student_macro_f1_above_probe" not in without_probe
    assert without_probe["test_student_macro_f1_above_majority"] == pytest.approx(0.2)


def test_the_curve_of_label_shares_is_recorded_over_the_labelled_clips() -> None:
    points = [point("audio", 0.1, 0.05), point("audio", 1.0, None, None)]
    (clips, first), (every, second) = label_share_figures(points)
    assert (clips, every) == (29, 288)
    assert first["test_audio_macro_f1_by_labels_gain"] == 0.05
    assert first["test_audio_macro_f1_by_labels_gain_low"] == pytest.approx(0.03)
    assert first["test_audio_uar_by_labels_control_sd"] == 0.01
    assert "test_audio_macro_f1_by_labels_gain" not in second, "it is not defined"
    assert second["test_audio_macro_f1_by_labels_distilled"] == 0.4
