"""The matrix of continual learning against figures that are computed one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, Corpus, as_two, make_corpus, make_task
from sklearn.metrics import balanced_accuracy_score, f1_score

from multistill.config import EvaluationConfig
from multistill.config.continual import Variant
from multistill.evaluation.continual import score_courses
from multistill.evaluation.course_models import FoldModels
from multistill.evaluation.courses import RESULTS, Answers, Course
from multistill.evaluation.utterances import Utterances, read_utterances
from multistill.features.cache import open_store
from multistill.inference.predict import predict_logits
from multistill.metrics.classification import softmax
from multistill.models.build import build
from multistill.models.files import ModelInfo, load_model, save_model
from multistill.typing import DoubleArray
from multistill.workspace import read_json

CORPORA = ("first", "second")
TEMPERATURES = {"a": 1.0, "b": 0.3}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return as_two(make_corpus(folder, 480), folder / "two")


@pytest.fixture(scope="module")
def folders(two: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Untrained heads of two seeds, `a` after the first corpus and `b` after both."""
    root, task = tmp_path_factory.mktemp("models"), make_task(two)
    found: dict[str, list[Path]] = {"a": [], "b": []}
    for number, (name, seed) in enumerate((n, s) for n in "ab" for s in range(2)):
        torch.manual_seed(number)
        model = build(replace(task.spec, paths="deep"), AUDIO_DIM, TEXT_DIM)
        for parameter in model.classifier.parameters():  # type: ignore[union-attr]
            torch.nn.init.normal_(parameter)
        info = ModelInfo(
            "teacher", temperature=TEMPERATURES[name], training={"trained_parameters": 5}
        )
        folder = root / f"{name}{seed}"
        save_model(model, folder, info)
        found[name].append(folder)
    return found


