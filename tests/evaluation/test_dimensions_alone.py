"""A job of dimensions alone: training, soft targets, evaluation and report have no class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import PREPARE_SUMMARY, artifact
from helpers.training_corpus import make_corpus, make_task, trained

from multistill.config import DistillationConfig, EvaluationConfig, JobConfig
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import read_soft_targets
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.features.cache import open_store
from multistill.inference.predict import predict
from multistill.models.files import load_model, read_model_config
from multistill.pipeline.record import figures_table, floor_figures, main_figures
from multistill.report.build import write_report
from multistill.report.terminal import table
from multistill.training.task import TrainingTask
from multistill.workspace import read_json

NAMES = ("valence", "arousal")


class Case:
    """Two teachers, distilled students and controls of two seeds, evaluated and reported."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.corpus = make_corpus(home / "manifest", rows=150, unlabelled=7)
        self.manifest, self.store = self.corpus[0].parent, self.corpus[1]
        self.folders: dict[str, Path] = {}
        for seed in (1, 2):
            self.train(f"teacher{seed}", self.task(epochs=6), seed)
        self.targets = home / "targets" / "soft_targets.parquet"
        self.targets.parent.mkdir()
        teachers = [self.folders["teacher1"], self.folders["teacher2"]]
        soft_targets(self.manifest, self.store, teachers, {}, False, False, self.targets)
        config = DistillationConfig(weight=0.5, targets="in-sample")
        student = replace(self.task(epochs=6), soft_targets=str(self.targets), distillation=config)
        for seed in (3, 4):
            self.train(f"student{seed}", student, seed)
            self.train(f"control{seed}", student.control("c").with_train(epochs=1), seed)
        fold = EvaluatedFold(
            self.manifest,
            [
                Candidate("teacher", "teacher", teachers),
                self.candidate("text", "student", "student", compare_to="text-control"),
                self.candidate("text-control", "control", "control"),
            ],
        )
        self.out = home / "evaluation"
        self.out.mkdir()
        settings = EvaluationConfig(resamples=100, latency_clips=0)
        self.summary = evaluate(
            [fold], self.store, settings, self.out, dimensions=NAMES, with_classes=False
        )
        self.metrics: dict[str, Any] = read_json(self.out / "metrics.json")

    def task(self, **train: Any) -> TrainingTask:
        base = make_task(self.corpus, metric="ccc", **train)
        spec = replace(base.spec, dimensions=NAMES, num_classes=0)
        return replace(base, spec=spec, tasks=dict.fromkeys(NAMES, 1.0))

    def train(self, name: str, task: TrainingTask, seed: int) -> None:
        role: Any = {"t": "teacher", "s": "student", "c": "control"}[name[0]]
        trained(replace(task, name=name, role=role, seed=seed), self.home / name)
        self.folders[name] = self.home / name

    def candidate(self, name: str, role: str, members: str, **more: Any) -> Candidate:
        first, second = self.folders[f"{members}3"], self.folders[f"{members}4"]
        return Candidate(name, role, [first], repeats=[[second]], **more)

    def report(self) -> tuple[dict[str, Any], str]:
        job = JobConfig.model_validate(
            {"name": "alone", "corpora": [{"kind": "demo"}], "tasks": list(NAMES)}
        )
        out = self.home / "report"
        out.mkdir()
        report = write_report(
            out,
            job=job,
            artifacts={
                "manifest": artifact("prepare", self.manifest, PREPARE_SUMMARY),
                "features": artifact("features", self.store, {"clips": 150, "quarantined": 2}),
                "soft_targets": artifact("distill", self.targets.parent),
                "evaluation": artifact("evaluate", self.out),
            },
            histories={"student3": read_json(self.folders["student3"] / "history.json")},
        )
        return report, (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("alone"))


def test_models_and_soft_targets_have_no_class(case: Case) -> None:
    config = read_model_config(case.folders["student3"])
    assert config["labels"] == [] and config["spec"]["num_classes"] == 0
    assert config["training"]["validation"]["ccc"] > 0.3
    targets = read_soft_targets(case.targets)
    assert targets.classes == () and targets.outputs.shape[1] == 0
    store = open_store(str(case.store))
    members = [
        predict(load_model(case.folders[name]), store, targets.ids, "cpu").dimensions
        for name in ("teacher1", "teacher2")
    ]
    np.testing.assert_allclose(targets.dimensions, np.mean(members, axis=0), atol=1e-5)


def test_metrics_and_verdicts_are_of_the_ccc(case: Case) -> None:
    metrics = case.metrics
    assert metrics["classes"] == [] and metrics["baseline"]["name"] == "training mean"
    for model in (*metrics["models"], *metrics["references"]):
        assert set(model["metrics"]) == {"ccc", "pearson", "rmse"}
        assert not {"confusion", "calibration", "slices", "in_sample"} & set(model)
        values = [
            entry["metrics"]["ccc"]["value"]
            for dimension in metrics["dimensions"]
            for entry in (*dimension["models"], *dimension["references"])
            if entry["name"] == model["name"]
        ]
        assert model["metrics"]["ccc"]["value"] == pytest.approx(sum(values) / 2)
    assert metrics["floor"]["metric"] == "ccc" and "training mean" in metrics["floor"]["sentence"]
    assert metrics["floor"]["student"] == "text"
    (comparison,) = metrics["distillation"]
    assert comparison["metric"] == "ccc" and comparison["seeds"] == 2
    assert "mean CCC" in comparison["sentence"]
    assert case.summary["headline"]["text"]["ccc_valence"] > 0.3


def test_a_model_that_is_no_better_than_a_constant_is_not_trained(case: Case) -> None:
    from multistill.evaluation.trained import not_trained_on_validation

    training = dict(case.metrics["models"][1]["training"][0])
    assert not_trained_on_validation([training]) is None
    training["validation"] = {"ccc": -0.1, "bars": {"ccc": 0.0}}
    assert "the CCC is -0.100, and that of a constant 0" in str(
        not_trained_on_validation([training])
    )


def test_predictions_have_values_and_no_labels(case: Case) -> None:
    names = pq.read_schema(case.out / "predictions.parquet").names
    assert {"valence", "valence_truth", "arousal", "arousal_truth"} < set(names)
    assert not {"label", "distribution", "truth"} & set(names)


def test_the_report_names_no_class(case: Case) -> None:
    report, page = case.report()
    assert report["classes"] == [] and len(report["dimensions"]) == 2
    for absent in ("UAR", "macro F1", "Confusion", "always ", "ECE", "McNemar"):
        assert absent not in page, absent
    assert "training mean" in page and "mean CCC" in page
    shown = table(report)
    assert [column.header for column in shown.columns][2:5] == ["CCC", "Pearson", "RMSE"]
    figures, best = main_figures(case.metrics)
    assert best == "text" and figures["test_best_student_ccc"] > 0.3
    assert floor_figures(case.metrics["floor"])["test_teacher_ccc_above_majority"] > 0
    assert "training mean" in figures_table(case.metrics)
