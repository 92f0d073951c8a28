"""Jobs side by side: differences on equal test clips only, and what is said otherwise."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import EvaluationCase
from helpers.finished_jobs import finish, key_of, report_of
from rich.console import Console

from multistill.errors import UsageError
from multistill.pipeline.runs import find_run
from multistill.pipeline.variants import differing
from multistill.report import side_by_side
from multistill.report.compare import METRICS, Run, compare
from multistill.workspace import read_json

Row = dict[str, Any]
ZERO = {"value": 0.0, "low": 0.0, "high": 0.0, "p": None, "p_holm": None}


def runs_of(workspace: Path, *names: str) -> list[Run]:
    return [find_run(name, workspace) for name in names]


def compared(workspace: Path, *names: str) -> dict[str, Any]:
    return compare(runs_of(workspace, *names))


def answering(case: EvaluationCase, seed: int, *models: str) -> Callable[[Row], Row]:
    """Random answers of some models, the same for the same seed."""
    rng, classes = random.Random(seed), case.metrics["classes"]
    return lambda row: (
        row | ({"label": rng.choice(classes)} if row["model"] in models or not models else {})
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_job_differs_from_itself_by_nothing(
    evaluation_case: EvaluationCase, tmp_path: Path, seed: int
) -> None:
    """Whatever the models answer, and in whatever order the rows stand."""
    change = answering(evaluation_case, seed)
    for name in ("a", "b"):
        finish(evaluation_case, tmp_path, change, name=name, classes={})
        change = answering(evaluation_case, seed)
    for names in (("a", "b"), ("a", "a")):
        facts = compared(tmp_path, *names)
        models = {row["model"] for row in facts["differences"]}
        assert models == {model["name"] for model in evaluation_case.metrics["models"]} | {
            model["name"] for model in evaluation_case.metrics["references"]
        }
        for row in facts["differences"]:
            assert row["metrics"] == dict.fromkeys(METRICS, ZERO)
        assert facts["not_paired"] == []


def test_the_difference_is_that_of_the_evaluation(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    """Another job's control answers as the student does: the report has this difference."""
    student, control = "multimodal", "multimodal-control"

    def change(row: Row) -> Row | None:
        return None if row["model"] == control else row

    def seeded(report: Row) -> Row:
        return report | {"seed": evaluation_case.metrics["seed"]}

    finish(evaluation_case, tmp_path, name="a", metrics=seeded)
    job = finish(evaluation_case, tmp_path, change, name="b", metrics=seeded)
    file = tmp_path / "evaluate" / key_of(job) / "predictions.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows += [row | {"model": control} for row in rows if row["model"] == student]
    random.Random(1).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    [expected] = [
        comparison["differences"]
        for comparison in evaluation_case.metrics["distillation"]
        if comparison["model"] == student
    ]
    facts = compared(tmp_path, "a", "b")
    [found] = [row for row in facts["differences"] if row["model"] == control]
    for metric in METRICS:
        for end in ("value", "low", "high"):
            assert found["metrics"][metric][end] == pytest.approx(expected[metric][end], abs=1e-12)
    back = compared(tmp_path, "b", "a")
    [other] = [row for row in back["differences"] if row["model"] == found["model"]]
    for metric in METRICS:
        value, low, high = (other["metrics"][metric][end] for end in ("value", "low", "high"))
        assert [-value, -high, -low] == pytest.approx(
            [found["metrics"][metric][end] for end in ("value", "low", "high")], abs=1e-12
        )


