"""Advice of searches that run or are shared: provoked and followed, without Ray."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from helpers.advice import says, told
from helpers.recording_logger import RecordingLogger
from helpers.search_case import TASK, choice, interval, make_spec, study_of, write_spec
from helpers.training_corpus import make_corpus, make_task

from multistill.cluster.handback import Request
from multistill.config import FeaturesConfig, SearchConfig
from multistill.errors import UsageError
from multistill.search import cost
from multistill.search import study as study_module
from multistill.search.experiment import ExperimentResult, Interrupt
from multistill.search.space import apply
from multistill.search.trial_folders import trial_folder
from multistill.workspace import read_json, write_json


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Resources of a cluster that does not run."""
    nodes = [{"CPU": 8.0, "GPU": 2.0}]
    monkeypatch.setattr(study_module, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(study_module, "dashboard_url", lambda: "http://127.0.0.1:8265")
    return nodes


def test_what_trials_of_several_workers_need(
    tmp_path: Path, nodes: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(tmp_path, second="latency", workers_per_trial=2)
    with told("use `workers_per_trial: 1` or `second: parameters`", UsageError):
        study_module._check(spec)
    for changes in ({"workers_per_trial": 1}, {"second": "parameters"}):
        study_module._check(replace(spec, config=spec.config.model_copy(update=changes)))
    plain = replace(spec, config=spec.config.model_copy(update={"second": None}))
    monkeypatch.setattr(study_module, "dashboard_url", lambda: None)
    with told("start it with `ray start --include-dashboard=true`", UsageError):
        study_module._check(plain)
    from ray.scripts.scripts import cli

    options = {name for option in cli.commands["start"].params for name in option.opts}
    assert "--include-dashboard" in options
    monkeypatch.setattr(study_module, "dashboard_url", lambda: "http://127.0.0.1:8265")
    study_module._check(plain)


def test_searches_of_distillation(tmp_path: Path, nodes: object) -> None:
    values = {"distillation.weight": 0.5}
    alone = replace(TASK, soft_targets=None, distillation=None)
    with told("search: `{}` needs a student that is distilled from a teacher", UsageError):
        apply(alone, values)
    distillation = apply(TASK, values).distillation
    assert distillation is not None and distillation.weight == 0.5
    spec = make_spec(space={"distillation.weight": interval(0, 1)})
    with told("search.space: `distillation` settings need a student with a teacher", UsageError):
        study_module._check(replace(spec, base=alone))
    study_module._check(spec)


def test_a_grid(nodes: object) -> None:
    grid = {"sampler": "grid"}
    with told("search.sampler: a grid needs plain `choices` for every searched name", UsageError):
        study_module._check(make_spec(space={"distillation.weight": interval(0, 1)}, **grid))
    study_module._check(make_spec(space={"distillation.weight": choice(0.2, 0.8)}, **grid))


def test_the_number_of_workers_of_interrupted_trials(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, workers_per_trial=2)
    study = study_of(tmp_path, spec)
    trial_folder(tmp_path, study.ask().number).mkdir(parents=True)
    other = replace(spec, config=SearchConfig(workers_per_trial=1))
    with told("set `search.workers_per_trial` back to {} to finish them", UsageError):
        study_module._open(other, tmp_path)
    assert study_module._open(spec, tmp_path).config.workers_per_trial == 2


def test_joining(tmp_path: Path, nodes: object, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, write_spec(tmp_path))
    trial = study.ask()
    trial.set_user_attr("outcome", {"reason": "no such mount"})
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    results = [(True, 3), (False, 2)]

    def experiment(*_: object, **__: object) -> ExperimentResult:
        aborts, ended = results.pop(0)
        return ExperimentResult(ended, 1, aborts, exhausted=False)

    monkeypatch.setattr(study_module, "_run_experiment", experiment)
    with told("the last one with: {}; fix the cause and join again") as refused:
        study_module.join(tmp_path)
    assert "no such mount" in str(refused.value)
    assert study_module.join(tmp_path) == 2
    write_json(tmp_path / "study.json", {})
    # `multistill search extend` itself is followed in test_a_search_that_has_ended_is_extended.
    with told("`multistill search extend` adds trials once it is finished", UsageError):
        study_module.join(tmp_path)


def test_latency_that_cannot_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, store = make_corpus(tmp_path / "corpus", rows=20)  # its recordings are not there
    settings = FeaturesConfig().identity()
    write_json(
        store / "features.json", {**read_json(store / "features.json"), "settings": settings}
    )
    task = make_task((manifest, store))
    with told("which cannot be timed here ({}); use `second: parameters`", UsageError):
        cost.time_encoders(task, tmp_path)
    assert cost.cost("parameters", task, tmp_path) > 0


def test_the_second_ctrl_c() -> None:
    logger = RecordingLogger()
    with pytest.raises(KeyboardInterrupt), Interrupt(logger, Request()) as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested, "the first one lets running trials finish their epoch"
        says("press Ctrl-C again to stop now", logger.messages[-1])
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was swallowed")


def test_the_second_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, sent = RecordingLogger(), threading.Event()
    monkeypatch.setattr(Request, "send", lambda request, reason: sent.set())
    with pytest.raises(KeyboardInterrupt), Interrupt(logger, Request("search")) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert sent.wait(30) and interrupt.requested
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second SIGTERM was swallowed")
    says("can be continued; another SIGTERM stops at once", logger.messages[-1])
