"""Corpora learnt one after another: two of tones that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.without_ray import without_ray

from multistill import pipeline
from multistill.cli.run import _show
from multistill.config import JobConfig
from multistill.pipeline import jobfile
from multistill.pipeline.plan import describe
from multistill.training.model_store import ModelStore
from multistill.workspace import Workspace, read_json

pytestmark = pytest.mark.timeout(900)

SPEAKERS, CLIPS = 6, 8

JOB = """
name: in turn
recipe: continual
seed: 3
workspace: {home}/workspace
corpora:
  - {{kind: table, path: {home}/low/t.csv, name: low}}
  - {{kind: table, path: {home}/high/t.csv, name: high}}
labels: {{classes: [calm, anger]}}
split: {{by: speaker, valid: 0.2, test: 0.3}}
features: {{speech: log-mel}}
continual:
  ewc: {{weights: [1, 1.0e+4]}}
  replay_share: 0.5
  model:
    preset: small-audio-student
    width: 16
    feedforward: 16
    classifier: 16
    modality_dropout: 0
    classifier_dropout: 0
    wide_dropout: 0.2
  train: {{epochs: 30, batch_size: 8, learning_rate: 1.0e-2}}
evaluation: {{resamples: 100, latency_clips: 0}}
"""


def make_corpora(home: Path) -> None:
    """The higher tone is anger in the one corpus and calm in the other, which also whistles."""
    random, time = np.random.default_rng(0), np.arange(9_000) / 16_000
    for name, pitches, whistle in (("low", (400, 1200), 0.0), ("high", (1200, 400), 0.3)):
        (home / name).mkdir()
        lines = ["audio_path,text,label,speaker"]
        for number in range(SPEAKERS * CLIPS):
            pitch = pitches[number % 2] * random.uniform(0.95, 1.05)
            wave = 0.3 * np.sin(2 * np.pi * pitch * time)
            wave += whistle * np.sin(2 * np.pi * 4000 * time)
            soundfile.write(home / name / f"{number}.wav", wave, 16_000)
            word = ("Ruhig", "wut")[number % 2]
            lines.append(f"{number}.wav,text {number},{word},p{number // CLIPS}")
        (home / name / "t.csv").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[JobConfig, pipeline.Outcome]]:
    home = tmp_path_factory.mktemp("continual")
    make_corpora(home)
    job = jobfile.parse(JOB.format(home=home), "continual.yaml")
    planned = describe(job)
    assert {row["model"] for row in planned["models"]} == {
        "alone low",
        "alone high",
        "joint low:high",
        *(
            f"{method} {order}"
            for method in ("finetune", "ewc 1", "ewc 10000", "replay", "head-only")
            for order in ("low:high", "high:low")
        ),
    }
    assert planned["trainings"] == 13
    with without_ray():
        yield job, pipeline.run(job)


@pytest.fixture(scope="module")
def courses(finished: tuple[JobConfig, pipeline.Outcome]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the tables by method and by the corpus that was learnt first."""
    report = finished[1].report
    assert report is not None
    found = read_json(report / "report.json")["continual"]["courses"]
    return {(course["method"], course["order"][0]): course for course in found}


def uar(course: dict[str, Any], step: int, corpus: str) -> float:
    value: float = course["given"]["matrix"][step][corpus]["uar"]["value"]
    return value


def test_the_corpus_before_is_forgotten_and_what_helps(
    courses: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for first, second in (("low", "high"), ("high", "low")):
        rows = {method: course for (method, start), course in courses.items() if start == first}
        for name, row in rows.items():
            assert uar(row, 0, first) > 0.85, name
        assert uar(rows["finetune"], 1, second) > 0.85
        lost = uar(rows["finetune"], 1, first)
        assert lost < 0.7, "the same tone has the other meaning"
        assert min(uar(rows["joint"], 1, corpus) for corpus in (first, second)) > 0.85
        average = {
            name: rows[name]["given"]["average"]["uar"]["value"] for name in ("replay", "finetune")
        }
        assert average["replay"] > average["finetune"]
        assert uar(rows["alone"], 1, first) == uar(rows["alone"], 0, first)


def test_figures_over_corpora_are_those_of_the_matrix(
    courses: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for course in courses.values():
        first, second = course["order"]
        for kind in ("given", "predicted"):
            scores = course[kind]
            start, end = scores["matrix"]
            for metric in ("uar", "macro_f1", "weighted_f1"):
                values = [end[name][metric]["value"] for name in (first, second)]
                assert scores["average"][metric]["value"] == pytest.approx(np.mean(values))
                change = values[0] - start[first][metric]["value"]
                assert scores["backward"][metric]["value"] == pytest.approx(change)
                assert scores["forgetting"][metric]["value"] == pytest.approx(-change)
        if course["head"] == "one":
            assert course["given"]["matrix"] == course["predicted"]["matrix"]
            assert course["predicted"]["task_accuracy"] is None
    # With the right model every clip is right, and with the other one, which has learnt the
    # opposite, wrong: a clip is right exactly where its corpus was predicted.
    alone = courses["alone", "low"]
    known, predicted = (
        [cell["uar"]["value"] for cell in alone[kind]["matrix"][1].values()]
        for kind in ("given", "predicted")
    )
    assert known == [1.0, 1.0]
    assert alone["predicted"]["task_accuracy"] == pytest.approx(np.mean(predicted))


def test_what_was_trained_stands_in_the_models_record(
    finished: tuple[JobConfig, pipeline.Outcome],
) -> None:
    job, outcome = finished
    store, index = (
        ModelStore(Workspace(job.workspace)),
        outcome.stages["continual"].summary["models"],
    )
    start = index["alone low"]["fingerprint"]

    def training(name: str) -> dict[str, Any]:
        found: dict[str, Any] = read_json(store.folder(index[name]) / "config.json")["training"]
        return found

    for name in ("finetune low:high", "ewc 10000 low:high", "replay low:high"):
        assert training(name)["initial"][""]["fingerprint"] == start
    assert training("ewc 10000 low:high")["fisher_weight"] == 1e4
    assert training("replay low:high")["corpora"] == {"low": 0.5, "high": 1.0}
    assert training("finetune low:high")["corpora"] == {"high": 1.0}
    whole, part = (
        training(f"{m} low:high")["trained_parameters"] for m in ("finetune", "head-only")
    )
    assert part < whole


def test_a_changed_method_trains_what_stands_on_it_alone(
    finished: tuple[JobConfig, pipeline.Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    job, before = finished
    again = pipeline.run(job)
    assert again.stages["continual"].fingerprint == before.stages["continual"].fingerprint
    _show(again)
    shown = capsys.readouterr().out
    assert "after all corpora" in shown
    assert "ewc 10000" in shown
    continual = job.continual.model_copy(
        update={"methods": ["finetune", "ewc"], "head": "per-task", "orders": [["low", "high"]]}
    )
    other = pipeline.run(job.model_copy(update={"continual": continual}), until="forgetting")
    models = other.stages["continual"].summary["models"]
    old = before.stages["continual"].summary["models"]
    assert models["alone low"] == old["alone low"]
    assert models["finetune low:high"] != old["finetune low:high"], "with a new classifier"
    row = read_json(other.stages["forgetting"].path / "forgetting.json")["courses"][0]
    assert row["head"] == "one per corpus"
    assert row["predicted"]["task_accuracy"] is not None
