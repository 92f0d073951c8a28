"""Evaluation of small trained models on real files: predictions, metrics and their summary."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import EvaluationCase, make_job

from multistill.config import CLASSES
from multistill.errors import MultistillError
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.inference.latency import COMPONENTS
from multistill.workspace import read_json


@pytest.fixture
def case(evaluation_case: EvaluationCase) -> EvaluationCase:
    return evaluation_case


def test_predictions_hold_every_clip_of_every_model_and_baseline(case: EvaluationCase) -> None:
    predictions = pq.read_table(case.out / "predictions.parquet").to_pandas()
    clips = case.metrics["test"]["clips"]
    probes = {f"linear probe, {modality}" for modality in ("multimodal", "audio", "text")}
    names = {"majority baseline", *probes, *(candidate.name for candidate in case.candidates)}
    assert set(predictions["model"]) == names
    assert len(predictions) == clips * len(names)
    shares = np.stack(predictions["distribution"].to_list())
    assert shares.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    student = predictions[predictions["model"] == "multimodal"]
    modes = np.stack(student["distribution"].to_list()).argmax(axis=1)
    assert [CLASSES[mode] for mode in modes] == student["label"].to_list()


def test_several_seeds_are_compared_by_their_means(case: EvaluationCase, tmp_path: Path) -> None:
    def with_repeat(name: str, repeat: str, **more: Any) -> Candidate:
        return case.candidate(name, repeats=[[case.folders[repeat]]], **more)

    candidates = [
        with_repeat("multimodal", "audio", compare_to="multimodal-control"),
        with_repeat("multimodal-control", "text", role="control"),
        case.candidate("text", compare_to="multimodal-control"),
    ]
    config = make_job().evaluation.model_copy(update={"latency_clips": 0})
    evaluate([EvaluatedFold(case.manifest, candidates)], case.store, config, tmp_path, seed=5)
    metrics = read_json(tmp_path / "metrics.json")
    single = {model["name"]: model["metrics"]["macro_f1"] for model in case.metrics["models"]}
    models = {model["name"]: model for model in metrics["models"]}
    assert models["multimodal"]["metrics"]["macro_f1"] == single["multimodal"], "of the first seed"
    seeds = models["multimodal"]["seeds"]["metrics"]["macro_f1"]
    first, second = (single[name]["value"] for name in ("multimodal", "audio"))
    assert seeds["values"] == pytest.approx([first, second])
    assert seeds["value"] == pytest.approx((first + second) / 2)
    assert seeds["sd"] == pytest.approx(abs(first - second) / 2**0.5)
    assert seeds["low"] <= seeds["value"] <= seeds["high"]
    both, one = metrics["distillation"]
    control = (single["multimodal-control"]["value"] + single["text"]["value"]) / 2
    assert both["seeds"] == 2 and "means of 2 seeds" in both["sentence"]
    assert both["differences"]["macro_f1"]["value"] == pytest.approx(seeds["value"] - control)
    assert one["seeds"] == 1, "a single training is never compared with a mean over seeds"
    assert "seeds" not in models["text"]


def test_every_seed_of_a_teacher_may_be_an_ensemble(case: EvaluationCase, tmp_path: Path) -> None:
    config = make_job().evaluation.model_copy(update={"latency_clips": 0})
    [teacher] = [each for each in case.candidates if each.name == "teacher"]
    other = [case.folders["multimodal"], case.folders["multimodal-control"]]
    repeated = replace(teacher, repeats=[other])
    alone = replace(teacher, name="other", folders=other)
    evaluate([EvaluatedFold(case.manifest, [repeated, alone])], case.store, config, tmp_path)
    found = {model["name"]: model for model in read_json(tmp_path / "metrics.json")["models"]}
    for metric, scores in found["teacher"]["seeds"]["metrics"].items():
        each = [found[name]["metrics"][metric]["value"] for name in ("teacher", "other")]
        assert scores["values"] == pytest.approx(each)
    assert found["teacher"]["members"] == 2


def test_metrics_can_be_recomputed_from_the_predictions(case: EvaluationCase) -> None:
    predictions = pq.read_table(case.out / "predictions.parquet").to_pandas()
    metrics = case.metrics
    for model in (metrics["baseline"], *metrics["references"], *metrics["models"]):
        rows = predictions[(predictions["model"] == model["name"]) & predictions["truth"].notna()]
        accuracy = (rows["truth"] == rows["label"]).mean()
        assert model["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
        for score in model["metrics"].values():
            assert score["low"] <= score["value"] <= score["high"]


def test_clips_without_features_and_ties_are_counted(case: EvaluationCase) -> None:
    test = case.metrics["test"]
    manifest = pq.read_table(case.manifest / "manifest.parquet").to_pandas()
    rows = manifest[manifest["split"] == "test"]
    assert test["without_features"] == 1
    assert test["clips"] == len(rows) - 1
    assert test["ties"] + test["decided"] == test["clips"]
    assert test["ties"] > 0


def test_trained_models_beat_the_baseline_and_parameters_add_up(case: EvaluationCase) -> None:
    by_name = {model["name"]: model for model in case.metrics["models"]}
    baseline = case.metrics["baseline"]["metrics"]
    assert baseline["uar"]["value"] == pytest.approx(1 / 7)
    assert by_name["teacher"]["metrics"]["uar"]["low"] > baseline["uar"]["high"]
    assert by_name["teacher"]["members"] == 2
    text, audio = by_name["text"], by_name["audio"]
    assert text["params_end_to_end"] == text["params_trainable"] + 5_000
    assert audio["params_end_to_end"] == audio["params_trainable"]


def test_students_are_scored_in_8_bits_too(case: EvaluationCase) -> None:
    by_name = {model["name"]: model for model in case.metrics["models"]}
    for name, model in by_name.items():
        assert ("int8" in model) == (model["role"] == "student"), name
    student = by_name["multimodal"]
    assert student["bytes"] > student["int8"]["bytes"] > 0
    exact, rounded = (each["metrics"]["uar"]["value"] for each in (student, student["int8"]))
    assert rounded == pytest.approx(exact, abs=0.1)


def test_end_to_end_latency_includes_the_encoders_of_the_modality(case: EvaluationCase) -> None:
    latency = case.metrics["latency"]
    assert latency["reason"] is None
    assert set(latency["parts"]) == {"decode", "speech", "text"}
    for model in case.metrics["models"]:
        head, end_to_end = model["latency_ms"], model["latency_end_to_end_ms"]
        assert 0 < head["p50"] <= head["p95"]
        components = COMPONENTS[model["modality"]]
        assert end_to_end["p95"] >= max(latency["parts"][name]["p50"] for name in components)
        assert model["real_time_factor"] == pytest.approx(end_to_end["p50"] / 500, rel=0.5)


def test_distillation_is_compared_with_the_control(case: EvaluationCase) -> None:
    comparisons = {comparison["model"]: comparison for comparison in case.metrics["distillation"]}
    assert set(comparisons) == {"multimodal", "audio"}
    difference = comparisons["multimodal"]["differences"]["macro_f1"]
    assert difference["low"] > 0, "its control was hardly trained"
    assert comparisons["multimodal"]["verdict"] == "cannot tell", "there is one training of each"
    assert case.summary["distillation"][0] == comparisons["multimodal"]["sentence"]


def test_equal_seeds_give_equal_metrics(case: EvaluationCase, tmp_path: Path) -> None:
    config = make_job().evaluation.model_copy(update={"latency_clips": 0})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        evaluate(
            [EvaluatedFold(case.manifest, case.candidates[1:3])],
            case.store,
            config,
            tmp_path / name,
            seed=9,
        )
    assert (tmp_path / "a/metrics.json").read_text() == (tmp_path / "b/metrics.json").read_text()


def test_slices_partition_the_test_set(case: EvaluationCase) -> None:
    slices = case.metrics["baseline"]["slices"]
    labelled = case.metrics["test"]["decided"]
    kinds = (
        "session",
        "corpus",
        "gender",
        "age",
        "style",
        "duration",
        "rater agreement",
        "transcript",
    )
    for by in kinds:
        sizes = [part["clips"] for part in slices if part["by"] == by]
        assert len(sizes) > 1, by
        assert sum(sizes) == labelled, by


def test_an_unknown_control_or_a_duplicate_name_is_refused(
    case: EvaluationCase, tmp_path: Path
) -> None:
    config = make_job().evaluation
    unknown = [case.candidate("multimodal", compare_to="nobody")]
    with pytest.raises(MultistillError, match="`nobody`"):
        evaluate([EvaluatedFold(case.manifest, unknown)], case.store, config, tmp_path)
    duplicates = [case.candidate("audio"), case.candidate("audio")]
    with pytest.raises(MultistillError, match="two models"):
        evaluate([EvaluatedFold(case.manifest, duplicates)], case.store, config, tmp_path)


def test_a_test_split_without_scorable_clips_is_refused(
    case: EvaluationCase, tmp_path: Path
) -> None:
    empty = pq.read_table(case.manifest / "manifest.parquet", filters=[("split", "!=", "test")])
    pq.write_table(empty, tmp_path / "manifest.parquet")
    with pytest.raises(MultistillError, match="nothing can be scored"):
        evaluate(
            [EvaluatedFold(tmp_path, case.candidates)], case.store, make_job().evaluation, tmp_path
        )


def test_a_wanted_risk_is_chosen_on_validation_and_shown(
    case: EvaluationCase, tmp_path: Path
) -> None:
    job = make_job(evaluation={"risk": 0.3, "latency_clips": 0})
    evaluate([EvaluatedFold(case.manifest, case.candidates)], case.store, job.evaluation, tmp_path)
    for model in read_json(tmp_path / "metrics.json")["models"]:
        by_risk, by_coverage = (
            model["selective"][name] for name in ("risk_threshold", "threshold")
        )
        assert (by_risk["wanted"], by_coverage["wanted"]) == (0.3, job.evaluation.coverage)
    shown = copy(case)
    shown.out = tmp_path
    _, page = shown.report(job)
    assert page.count("at a risk of 30 %") == len(case.candidates)