def score(
    two: Corpus,
    folders: dict[str, list[Path]],
    out: Path,
    steps: list[Answers],
    variant: Variant = Variant("finetune", "finetune"),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """The first row of the results."""
    course = Course(variant, CORPORA, "one", steps)
    fold = FoldModels(two[0].parent, folders)
    config = EvaluationConfig(resamples=100, latency_clips=0)
    score_courses([fold], two[1], [course], CORPORA, config, out, 0, "session")
    results: dict[str, Any] = read_json(out / RESULTS)
    return results


@pytest.fixture(scope="module")
def clips(two: Corpus) -> Utterances:
    return read_utterances(two[0].parent, "test", open_store(two[1]))


def expected(clips: Utterances, corpus: str, probabilities: DoubleArray) -> dict[str, float]:
    """By scikit-learn."""
    rows = (np.array(clips.corpora) == corpus) & (clips.truth >= 0)
    truth, answers = clips.truth[rows], probabilities[rows].argmax(axis=1)
    labels = np.unique(truth)
    return {
        "uar": float(balanced_accuracy_score(truth, answers)),
        "macro_f1": float(f1_score(truth, answers, labels=labels, average="macro")),
        "weighted_f1": float(f1_score(truth, answers, labels=labels, average="weighted")),
    }


def answers(two: Corpus, clips: Utterances, body: Path, classifier: Path) -> DoubleArray:
    """Calibrated, of a model that was put together here."""
    model, other = load_model(body), load_model(classifier)
    model.classifier.load_state_dict(other.classifier.state_dict())  # type: ignore[union-attr]
    logits = predict_logits(model, open_store(two[1]), clips.ids, "cpu").astype(np.float64)
    return softmax(logits / TEMPERATURES[classifier.name[0]])


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_cells_are_means_over_seeds(
    two: Corpus, folders: dict[str, list[Path]], clips: Utterances, tmp_path: Path
) -> None:
    steps: list[Answers] = [{"first": ("a", "a")}, dict.fromkeys(CORPORA, ("b", "b"))]
    results = score(two, folders, tmp_path, steps)
    course = results["courses"][0]
    for step, name in enumerate("ab"):
        given = [answers(two, clips, folder, folder) for folder in folders[name]]
        for corpus in CORPORA:
            cell = course["given"]["matrix"][step][corpus]
            per_seed = [expected(clips, corpus, each) for each in given]
            for metric, found in cell.items():
                assert found["value"] == pytest.approx(np.mean([each[metric] for each in per_seed]))
                assert found["low"] <= found["value"] <= found["high"]
    assert course["given"]["matrix"] == course["predicted"]["matrix"]
    assert results["seeds"] == 2


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_classifiers_per_corpus_stand_on_the_newest_body(
    two: Corpus, folders: dict[str, list[Path]], clips: Utterances, tmp_path: Path
) -> None:
    """With the corpus given its own answers, without it the most confident one."""
    single = {name: paths[:1] for name, paths in folders.items()}
    a, b = single["a"][0], single["b"][0]
    steps: list[Answers] = [{"first": ("a", "a")}, {"first": ("b", "a"), "second": ("b", "b")}]
    course = score(two, single, tmp_path, steps)["courses"][0]
    own = {"first": answers(two, clips, b, a), "second": answers(two, clips, b, b)}
    for corpus in CORPORA:
        cell = course["given"]["matrix"][1][corpus]
        for metric, value in expected(clips, corpus, own[corpus]).items():
            assert cell[metric]["value"] == pytest.approx(value)
    # The first classifier answers for what is not learnt yet.
    only = answers(two, clips, a, a)
    cell = course["given"]["matrix"][0]["second"]
    assert cell["uar"]["value"] == pytest.approx(expected(clips, "second", only)["uar"])
    stacked = np.stack([own["first"], own["second"]])
    chosen = stacked.max(axis=2).argmax(axis=0)
    assert 0 < chosen.mean() < 1, "neither is always the more confident"
    mixed = stacked[chosen, np.arange(len(chosen))]
    for corpus in CORPORA:
        cell = course["predicted"]["matrix"][1][corpus]
        assert cell["uar"]["value"] == pytest.approx(expected(clips, corpus, mixed)["uar"])
    truth = np.array([CORPORA.index(name) for name in clips.corpora])
    assert course["predicted"]["task_accuracy"] == pytest.approx((chosen == truth).mean())


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_a_weight_is_chosen_by_the_validation_clips_of_all_corpora(
    two: Corpus, folders: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Of two weights, the one whose model is better there; a method with one has no choice."""
    ends = {1.0: "a", 100.0: "b"}
    variants = [Variant(f"ewc {weight:g}", "ewc", weight) for weight in ends]
    answers_of = [dict.fromkeys(CORPORA, (name, name)) for name in ends.values()]
    courses = [
        Course(variant, CORPORA, "one", [{"first": ("a", "a")}, own])
        for variant, own in zip(variants, answers_of, strict=True)
    ]
    free = Course(Variant("finetune", "finetune"), CORPORA, "one", courses[1].steps)
    fold = FoldModels(two[0].parent, folders)
    config = EvaluationConfig(resamples=100, latency_clips=0)
    score_courses(
        [fold], two[1], [*courses, free], CORPORA, config, tmp_path, 0, "session", "macro_f1"
    )
    rows = read_json(tmp_path / RESULTS)["courses"]
    valid = read_utterances(two[0].parent, "valid", open_store(two[1]))
    scores = [
        np.mean(
            [
                expected(valid, corpus, answers(two, valid, folder, folder))["macro_f1"]
                for folder in folders[name]
                for corpus in CORPORA
            ]
        )
        for name in ends.values()
    ]
    assert [row["validation"] for row in rows] == [*map(pytest.approx, scores), None]
    assert scores[0] != scores[1]
    assert [row["chosen"] for row in rows] == [scores[0] > scores[1], scores[1] > scores[0], False]


def test_intervals_of_a_change_are_paired(
    two: Corpus, folders: dict[str, list[Path]], tmp_path: Path
) -> None:
    """A model that stays the same has changed by nothing, with certainty."""
    single = {name: paths[:1] for name, paths in folders.items()}
    steps: list[Answers] = [{"first": ("a", "a")}, {"first": ("a", "a"), "second": ("b", "b")}]
    course = score(two, single, tmp_path, steps)["courses"][0]
    for name in ("backward", "forgetting"):
        for found in course["given"][name].values():
            assert found == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_majority_is_that_of_each_corpus(
    two: Corpus, folders: dict[str, list[Path]], clips: Utterances, tmp_path: Path
) -> None:
    steps: list[Answers] = [{"first": ("a", "a")}, dict.fromkeys(CORPORA, ("b", "b"))]
    results = score(two, folders, tmp_path, steps)["corpora"]
    train = read_utterances(two[0].parent, "train", open_store(two[1]))
    for corpus in CORPORA:
        truth = train.truth[(np.array(train.corpora) == corpus) & (train.truth >= 0)]
        label = clips.classes[np.bincount(truth).argmax()]
        assert results[corpus]["majority"]["label"] == label
        present = np.unique(clips.truth[(np.array(clips.corpora) == corpus) & (clips.truth >= 0)])
        found = results[corpus]["majority"]["metrics"]["uar"]["value"]
        assert found == pytest.approx(1 / len(present))
