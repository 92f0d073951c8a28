"""Scores of dimensions: intervals, baseline, probe, paired differences, files and page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.joint_case import make_joint_corpus
from helpers.training_corpus import make_corpus, make_task, trained

from multistill.config import EvaluationConfig
from multistill.errors import MultistillError
from multistill.evaluation.dimensions import DimensionScorer, probe_dimensions
from multistill.evaluation.evaluate import (
    Candidate,
    EvaluatedFold,
    _table,
    evaluate,
    predictions_schema,
)
from multistill.evaluation.utterances import read_utterances
from multistill.features.initial_states import InitialStates
from multistill.features.store import FeatureStore
from multistill.metrics.dimensions import dimension_metrics
from multistill.metrics.intervals import Clusters, Resampling
from multistill.report.dimensions import dimension_lines, dimension_rows
from multistill.training.task import TrainingTask
from multistill.workspace import read_json

NAMES = ("valence", "arousal")
CONFIG = EvaluationConfig(resamples=100, latency_clips=0)


class Evaluated:
    """A student and its control, of two seeds each, on a corpus with gaps."""

    def __init__(self, home: Path) -> None:
        self.corpus = make_corpus(home / "corpus", rows=150, unlabelled=7)
        self.manifest, self.store = self.corpus[0].parent, self.corpus[1]
        self.folders = {}
        for name, epochs, seed in (("a", 8, 3), ("b", 8, 4), ("c", 1, 3), ("d", 1, 4)):
            trained(replace(self.task(epochs=epochs), seed=seed), home / name)
            self.folders[name] = home / name
        self.candidates = [
            self.candidate("audio", "student", "ab", compare_to="audio-control"),
            self.candidate("audio-control", "control", "cd"),
        ]
        self.out = home / "out"
        self.out.mkdir()
        fold = EvaluatedFold(self.manifest, self.candidates)
        self.summary = evaluate([fold], self.store, CONFIG, self.out, dimensions=NAMES)
        self.metrics: dict[str, Any] = read_json(self.out / "metrics.json")

    def task(self, **train: Any) -> TrainingTask:
        base = make_task(self.corpus, **train)
        tasks = {"classes": 1.0, **dict.fromkeys(NAMES, 1.0)}
        return replace(base, spec=replace(base.spec, dimensions=NAMES), tasks=tasks)

    def candidate(self, name: str, role: str, members: str, **more: Any) -> Candidate:
        first, *others = (self.folders[member] for member in members)
        return Candidate(name, role, [first], repeats=[[other] for other in others], **more)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return Evaluated(tmp_path_factory.mktemp("evaluated"))


def test_every_dimension_has_scores_with_intervals(case: Evaluated) -> None:
    for entry, name in zip(case.metrics["dimensions"], NAMES, strict=True):
        assert entry["dimension"] == name
        assert entry["clips"] <= case.metrics["test"]["clips"]
        student, control = entry["models"]
        assert student["seeds"]["count"] == 2
        value = student["metrics"]["ccc"]
        assert value["low"] < value["value"] < value["high"] <= 1
        assert student["metrics"]["ccc"]["value"] > control["metrics"]["ccc"]["value"]
        assert entry["baseline"]["metrics"]["ccc"]["value"] == pytest.approx(0, abs=1e-9)
        probes = [probe["metrics"]["ccc"]["value"] for probe in entry["references"]]
        assert len(probes) == 3 and max(probes) > 0.5
        (comparison,) = entry["distillation"]
        assert comparison["model"] == "audio" and name in comparison["sentence"]
        assert comparison["differences"]["ccc"]["value"] > 0
    assert case.metrics["dimensions"][0]["clips"] < case.metrics["test"]["clips"]


def test_clips_without_a_class_count_for_no_metric_of_classes(case: Evaluated) -> None:
    test = case.metrics["test"]
    assert test["decided"] + test["ties"] < test["clips"]
    for model in case.metrics["models"]:
        assert sum(map(sum, model["confusion"])) == test["decided"]


def test_predictions_hold_predicted_and_true_values(case: Evaluated) -> None:
    table = pq.read_table(case.out / "predictions.parquet").to_pandas()
    student = table[table["model"] == "audio"]
    known = student["valence_truth"].notna()
    assert known.any() and not known.all() and student["valence"].notna().all()
    truth, predicted = student.loc[known, "valence_truth"], student.loc[known, "valence"]
    rmse = float(np.sqrt(((truth - predicted) ** 2).mean()))
    entry = case.metrics["dimensions"][0]["models"][0]
    assert entry["metrics"]["rmse"]["value"] == pytest.approx(rmse, rel=1e-4)


def test_baselines_without_dimensions_stand_beside_them(case: Evaluated) -> None:
    """Rows of predictions.parquet of a model of classes alone have no values."""
    test = read_utterances(case.manifest, "test", FeatureStore(case.store), NAMES)
    shares = np.full((len(test), len(test.classes)), 1 / len(test.classes))
    rows = _table(predictions_schema(test.classes, NAMES), "ComParE, linear SVM", test, shares)
    assert rows["valence"].null_count == len(test) > rows["valence_truth"].null_count


def test_probes_read_a_trained_encoder_as_it_is_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def probe(modality: str, store: Any, *others: Any) -> Any:
        read.append(type(store))
        return probe_dimensions(modality, store, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("multistill.evaluation.evaluate.probe_dimensions", probe)
    manifest, store = make_joint_corpus(tmp_path / "corpus", "last-1")
    (tmp_path / "out").mkdir()
    fold = EvaluatedFold(manifest.parent, [])
    evaluate([fold], store, CONFIG, tmp_path / "out", dimensions=NAMES)
    assert set(read) == {InitialStates}


def test_models_of_other_dimensions_are_refused(case: Evaluated, tmp_path: Path) -> None:
    fold = EvaluatedFold(case.manifest, case.candidates)
    with pytest.raises(MultistillError, match="has the dimensions valence, arousal, and the"):
        evaluate([fold], case.store, CONFIG, tmp_path, dimensions=("valence",))


def test_lines_and_rows_name_every_model(case: Evaluated) -> None:
    lines = list(dimension_lines(case.metrics["dimensions"]))
    assert len(lines) == 4 and "audio-control" in lines[0] and lines[1].startswith("audio:")
    rows = dimension_rows(case.metrics["dimensions"])
    names = [row["model"]["name"] for row in rows if row["dimension"] == "arousal"]
    assert names[0] == "training mean" and names[-2:] == ["audio", "audio-control"]
    assert [row["gain"] is not None for row in rows[-2:]] == [True, False]


def test_intervals_are_of_resampled_groups() -> None:
    """Groups that agree in themselves and differ from each other give a wide interval."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 200)
    groups = np.arange(200) % 5
    error = rng.normal(0, 1.5, 5)

    def width(index: np.ndarray, predicted: np.ndarray) -> float:
        clusters = Clusters("session", index, len(np.unique(index)))
        resampling = Resampling(clusters, 300, 1)
        mean = np.full((200, 1), 3.0)
        scorer = DimensionScorer("valence", truth[:, None], mean, clusters, resampling, 0.95, None)
        scorer.score_model(
            {"name": "m", "role": "student", "modality": "audio"}, [predicted[:, None]]
        )
        found = scorer.describe()["models"][0]["metrics"]["rmse"]
        return float(found["high"] - found["low"])

    predicted = truth + error[groups]
    assert width(groups, predicted) > 2 * width(np.arange(200), predicted)


def test_folds_are_scored_alone_and_together() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, (90, 2))
    predicted = truth + rng.normal(0, 0.5, (90, 2))
    folds = np.repeat([0, 1, 2], 30)
    clusters = Clusters("session", np.arange(90) // 10, 9)
    scorer = DimensionScorer(
        "mean", truth, np.full((90, 2), 3.0), clusters, Resampling(clusters, 50, 1), 0.95, folds
    )
    found = scorer.score("m", [predicted])
    expected = [
        dimension_metrics(NAMES, predicted[folds == fold], truth[folds == fold])["ccc"]
        for fold in range(3)
    ]
    assert found["folds"]["ccc"]["values"] == pytest.approx(expected)
    assert found["folds"]["ccc"]["mean"] == pytest.approx(np.mean(expected))
    together = dimension_metrics(NAMES, predicted, truth)["ccc"]
    assert found["metrics"]["ccc"]["value"] == pytest.approx(together)
