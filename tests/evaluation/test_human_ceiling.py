"""One rater against the others on the test clips: exact counts, comparable rows, reasons."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluation_case import EvaluationCase, make_job
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.corpora.agreement import distinct, leave_one_rater_out
from multistill.evaluation.evaluate import EvaluatedFold
from multistill.evaluation.folds import open_fold
from multistill.evaluation.human_ceiling import (
    HUMAN,
    describe_human_ceiling,
    leave_one_out_cells,
    rated_corpora,
)
from multistill.evaluation.scoring import Scorer
from multistill.evaluation.utterances import majority_of
from multistill.features.store import FeatureStore
from multistill.metrics.classification import from_confusion
from multistill.workspace import write_json

votes_table = st.lists(
    st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=10
).map(lambda rows: np.array(rows, dtype=np.int64))


@settings(max_examples=60, deadline=None)
@given(votes_table)
def test_the_clips_add_up_to_the_ceiling_of_the_corpus(votes: np.ndarray) -> None:
    votes[votes.sum(axis=1) < 2] = 0
    cells = leave_one_out_cells(votes).sum(axis=0).reshape(4, 4)
    expected = leave_one_rater_out(*distinct(Counter(map(tuple, votes.tolist()))))
    assert cells.sum() == (expected.answers if expected else 0)
    if expected:
        found = from_confusion(cells)
        assert found["accuracy"] == pytest.approx(expected.accuracy)
        assert found["uar"] == pytest.approx(expected.uar)


def scorer_of(case: EvaluationCase) -> Scorer:
    part = open_fold(EvaluatedFold(case.manifest, ()), FeatureStore(case.store))
    majority = majority_of(part.test, part.training)
    return Scorer(part.test, majority, make_job().evaluation, seed=5)


def test_the_ceiling_has_the_clips_classes_and_groups_of_the_models(
    evaluation_case: EvaluationCase,
) -> None:
    found = evaluation_case.metrics["human_ceiling"]
    assert found["reason"] is None
    assert found["name"] == HUMAN
    assert found["clips"] <= evaluation_case.metrics["test"]["clips"]
    # Ten raters, six or more of one opinion: an answer against nine others is decided unless
    # five remain against five, which nine cannot, or the clip is one of the ties.
    accuracy = found["metrics"]["accuracy"]
    assert 0.6 < accuracy["low"] < accuracy["value"] < accuracy["high"] < 1
    assert found["metrics"]["uar"]["low"] is not None


@pytest.mark.parametrize(
    ("rated", "words"),
    [({}, "no single answers of raters: case"), ({"case": True}, "weighted by intensity")],
)
def test_without_answers_the_reason_is_told(
    evaluation_case: EvaluationCase, rated: dict[str, bool], words: str
) -> None:
    found = describe_human_ceiling([evaluation_case.manifest], rated, scorer_of(evaluation_case))
    assert set(found) == {"reason"}
    assert words in found["reason"]


def test_rated_corpora_are_read_from_the_quality_report(tmp_path: Path) -> None:
    quality = tmp_path / "quality.json"
    assert rated_corpora(quality) == {}
    write_json(quality, {"raters": None})
    assert rated_corpora(quality) == {}
    corpora = {"a": {"weighted_votes": True}, "b": {"weighted_votes": False}}
    write_json(quality, {"raters": {"corpora": corpora}})
    assert rated_corpora(quality) == {"a": True, "b": False}


def test_the_report_shows_it_beside_the_models(evaluation_case: EvaluationCase) -> None:
    report, page = evaluation_case.default_report
    found = report["human_ceiling"]
    results = page[page.index('id="results"') : page.index('id="distillation"')]
    assert HUMAN in results
    assert f"{found['metrics']['uar']['value']:.3f}" in results
    assert f"{found['answers']:,} answers of raters" in " ".join(results.split())
