"""Baselines on functionals: what is fitted on which part, and where they stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.evaluation_case import EvaluationCase, make_job
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.folds import FoldData, _over_folds
from multistill.evaluation.functionals import CLASSIFIERS, INVERSE_PENALTIES, fit_linear
from multistill.evaluation.inputs import ReferenceInputs
from multistill.features.functionals import FOLDER, INFO
from multistill.workspace import read_json, write_json


def drawn(rows: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Five values on very different scales, three of which tell the class; one is constant."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    means = 2.5 * np.eye(3)[:classes]
    values = np.concatenate(
        [means[truth], np.zeros((rows, 1)), np.full((rows, 1), 5.0)], axis=1
    ) + random.standard_normal((rows, 5)) * [1, 1, 1, 1, 0]
    return (values * [1e4, 1e-3, 1, 1, 1]).astype(np.float32), truth


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_model_finds_the_classes(kind: str, classes: int) -> None:
    train, valid, test = (drawn(200, seed, classes) for seed in (1, 2, 3))
    train[1][::10] = -1  # ties
    train[0][5] = np.nan  # a clip without functionals
    model = fit_linear(kind, *train, *valid, 4)
    assert model.inverse_penalty in INVERSE_PENALTIES
    assert model.validation is not None and model.validation > 0.7
    found = model.predict(test[0], 4)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found[:, classes:] == 0).all(), "classes that training lacks"
    assert (found.argmax(axis=1) == test[1]).mean() > 0.7
    missing = model.predict(np.full((1, 5), np.nan, np.float32), 4)
    assert np.isfinite(missing).all()


def test_a_clip_without_functionals_is_counted_once_over_repetitions_and_corpora() -> None:
    def missing(*folds: tuple[int, str | None, int]) -> int:
        parts = [
            replace(BLANK, repetition=repetition, trained_on=corpus)
            for repetition, corpus, _ in folds
        ]
        entries = [
            {"clips": 9, "validation": 0.5, "missing": count, "inverse_penalty": 1.0}
            for *_, count in folds
        ]
        found = _over_folds(entries, parts)
        assert found["inverse_penalty"] == (None if len(folds) > 1 else 1.0)
        return int(found["missing"])

    assert missing((0, None, 3)) == 3
    assert missing((0, None, 1), (0, None, 2)) == 3
    assert missing((0, None, 1), (0, None, 2), (1, None, 3), (1, None, 0)) == 3
    assert missing((0, "a", 3), (0, "b", 3)) == 3


BLANK = FoldData("", Path(), *[None] * 3, None, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_with_more_values_than_clips_the_model_is_that_of_all_values(kind: str) -> None:
    """It is fitted in the space of the clips, which has as many dimensions as there are clips."""
    (told, truth), random = drawn(40, 1), np.random.default_rng(0)
    values = np.concatenate([told, random.standard_normal((40, 200)).astype(np.float32)], axis=1)
    found = fit_linear(kind, values, truth, values, np.full(40, -1), 3)
    scaled = found.standardised(values)
    model = (
        LinearSVC(C=found.inverse_penalty, dual="auto", max_iter=5000)
        if kind == "svm"
        else LogisticRegression(C=found.inverse_penalty, max_iter=500)
    ).fit(scaled, truth)
    np.testing.assert_allclose(found.weights, model.coef_, atol=2e-4)
    np.testing.assert_allclose(found.bias, model.intercept_, atol=2e-4)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_the_penalty_is_chosen_on_validation_only(kind: str) -> None:
    """Of labels drawn at random, validation prefers a penalty by luck; without it, the default."""
    train, valid = drawn(60, 1), drawn(60, 2)
    nothing = np.full(60, -1)
    blind = fit_linear(kind, *train, valid[0], nothing, 3)
    assert blind.validation is None
    scores = []
    for truth in (valid[1], (valid[1] + 1) % 3):
        scores.append(fit_linear(kind, *train, valid[0], truth, 3).validation)
    assert scores[0] is not None and scores[1] is not None
    assert scores[0] > scores[1]


def make_functionals(case: EvaluationCase, folder: Path) -> Path:
    """eGeMAPS of four values that tell the class, without the last test clips."""
    table = pq.read_table(case.manifest / "manifest.parquet")
    ids, shares = table["utterance_id"].to_pylist(), np.array(table["label_soft"].to_pylist())
    random = np.random.default_rng(3)
    values = shares @ random.standard_normal((7, 4)) + 0.1 * random.standard_normal((len(ids), 4))
    reasons = [None] * (len(ids) - 2) + ["too short"] * 2
    rows = [v.tolist() if r is None else None for v, r in zip(values, reasons, strict=True)]
    (folder / FOLDER).mkdir(parents=True)
    columns = {
        "utterance_id": ids,
        "reason": pa.array(reasons, pa.string()),
        "egemaps": pa.array(rows, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), folder / FOLDER / "00000.parquet")
    sets = {"egemaps": {"set": "eGeMAPSv02", "names": list("abcd")}}
    write_json(folder / INFO, {"version": 1, "package": "2.6.0", "shards": 1, "sets": sets})
    return folder


def test_they_stand_beside_the_probes_and_not_in_the_floor(
    evaluation_case: EvaluationCase, tmp_path: Path
) -> None:
    case, out = evaluation_case, tmp_path / "evaluation"
    out.mkdir()
    config = make_job(evaluation={"resamples": 100, "latency_clips": 0}).evaluation
    inputs = ReferenceInputs(functionals=make_functionals(case, tmp_path / "functionals"))
    folds = [EvaluatedFold(case.manifest, [case.candidate("audio")])]
    evaluate(folds, case.store, config, out, inputs=inputs)
    metrics = read_json(out / "metrics.json")
    entries = {each["name"]: each for each in metrics["references"] if each["role"] == "reference"}
    assert list(entries) == ["eGeMAPS, linear SVM", "eGeMAPS, logistic regression"]
    for entry in entries.values():
        assert entry["metrics"]["uar"]["value"] > 0.6
        assert entry["params_trainable"] == 7 * 5
        assert entry["missing"] == 1, "the other clip without has no features either"
    assert metrics["floor"]["probe"].startswith("linear probe")
    models = set(pq.read_table(out / "predictions.parquet")["model"].to_pylist())
    assert set(entries) < models
