"""Gains by share of labels on real small trainings: values, what they are kept apart from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_corpus import make_corpus, make_task, trained, with_teacher

from multistill.config import EvaluationConfig
from multistill.evaluation.candidates import Candidate, LoadedModel
from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.utterances import read_utterances
from multistill.features.cache import open_store
from multistill.metrics.classification import from_confusion
from multistill.training.data import TrainingData
from multistill.training.task import seed_tasks
from multistill.workspace import read_json

SHARES = (0.1, 1.0)
CONFIG = EvaluationConfig(resamples=200, latency_clips=0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Students and controls at two shares, two seeds each, and their metrics.json."""
    home = tmp_path_factory.mktemp("shares")
    manifest, store = make_corpus(home / "corpus", rows=400)
    base = make_task((manifest, store), "audio", epochs=3)
    student = with_teacher(base, home / "targets.parquet", 0.3)
    candidates, rows = [], {}
    for share in SHARES:
        name = f"audio-labels{100 * share:g}"
        own = replace(student, name=name, label_share=share, unlabelled=share < 1)
        for task in (own, own.control(f"{name}-control")):
            members = seed_tasks(task, 2)
            for member in members:
                trained(member, home / member.name)
            rows[task.name] = len(TrainingData.open(members[0]).train)
            folders = [home / member.name for member in members]
            candidates.append(
                Candidate(
                    task.name,
                    task.role,
                    folders[:1],
                    compare_to=None if task.role == "control" else f"{name}-control",
                    repeats=[[folder] for folder in folders[1:]],
                    label_share=("audio", share),
                )
            )
    trained(base, home / "audio")
    in_tables = Candidate("audio", "student", [home / "audio"])
    summary = evaluate(
        [EvaluatedFold(manifest.parent, [in_tables, *candidates])], store, CONFIG, home, seed=3
    )
    return {
        "home": home,
        "manifest": manifest.parent,
        "store": store,
        "candidates": candidates,
        "rows": rows,
        "summary": summary,
        "metrics": read_json(home / "metrics.json"),
    }


def test_gains_are_differences_of_means_over_seeds(case: dict[str, Any]) -> None:
    store = open_store(case["store"])
    test = read_utterances(case["manifest"], "test", store)

    def scores(candidate: Candidate) -> list[dict[str, float]]:
        found = []
        for folders in (candidate.folders, *candidate.repeats):
            single = replace(candidate, folders=folders, repeats=())
            loaded = LoadedModel(single, store, case["manifest"], torch.device("cpu"))
            predicted = loaded.probabilities(test.ids).argmax(axis=1)
            confusion = np.zeros((7, 7))
            known = test.truth >= 0
            np.add.at(confusion, (test.truth[known], predicted[known]), 1)
            found.append({k: float(v) for k, v in from_confusion(confusion).items()})
        return found

    points = case["metrics"]["label_shares"]
    assert [(point["student"], point["share"]) for point in points] == [
        ("audio", share) for share in SHARES
    ]
    by_name = {candidate.name: candidate for candidate in case["candidates"]}
    for point in points:
        name = f"audio-labels{100 * point['share']:g}"
        distilled, control = scores(by_name[name]), scores(by_name[f"{name}-control"])
        for metric in ("uar", "macro_f1"):
            values = [[each[metric] for each in seeds] for seeds in (distilled, control)]
            means = [float(np.mean(each)) for each in values]
            for role, mean, own in zip(("distilled", "control"), means, values, strict=True):
                assert point[role][metric]["value"] == pytest.approx(mean)
                assert point[role][metric]["sd"] == pytest.approx(np.std(own, ddof=1))
                assert point[role][metric]["values"] == pytest.approx(own)
            gain = point["gain"][metric]
            assert gain["value"] == pytest.approx(means[0] - means[1])
            assert gain["low"] <= gain["value"] <= gain["high"]
            baseline = case["metrics"]["baseline"]["metrics"][metric]["value"]
            assert point["majority"][metric] == baseline
        assert point["seeds"] == 2
        assert point["train_clips"] == case["rows"][name]
        assert point["labelled_clips"] == case["rows"][f"{name}-control"]
    assert points[0]["labelled_clips"] < points[0]["train_clips"] == points[1]["train_clips"]


def test_they_are_in_no_other_table(case: dict[str, Any]) -> None:
    metrics = case["metrics"]
    assert [model["name"] for model in metrics["models"]] == ["audio"]
    assert metrics["floor"]["student"] == "audio"
    assert metrics["distillation"] == []
    assert not any("labels" in name for name in case["summary"]["headline"])
    assert not any("labels" in name for name in case["summary"]["not_trained"])


def test_a_point_whose_models_learnt_nothing_has_no_verdict(case: dict[str, Any]) -> None:
    """Weights of a training that hardly moved, and what its config.json then says."""
    from multistill.evaluation.label_shares import describe_label_shares
    from multistill.evaluation.scoring import Scorer
    from multistill.evaluation.utterances import majority_of, read_training_statistics

    test = read_utterances(case["manifest"], "test", open_store(case["store"]))
    majority = majority_of(test, read_training_statistics(case["manifest"]))
    scorer = Scorer(test, majority, CONFIG, 3)
    baseline = scorer.score_baseline()
    right = np.eye(7)[np.maximum(test.truth, 0)]
    training = read_json(case["home"] / "audio" / "config.json")["training"]
    lost = {**training, "train_loss": [1.0, 1.0]}
    pair = [each for each in case["candidates"] if each.label_share == ("audio", 1.0)]
    for untrained in ([], ["control"], ["distilled"], ["distilled", "control"]):
        models = {
            each.name: {
                "seeds": scorer.score_seeds(each.name, [right, right]),
                "training": [lost if role in untrained else training] * 2,
            }
            for role, each in zip(("distilled", "control"), pair, strict=True)
        }
        [point] = describe_label_shares(pair, models, baseline, scorer)
        assert list(point["not_trained"]) == untrained
        assert (point["verdict"] == "not trained") is bool(untrained)