@pytest.mark.parametrize("best", ["audio", "text", "multimodal"])
def test_best_students_are_compared_whatever_their_names(
    evaluation_case: EvaluationCase, tmp_path: Path, best: str
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    finish(
        evaluation_case,
        tmp_path,
        name="b",
        metrics=lambda report: report | {"floor": report["floor"] | {"student": best}},
    )
    facts = compared(tmp_path, "a", "b")
    row = facts["differences"][0]
    first = evaluation_case.metrics["floor"]["student"]
    assert (row["role"], row["model"], row["against"]) == ("best student", best, first)
    values = {model["name"]: model["metrics"] for model in evaluation_case.metrics["models"]}
    for metric in METRICS:
        expected = values[best][metric]["value"] - values[first][metric]["value"]
        assert row["metrics"][metric]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("left_out", [1, 5, 40])
def test_other_clips_have_no_difference(
    evaluation_case: EvaluationCase, tmp_path: Path, left_out: int
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    ids = sorted(compared_ids(tmp_path, "a"))[:left_out]
    finish(
        evaluation_case,
        tmp_path,
        lambda row: None if row["utterance_id"] in ids else row,
        name="fewer",
    )
    finish(evaluation_case, tmp_path, answering(evaluation_case, 3), name="same")
    facts = compared(tmp_path, "a", "fewer", "same")
    [sentence] = facts["not_paired"]
    assert (
        f"`fewer`: other test clips: {95 - left_out} are in both, {left_out} in the first"
        in sentence
    )
    assert "cannot be set side by side" in sentence
    assert {row["run"] for row in facts["differences"]} == {"same"}
    assert {row["run"] for row in facts["models"]} == {"a", "fewer", "same"}


def compared_ids(workspace: Path, name: str) -> set[str]:
    from multistill.evaluation.paired import read_answers

    file = find_run(name, workspace).predictions
    assert file is not None
    return set(read_answers(file).ids)


def test_other_labels_of_the_same_clips_have_no_difference(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    ids = sorted(compared_ids(tmp_path, "a"))[:3]
    other = evaluation_case.metrics["classes"]

    def relabel(row: Row) -> Row:
        if row["utterance_id"] not in ids:
            return row
        return row | {"truth": other[0] if row["truth"] != other[0] else other[1]}

    finish(evaluation_case, tmp_path, relabel, name="b")
    facts = compared(tmp_path, "a", "b")
    assert facts["differences"] == []
    assert "other labels of 3 of the 95 test clips" in facts["not_paired"][0]


@pytest.mark.parametrize("gone", ["a", "b"])
def test_without_predictions_the_table_stays(
    evaluation_case: EvaluationCase, tmp_path: Path, gone: str
) -> None:
    jobs = {name: finish(evaluation_case, tmp_path, name=name) for name in ("a", "b")}
    (tmp_path / "evaluate" / key_of(jobs[gone]) / "predictions.parquet").unlink()
    facts = compared(tmp_path, "a", "b")
    assert facts["differences"] == []
    assert f"`{gone}`" in facts["not_paired"][0] and "are gone" in facts["not_paired"][0]
    assert {row["run"] for row in facts["models"]} == {"a", "b"}


@pytest.mark.parametrize("renamed", [{"happy": "joy"}, {"happy": "joy", "sad": "grief"}])
def test_other_classes_are_refused(
    evaluation_case: EvaluationCase, tmp_path: Path, renamed: dict[str, str]
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    finish(evaluation_case, tmp_path, name="b", classes=renamed)
    with pytest.raises(UsageError) as caught:
        compared(tmp_path, "a", "b")
    for old, new in renamed.items():
        assert old in str(caught.value) and new in str(caught.value)
    assert "\n" not in str(caught.value)
    compared(tmp_path, "b", "b")


def test_the_order_of_the_classes_does_not_matter(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    first, *_, last = evaluation_case.metrics["classes"]
    finish(evaluation_case, tmp_path, name="a")
    exchanged = {first: last, last: first}
    back = {last: first, first: last}

    def undo(row: Row) -> Row:
        """The classes are renamed in the list only: every row keeps its label."""
        return row | {key: back.get(row[key], row[key]) for key in ("label", "truth")}

    finish(evaluation_case, tmp_path, undo, name="b", classes=exchanged)
    facts = compared(tmp_path, "a", "b")
    assert all(row["metrics"] == dict.fromkeys(METRICS, ZERO) for row in facts["differences"])


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_means_over_seeds_are_compared_with_the_variance_over_seeds(
    evaluation_case: EvaluationCase, tmp_path: Path, shift: float
) -> None:
    def with_seeds(offset: float) -> Callable[[Row], Row]:
        def change(report: Row) -> Row:
            models = []
            for model in report["models"]:
                metrics = {}
                for metric in METRICS:
                    values = [
                        model["metrics"][metric]["value"] + offset + s for s in (0, 0.02, 0.04)
                    ]
                    metrics[metric] = {
                        "values": values,
                        "sd": float(np.std(values, ddof=1)),
                        **model["metrics"][metric],
                        "value": float(np.mean(values)),
                    }
                models.append(model | {"seeds": {"count": 3, "metrics": metrics}})
            return report | {"models": models}

        return change

    finish(evaluation_case, tmp_path, name="a", metrics=with_seeds(0.0))
    finish(evaluation_case, tmp_path, name="b", metrics=with_seeds(shift))
    for row in compared(tmp_path, "a", "b")["differences"]:
        for metric in METRICS:
            found = row["metrics"][metric]
            if row["role"] == "probe" or not shift:  # the same trainings
                assert found == ZERO
            else:
                assert found["value"] == pytest.approx(shift)
                assert found["low"] < found["value"] - 0.01 and found["high"] > shift + 0.01


def test_the_coarsest_unit_of_all_is_resampled(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    """There are four test sessions, and a speaker of 32 is in one of them."""

    def by_speaker(report: Row) -> Row:
        resampled = report["test"]["resampled"] | {"unit": "speaker", "count": 8}
        return report | {"test": report["test"] | {"resampled": resampled}}

    finish(evaluation_case, tmp_path, name="a", metrics=by_speaker)
    finish(evaluation_case, tmp_path, name="b")
    assert compared(tmp_path, "a", "a")["resampled"]["unit"] == "speaker"
    assert compared(tmp_path, "a", "a")["resampled"]["count"] == 8
    for names in (("a", "b"), ("b", "a")):
        resampled = compared(tmp_path, *names)["resampled"]
        assert (resampled["unit"], resampled["count"]) == ("session", 4)


def test_a_row_per_model_as_the_report_has_it(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    job = finish(evaluation_case, tmp_path, name="a")
    finish(evaluation_case, tmp_path, answering(evaluation_case, 1, "audio"), name="b", seed=8)
    runs = runs_of(tmp_path, "a", "b")
    facts = compare(runs, differing([run.settings for run in runs]))
    report = read_json(report_of(tmp_path, job) / "report.json")
    own = {row["model"]: row for row in facts["models"] if row["run"] == "a"}
    entries = [report["baseline"], *report["references"], *report["models"]]
    assert list(own) == [entry["name"] for entry in entries]
    for entry in entries:
        for metric in METRICS:
            shown = own[entry["name"]]["metrics"][metric]
            assert {k: v for k, v in shown.items() if k != "sd"} == entry["metrics"][metric]
    assert facts["settings"] == [{"setting": "seed", "values": [1024, 8]}]
    rows = list(csv.DictReader(io.StringIO(side_by_side.text(facts, "csv"))))
    assert len(rows) == len(facts["models"]) + 1  # the best students once more
    for row in rows:
        scored = next(
            r for r in facts["models"] if (r["run"], r["model"]) == (row["run"], row["model"])
        )
        for metric in METRICS:
            assert float(row[f"{metric}_low"]) == scored["metrics"][metric]["low"]
    [audio] = [row for row in rows if row["run"] == "b" and row["model"] == "audio"]
    [difference] = [row for row in facts["differences"] if row["model"] == "audio"]
    assert float(audio["uar_difference_high"]) == difference["metrics"]["uar"]["high"]
    latex, markdown = (side_by_side.text(facts, kind) for kind in ("latex", "markdown"))
    for text in (latex, markdown):
        assert text.count("NOT TRAINED") == sum(bool(r["not_trained"]) for r in facts["models"])
        assert f"{difference['metrics']['uar']['value']:+.3f}" in text
    assert latex.count("\\begin{tabular}") == 4


def test_another_protocol_is_warned_of_in_every_format(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    def crossed(report: Row) -> Row:
        return report | {"protocol": report["protocol"] | {"short": "5-fold by speaker"}}

    finish(evaluation_case, tmp_path, name="a")
    finish(evaluation_case, tmp_path, name="b", metrics=crossed)
    for names, warned in ((("a", "b"), {"b"}), (("b", "a"), {"a"}), (("b", "b"), set())):
        facts = compared(tmp_path, *names)
        assert set(facts["warnings"]) == warned
        for kind in ("markdown", "latex"):
            text = side_by_side.text(facts, kind)  # type: ignore[arg-type]
            lines = [line for line in text.splitlines() if "ANOTHER PROTOCOL" in line]
            assert len(lines) == len(warned)
            assert all(("5-fold by speaker" in line) and ("holdout" in line) for line in lines)
        rows = list(csv.DictReader(io.StringIO(side_by_side.text(facts, "csv"))))
        assert {row["run"] for row in rows if row["warning"]} == warned
        console = Console(width=80, file=io.StringIO())
        side_by_side.show(facts, console)
        assert isinstance(console.file, io.StringIO)
        assert ("ANOTHER PROTOCOL" in console.file.getvalue()) == bool(warned)


def test_jobs_of_one_name_are_told_apart() -> None:
    from multistill.report.compare import labels

    report: dict[str, Any] = {}
    run = Run("emo", "aaaaaa1111111111", Path(), report)
    assert labels([run]) == ["emo"]
    assert labels([run, replace(run, job="x")]) == ["emo", "x"]
    other = replace(run, key="aaaaaa2222222222")
    assert labels([run, other]) == ["emo@aaaaaa1", "emo@aaaaaa2"]
    assert labels([run, run]) == ["emo@aaaaaa", "emo@aaaaaa (2)"]
    assert labels([replace(run, key=None)] * 2) == ["emo", "emo (2)"]


def test_p_values_are_corrected_for_all_pairs_and_the_best_students_are_no_further_pair(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    finish(evaluation_case, tmp_path, name="a")
    finish(evaluation_case, tmp_path, answering(evaluation_case, 3, "audio", "text"), name="b")
    facts = compared(tmp_path, "a", "b")
    assert facts["family"] == 2, "models that both runs share are not tested"
    by_model = {
        row["model"]: row["metrics"]["macro_f1"]
        for row in facts["differences"]
        if row["role"] != "best student"
    }
    low, high = sorted((by_model[name] for name in ("audio", "text")), key=lambda each: each["p"])
    assert low["p_holm"] == pytest.approx(min(1, 2 * low["p"]))
    assert high["p_holm"] == pytest.approx(max(high["p"], low["p_holm"]))
    assert by_model["teacher"]["p_holm"] is None
    assert facts["differences"][0]["metrics"] == {
        metric: row["metrics"][metric]
        for row in facts["differences"][1:]
        if row["model"] == facts["differences"][0]["model"]
        for metric in METRICS
    }
    shown = side_by_side.text(facts, "markdown")
    assert "2 pairs tested (Holm)" in shown and "p " in shown


def test_the_difference_to_the_probe_is_that_of_the_report_and_controls_have_one_too(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    def seeded(report: Row) -> Row:
        return report | {"seed": evaluation_case.metrics["seed"]}

    finish(evaluation_case, tmp_path, name="a", metrics=seeded)
    facts = compared(tmp_path, "a")
    found = {row["model"]: row["to_probe"] for row in facts["models"]}
    floor = evaluation_case.metrics["floor"]
    assert {name for name, each in found.items() if each} == {
        model["name"] for model in evaluation_case.metrics["models"]
    }
    for row in floor["models"]:
        for end in ("value", "low", "high", "p"):
            measured = found[row["model"]]["macro_f1"][end]
            assert measured == pytest.approx(row["to_probe"][end], abs=1e-12)
    for model in evaluation_case.metrics["models"]:
        for measured in found[model["name"]].values():
            untested = model["not_trained"] is not None
            assert measured["p_holm"] is None if untested else measured["p_holm"] >= measured["p"]
    assert floor["probe"] in side_by_side.text(facts, "markdown")


def test_every_model_has_its_costs_and_the_ccc_of_its_dimensions(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    ccc = {"value": 0.41, "low": 0.3, "high": 0.5}

    def with_valence(report: Row) -> Row:
        models = [{"name": "teacher", "metrics": {"ccc": ccc}}]
        entry = {"dimension": "valence", "references": [], "models": models}
        return report | {"dimensions": [entry]}

    finish(evaluation_case, tmp_path, name="a", metrics=with_valence)
    finish(evaluation_case, tmp_path, name="b")
    facts = compared(tmp_path, "a", "b")
    rows = {(row["run"], row["model"]): row for row in facts["models"]}
    for model in evaluation_case.metrics["models"]:
        cost = rows["b", model["name"]]["cost"]
        assert cost["params_trainable"] == model["params_trainable"]
        assert cost["params_end_to_end"] == model["params_end_to_end"]
        assert cost["ms_per_clip"] == model["latency_end_to_end_ms"]["p50"]
    # Of an ensemble of 60 and 20 steps of half a second, one training.
    assert rows["a", "teacher"]["cost"]["train_seconds"] == pytest.approx(20.0)
    assert rows["a", "multimodal"]["cost"]["train_seconds"] == pytest.approx(20.0)
    assert set(rows["a", "majority baseline"]["cost"].values()) == {None}
    assert rows["a", "teacher"]["ccc"] == {"valence": ccc}
    assert rows["b", "teacher"]["ccc"] == {}
    for kind in ("markdown", "latex"):
        assert "0.410 [0.300, 0.500]" in side_by_side.text(facts, kind)  # type: ignore[arg-type]
    lines = list(csv.DictReader(io.StringIO(side_by_side.text(facts, "csv"))))
    [teacher] = [each for each in lines if (each["run"], each["model"]) == ("a", "teacher")]
    assert float(teacher["ccc_valence"]) == 0.41 and float(teacher["train_seconds"]) == 20.0
    assert float(teacher["macro_f1_to_probe"]) == pytest.approx(
        rows["a", "teacher"]["to_probe"]["macro_f1"]["value"]
    )
    console = Console(width=80, file=io.StringIO())
    side_by_side.show(facts, console)
    assert isinstance(console.file, io.StringIO)
    assert all(len(line) <= 80 for line in console.file.getvalue().splitlines())
