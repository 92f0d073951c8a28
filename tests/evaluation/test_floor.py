"""The floor: teacher and students against the best probe and the majority, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from helpers.evaluation_case import EvaluationCase
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.evaluation.evaluate import _probed
from multistill.evaluation.floor import best_probe, best_student, describe_floor, standing

BASELINE = {
    "name": "majority baseline",
    "label": "Neutral",
    "metrics": {"macro_f1": {"value": 0.14, "low": 0.1, "high": 0.2}},
}


def probe(modality: str, test: float, validation: float | None) -> dict[str, Any]:
    return {
        "name": f"linear probe, {modality}",
        "modality": modality,
        "validation": validation,
        "params_trainable": 20 if modality == "multimodal" else 10,
        "metrics": {"macro_f1": {"value": test, "low": None, "high": None}},
    }


def model(
    name: str,
    test: float,
    validation: float | None = None,
    role: str = "student",
    modality: str = "multimodal",
    not_trained: str | None = None,
) -> dict[str, Any]:
    scores = None if validation is None else {"macro_f1": validation}
    return {
        "name": name,
        "role": role,
        "modality": modality,
        "not_trained": not_trained,
        "training": [{"validation": scores}],
        "metrics": {"macro_f1": {"value": test, "low": None, "high": None}},
    }


def floor(
    models: list[dict[str, Any]], probes: list[dict[str, Any]], half: float | None = 0.05
) -> dict[str, Any]:
    """Differences with intervals of the same half width, or without."""
    values = {each["name"]: each["metrics"]["macro_f1"]["value"] for each in (*models, *probes)}
    values[str(BASELINE["name"])] = 0.14

    def difference(first: str, second: str) -> Mapping[str, float | None]:
        value = values[first] - values[second]
        if half is None:
            return {"value": value, "low": None, "high": None}
        return {"value": value, "low": value - half, "high": value + half}

    return describe_floor(models, probes, BASELINE, difference, 0.95)


PROBES = [probe("multimodal", 0.57, 0.6), probe("audio", 0.4, 0.5)]


def test_the_sentence_says_who_beats_the_probe_and_by_how_much() -> None:
    found = floor([model("teacher", 0.65, role="teacher"), model("base", 0.6, 0.5)], PROBES)
    assert found["sentence"] == (
        "Test macro F1, 95 % paired intervals: teacher 0.650, +0.080 [+0.030, +0.130] above the "
        "best probe and +0.510 [+0.460, +0.560] above the majority; student base 0.600, +0.030 "
        "[-0.020, +0.080] to the best probe (not shown to beat it) and +0.460 [+0.410, +0.510] "
        "above the majority. Floor: linear probe, multimodal 0.570 (best of the probes on "
        "validation); always Neutral 0.140."
    )
    below = floor([model("base", 0.4, 0.5)], PROBES)["sentence"]
    assert "[-0.220, -0.120] below the best probe" in below


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_probe_and_student_are_chosen_on_validation_whatever_the_test_scores(
    probes: list[tuple[float, float]], students: list[tuple[float, float, bool]]
) -> None:
    kinds = ("multimodal", "audio", "text")
    scored = [probe(kind, t, v) for kind, (t, v) in zip(kinds, probes, strict=False)]
    best, chosen_on = best_probe(scored)
    assert chosen_on == "validation" and best is not None
    assert best["validation"] == max(v for _, v in probes)
    models = [
        model(f"s{i}", t, v, not_trained="not trained: why" if bad else None)
        for i, (t, v, bad) in enumerate(students)
    ]
    allowed = [m for m in models if not m["not_trained"]] or models
    chosen = next(m for m in models if m["name"] == best_student(models))
    assert chosen in allowed
    top = max(m["training"][0]["validation"]["macro_f1"] for m in allowed)
    assert chosen["training"][0]["validation"]["macro_f1"] == top
    found = floor(models, scored)
    assert {row["model"] for row in found["models"]} == {m["name"] for m in models}
    assert ("NOT TRAINED" in found["sentence"]) == bool(chosen["not_trained"])


def test_without_validation_clips_the_probe_that_reads_most_counts_and_that_is_said() -> None:
    found = floor([model("base", 0.9)], [probe("audio", 0.9, None), probe("multimodal", 0.2, None)])
    assert (found["probe"], found["chosen_on"]) == ("linear probe, multimodal", None)
    assert "no validation clips to choose on" in found["sentence"]


def test_a_unimodal_student_is_also_compared_with_the_probe_of_what_it_reads() -> None:
    found = floor([model("voice", 0.5, 0.5, modality="audio")], PROBES)
    row = found["models"][0]
    assert row["to_probe"]["standing"] == "below" and row["to_own_probe"]["standing"] == "above"
    assert (
        "below the best probe, +0.100 [+0.050, +0.150] above the audio probe" in (found["sentence"])
    )


@pytest.mark.parametrize(
    ("models", "probes", "half", "words"),
    [
        ([], PROBES, 0.05, "no head was trained; linear probe, multimodal 0.570"),
        ([], [], 0.05, "no head was trained; no linear probe; always Neutral 0.140."),
        ([model("s", 0.5)], [], 0.05, "+0.360 [+0.310, +0.410] above the majority"),
        ([model("s", 0.5)], PROBES, None, "-0.070 (no interval) to the best probe"),
        ([model("s", 0.5)], PROBES, 0.0, "-0.070 (no interval) to the best probe"),
        ([model("t", 0.1, role="teacher", not_trained="x")], PROBES, 0.05, "is NOT TRAINED"),
        ([model("a", 0.5, 0.1), model("b", 0.5, 0.2)], PROBES, 0.05, "student b (best of 2 on"),
        ([model("c", 0.9, role="control")], PROBES, 0.05, "no head was trained"),
    ],
)
def test_what_is_missing_is_said(
    models: list[dict[str, Any]], probes: list[dict[str, Any]], half: float | None, words: str
) -> None:
    assert words in floor(models, probes, half)["sentence"]


def test_an_interval_that_holds_zero_shows_nothing() -> None:
    assert standing({"value": 0.1, "low": 0.0, "high": 0.2}) == "not shown"
    assert standing({"value": 0.1, "low": 0.01, "high": 0.2}) == "above"
    assert standing({"value": 0.1, "low": 0.1, "high": 0.1}) == "no interval"


def test_a_head_that_reads_both_is_measured_against_every_probe() -> None:
    assert set(_probed(["multimodal"])) == set(_probed([])) == {"multimodal", "audio", "text"}
    assert _probed(["audio", "audio"]) == ["audio"]


def test_differences_are_of_the_scores_in_the_tables(evaluation_case: EvaluationCase) -> None:
    metrics = evaluation_case.metrics
    values = {
        each["name"]: each["metrics"]["macro_f1"]["value"]
        for each in (metrics["baseline"], *metrics["references"], *metrics["models"])
    }
    rows = metrics["floor"]["models"]
    assert [row["model"] for row in rows] == ["teacher", "multimodal", "audio", "text"]
    for row in rows:
        for key in ("to_probe", "to_majority"):
            expected = values[row["model"]] - values[row[key]["against"]]
            assert row[key]["value"] == pytest.approx(expected)
            assert row[key]["low"] <= row[key]["value"] <= row[key]["high"]
    report, page = evaluation_case.default_report
    assert evaluation_case.summary["floor"] == report["floor"]["sentence"]
    first = page.index("<p", page.index("<h1>"))
    assert page[first:].startswith(f'<p class="lead floor">{report["floor"]["sentence"]}</p>')
