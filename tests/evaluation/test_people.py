"""Spread over speakers, differences between groups, slices and thresholds, on small arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.predictions import sessions_of

from multistill.config import CLASSES, EvaluationConfig
from multistill.evaluation.fairness import score_fairness
from multistill.evaluation.scoring import Prediction, Scorer
from multistill.evaluation.selective import score_selective
from multistill.evaluation.slices import SMALL, slices_of
from multistill.evaluation.speakers import MAX_VALUES, MIN_CLIPS, score_speakers
from multistill.evaluation.utterances import Majority, Utterances
from multistill.metrics.intervals import Resampling

SPEAKERS, EACH = 6, 40
SIZE = SPEAKERS * EACH


def clips(**more: Any) -> Utterances:
    """Six speakers of forty clips, the labels in turn; every tenth clip is a tie."""
    truth = np.arange(SIZE) % 7
    shares = np.eye(7)[truth]
    shares[::3] = 0.6 * shares[::3] + 0.4 * np.eye(7)[(truth[::3] + 1) % 7]
    shares[::10] = 0.5 * np.eye(7)[truth[::10]] + 0.5 * np.eye(7)[(truth[::10] + 1) % 7]
    truth[::10] = -1
    speakers = [f"p{index // EACH}" for index in range(SIZE)]
    fields: dict[str, Any] = {
        "classes": CLASSES,
        "ids": [f"c{index}" for index in range(SIZE)],
        "truth": truth,
        "shares": shares,
        "sessions": speakers,
        "speakers": speakers,
        "groups": speakers,
        "corpora": ["one"] * SIZE,
        "genders": ["F" if index < SIZE / 2 else "M" for index in range(SIZE)],
        "ages": [20.0 if index < SIZE / 2 else 50.0 for index in range(SIZE)],
        "styles": [None] * (SIZE // 2) + ["improvised"] * (SIZE // 2),
        "durations": np.linspace(0.5, 6, SIZE),
        "texts": ["a"] * SIZE,
        "dimensions": np.empty((SIZE, 0)),
    }
    return Utterances(**fields | more)


def majority(seen: np.ndarray | None = None) -> Majority:
    prior = np.tile(np.full(7, 1 / 7), (SIZE, 1))
    known = np.zeros(SIZE, bool) if seen is None else seen
    return Majority(np.zeros(SIZE, np.int64), prior, known, 0.2)


def answers(worse: str = "p5") -> np.ndarray:
    """Right for everybody but one speaker."""
    test = clips()
    right = np.array([speaker != worse for speaker in test.speakers])
    return np.where(right, np.maximum(test.truth, 0), (test.truth + 2) % 7)


def test_the_speaker_whom_a_model_does_not_work_for_is_named() -> None:
    test = clips()
    found = score_speakers(test.speakers, test.truth, answers("p3"), 7)
    assert found is not None
    assert found["count"] == SPEAKERS and found["left_out"] == 0
    assert found["lowest"][0]["speaker"] == "p3"
    assert found["uar"]["min"] == 0.0 and found["uar"]["median"] == 1.0
    assert found["accuracy"]["values"] == [0.0, *[1.0] * (SPEAKERS - 1)]


def test_speakers_of_few_clips_have_no_score() -> None:
    names = ["a"] * 20 + ["b"] * 20 + ["c"] * (MIN_CLIPS - 1)
    truth = np.arange(len(names)) % 7
    found = score_speakers(names, truth, truth, 7)
    assert found is not None and (found["count"], found["left_out"]) == (2, 1)
    assert score_speakers(names[20:], truth[20:], truth[20:], 7) is None


def test_clips_of_unknown_speakers_are_not_one_person() -> None:
    test = clips()
    names = ["" if speaker in ("p0", "p4") else speaker for speaker in test.speakers]
    found = score_speakers(names, test.truth, answers("p3"), 7)
    known = np.array(names) != ""
    assert found is not None
    assert found["unknown"] == (test.truth[~known] >= 0).sum() > 0
    alone = score_speakers([*filter(None, names)], test.truth[known], answers("p3")[known], 7)
    assert found == {**(alone or {}), "unknown": found["unknown"]}
    [by_gender] = fairness(answers(), names=names)
    counted = [(group["speakers"], group["without_speaker"]) for group in by_gender["groups"]]
    assert counted == [(2, 36), (2, 36)]


def test_of_many_speakers_quantiles_are_kept() -> None:
    names = [f"{index // 10:04d}" for index in range(10_000)]
    truth = np.arange(len(names)) % 7
    found = score_speakers(names, truth, np.zeros_like(truth), 7)
    assert found is not None and found["count"] == 1000
    assert len(found["accuracy"]["values"]) == MAX_VALUES


def fairness(
    predicted: np.ndarray, names: list[str] | None = None, **attributes: Any
) -> list[dict[str, Any]]:
    test = clips()
    return score_fairness(
        attributes or {"gender": test.genders},
        names or test.speakers,
        test.truth,
        predicted,
        CLASSES,
        500,
        1,
        0.95,
    )


def test_a_group_that_a_model_is_worse_for_stands_out_of_chance() -> None:
    test = clips()
    male = np.array([gender == "M" for gender in test.genders])
    worse = np.where(male & (np.arange(SIZE) % 2 == 0), (test.truth + 1) % 7, test.truth)
    [found] = fairness(np.maximum(worse, 0))
    assert (found["uar"]["lowest"], found["uar"]["highest"]) == ("M", "F")
    assert found["uar"]["difference"] > found["uar"]["chance"] > found["uar"]["expected"]
    assert found["uar"]["p"] < 0.01
    assert [group["speakers"] for group in found["groups"]] == [3, 3]
    alike = np.where(np.arange(SIZE) % 2 == 0, test.truth, (test.truth + 1) % 7)
    [equal] = fairness(np.maximum(alike, 0))
    assert equal["uar"]["p"] > 0.05


def test_groups_of_few_clips_or_unknown_name_are_not_compared() -> None:
    names = [None if i < 20 else "few" if i < 25 else "a" if i < 120 else "b" for i in range(SIZE)]
    [found] = fairness(answers(), age=names)
    assert [group["name"] for group in found["groups"]] == ["a", "b"]
    assert found["left_out"] == ["few"]
    assert fairness(answers(), corpus=["one"] * SIZE) == []


def test_slices_of_a_kind_hold_every_clip_once_and_small_ones_are_marked() -> None:
    test = clips(corpora=["one"] * (SIZE - 20) + ["two"] * 20)
    parts = slices_of(test, majority())
    kinds = {part.by for part in parts}
    assert kinds == {"session", "corpus", "gender", "age", "duration", "rater agreement"}
    for by in kinds:
        total = np.sum([part.mask for part in parts if part.by == by], axis=0)
        assert (total == 1).all(), by
    one = scorer(test)
    model = one.score(prediction(test))
    assert one.score_metrics(prediction(test).probabilities) == model["metrics"]
    ages = [part["name"] for part in model["slices"] if part["by"] == "age"]
    assert ages == ["18 to 29 years", "50 years and over"]
    marked = {part["name"]: part["small"] for part in model["slices"]}
    assert marked["two"] and not marked["one"] and SMALL > 20


def test_agreement_is_the_share_of_the_class_with_most_votes() -> None:
    test = clips()
    names = {part.name: part.mask for part in slices_of(test, majority())}
    share = test.shares.max(axis=1)
    assert (share[names["all raters agree"]] == 1).all()
    assert share[names["half or more"]] == pytest.approx(
        np.where(test.truth[names["half or more"]] < 0, 0.5, 0.6)
    )
    without = clips(shares=np.eye(7)[np.maximum(test.truth, 0)])
    assert "rater agreement" not in {part.by for part in slices_of(without, majority())}


def test_clips_of_one_duration_are_not_sliced() -> None:
    parts = slices_of(clips(durations=np.full(SIZE, 2.0)), majority())
    assert "duration" not in {part.by for part in parts}


def scorer(test: Utterances) -> Scorer:
    return Scorer(test, majority(), EvaluationConfig(resamples=100), seed=1)


def prediction(test: Utterances) -> Prediction:
    """Sure where right, less sure where wrong."""
    right = np.random.default_rng(2).random(SIZE) < 0.7
    label = np.where(right, np.maximum(test.truth, 0), (test.truth + 1) % 7)
    sure = np.where(right, 0.9, 0.5)
    shares = np.full((SIZE, 7), 0.0) + ((1 - sure) / 6)[:, None]
    shares[np.arange(SIZE), label] = sure
    return Prediction("m", shares, shares, 1.0, thresholds=np.full(SIZE, 0.6))


def test_a_threshold_is_scored_on_what_it_keeps() -> None:
    test = clips()
    found = scorer(test).score(prediction(test))["selective"]
    threshold = found["threshold"]
    labelled = test.truth >= 0
    kept = labelled & (prediction(test).confidence >= 0.6)
    assert threshold["clips"] == kept.sum()
    assert threshold["coverage"]["value"] == pytest.approx(kept.sum() / labelled.sum())
    assert threshold["coverage"]["low"] < threshold["coverage"]["value"]
    assert threshold["accuracy"]["value"] == 1.0
    assert found["excess_aurc"]["value"] == pytest.approx(0, abs=1e-9), "the order is the oracle's"
    assert found["aurc"]["value"] < found["random"]


@pytest.mark.parametrize("threshold", [0.6, np.inf])
def test_a_threshold_of_a_wanted_risk_has_scores_of_its_own(threshold: float) -> None:
    test = clips()
    config = EvaluationConfig(resamples=100, risk=0.1)
    judged = replace(prediction(test), risk_thresholds=np.full(SIZE, threshold))
    found = Scorer(test, majority(), config, seed=1).score(judged)["selective"]
    assert found["threshold"]["wanted"] == config.coverage
    chosen = found["risk_threshold"]
    assert chosen["wanted"] == 0.1
    if threshold == 0.6:
        same = ("threshold", "coverage", "clips", "classes", "accuracy", "uar")
        assert {key: chosen[key] for key in same} == {key: found["threshold"][key] for key in same}
    else:
        assert chosen["threshold"] is None and chosen["clips"] == 0, "nothing is sure enough"
        assert chosen["accuracy"]["value"] is None
    assert scorer(test).score(prediction(test))["selective"]["risk_threshold"] is None


def test_areas_on_resamples_of_one_group_each_are_those_of_the_groups() -> None:
    """Two sessions: a resample holds one of them twice or each once."""
    rng = np.random.default_rng(4)
    truth, confidence = rng.integers(0, 2, 200), np.round(rng.random(200), 2)
    predicted = np.where(rng.random(200) < confidence, truth, 1 - truth)
    resampling = Resampling(sessions_of([100, 100]), 200, seed=3)
    both = score_selective(truth, predicted, confidence, resampling, 0.95)
    alone = [
        score_selective(
            truth[part], predicted[part], confidence[part], Resampling(sessions_of([100]), 10, 1), 1
        )
        for part in (slice(0, 100), slice(100, 200))
    ]
    assert both is not None and alone[0] is not None and alone[1] is not None
    first, second = (each["aurc"]["value"] for each in alone)
    values = {0: second, 1: both["aurc"]["value"], 2: first}
    draws = np.array([values[int(count)] for count in resampling.counts()[:, 0]])
    width = both["aurc"]["high"] - both["aurc"]["value"]
    expected = 12.706 * draws.std(ddof=1) * 2**0.5
    assert width == pytest.approx(min(expected, 1 - both["aurc"]["value"]), rel=0.05)
