"""The search space and what it takes to run it: pure checks, no Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.search_case import STUDENT, TASK, among, between
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from multistill.config import (
    SearchConfig,
)
from multistill.errors import UsageError
from multistill.search.capacity import capacity_problems, concurrency
from multistill.search.space import apply, check_space, current, known_keys, suggest


def test_the_default_space_is_sound_and_holds_the_default_student():
    space = SearchConfig().space
    assert check_space(space, STUDENT) == []
    assert current(TASK, space) == {"distillation.temperature": 2.0, "distillation.weight": 0.5}


@pytest.mark.parametrize(
    ("key", "parameter", "words"),
    [
        ("distillation.temprature", between(1, 8), "did you mean `distillation.temperature`"),
        ("train.epochs", between(1, 8), "search.epochs"),
        ("train.workers", between(1, 8), "not something to search"),
        ("distillation.weight", between(0.5, 1.5), "1.5 is not possible"),
        ("distillation.temperature", between(0, 4), "0.0 is not possible"),
        ("distillation.loss", among("kd", "magic"), "'magic' is not possible"),
        ("distillation.loss", between(0, 1), "give it `choices`"),
        ("model.layers", between(1.5, 3), "1.5 is not possible"),
        ("model.layers", between(1, 3, step=0.5), "whole `step`"),
        ("model.pooling", among("mean", "mean"), "twice"),
    ],
)
def test_each_flaw_of_a_space_is_named(key, parameter, words):
    problems = check_space({key: parameter}, STUDENT)
    assert len(problems) == 1
    assert words in problems[0]


def test_all_flaws_are_told_at_once():
    space = {"train.epochs": between(1, 2), "model.nothing": between(1, 2)}
    assert len(check_space(space)) == 2


def test_a_width_that_the_heads_do_not_divide_is_found_before_the_search():
    space = {"model.width": among(32, 36), "model.heads": among(2, 8)}
    (problem,) = check_space(space, STUDENT)
    assert "cannot be built (width 36, heads 8)" in problem
    apart = {
        "model.width": among(32, 36),
        "model.heads": among(2, 8, when={"model.width": [32]}),
    }
    assert check_space(apart, STUDENT) == []


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"distillation.loss": ["dkd"]}, "which is not searched"),
        ({"model.pooling": ["attention"]}, "not among its choices"),
        ({"distillation.weight": [0.1]}, "has no `choices`"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(when, words):
    space = {
        "distillation.temperature": between(1, 8, when=when),
        "model.pooling": among("mean"),
        "distillation.weight": between(0.1, 0.9),
    }
    assert any(words in problem for problem in check_space(space))


def test_conditions_in_a_circle_are_refused():
    space = {
        "model.layers": among(1, 2, when={"model.heads": [2]}),
        "model.heads": among(2, 4, when={"model.layers": [1]}),
    }
    assert "circle" in check_space(space)[0]


@pytest.mark.parametrize(("loss", "asked"), [("kd", True), ("dist", False)])
def test_a_conditional_value_is_asked_only_where_it_applies(loss, asked):
    space = {
        "distillation.temperature": between(1, 8, when={"distillation.loss": ["kd"]}),
        "distillation.loss": among("kd", "dist"),
    }
    trial = FixedTrial({"distillation.loss": loss, "distillation.temperature": 3.0})
    values = suggest(space, trial)
    assert ("distillation.temperature" in values) is asked
    assert values["distillation.loss"] == loss


@given(
    temperature=st.floats(1, 8),
    layers=st.integers(1, 4),
    rate=st.floats(1e-5, 1e-2),
    pooling=st.sampled_from(["mean", "attention"]),
)
def test_what_is_applied_is_what_the_space_reads_back(temperature, layers, rate, pooling):
    space = {
        "distillation.temperature": between(1, 8),
        "model.layers": between(1, 4),
        "train.learning_rate": between(1e-5, 1e-2, log=True),
        "model.pooling": among("mean", "attention"),
    }
    values = {
        "distillation.temperature": temperature,
        "model.layers": layers,
        "train.learning_rate": rate,
        "model.pooling": pooling,
    }
    changed = apply(TASK, values)
    assert current(changed, space) == values
    assert suggest(space, FixedTrial(values)) == values
    assert apply(changed, current(TASK, {**space, "model.pooling": among("mean")})) == TASK


def test_settings_outside_the_space_are_no_point_of_it():
    assert current(TASK, {"distillation.temperature": between(3, 8)}) is None
    assert current(TASK, {"distillation.temperature": between(1, 8, step=0.75)}) is None
    assert current(TASK, {"distillation.temperature": between(1, 8, step=0.5)}) is not None
    assert current(TASK, {"model.pooling": among("attention")}) is None


def test_applying_changes_nothing_else_and_refuses_nonsense():
    changed = apply(TASK, {"distillation.weight": 0.25})
    assert replace(changed, distillation=TASK.distillation) == TASK
    with pytest.raises(UsageError, match="not divisible"):
        apply(TASK, {"model.heads": 7})
    with pytest.raises(UsageError, match="less than or equal to 1"):
        apply(TASK, {"distillation.weight": 2.0})
    alone = replace(TASK, soft_targets=None, distillation=None)
    with pytest.raises(UsageError, match="distilled from a teacher"):
        apply(alone, {"distillation.weight": 0.5})
    assert apply(alone, {"model.layers": 2}).distillation is None


def test_every_known_key_can_be_applied_or_is_not_offered():
    for key in known_keys():
        section, _, name = key.partition(".")
        settings = {"distillation": TASK.distillation, "train": TASK.train, "model": TASK.spec}
        value = getattr(settings[section], name)
        if value is not None:
            assert apply(TASK, {key: value}) == TASK


@pytest.mark.parametrize(
    ("config", "nodes", "expected"),
    [
        (SearchConfig(trials=40), {"CPU": 8.0}, 8),
        (SearchConfig(trials=3), {"CPU": 8.0}, 3),
        (SearchConfig(trials=40, concurrent=2), {"CPU": 8.0}, 2),
        (SearchConfig(trials=40, cpus_per_trial=3), [{"CPU": 4.0}, {"CPU": 8.0}], 3),
        (SearchConfig(trials=40, gpus_per_trial=0.5), {"CPU": 8.0, "GPU": 2.0}, 4),
        (SearchConfig(trials=40, gpus_per_trial=0.4), {"CPU": 8.0, "GPU": 1.0}, 2),
        (SearchConfig(trials=40, gpus_per_trial=2), [{"CPU": 8.0, "GPU": 3.0}] * 2, 2),
        (SearchConfig(trials=40, cpus_per_trial=3), [{"CPU": 2.0}] * 4, 0),
        (SearchConfig(trials=40), {"CPU": 8.0, "GPU": 2.0}, 2),
        (SearchConfig(trials=40, gpus_per_trial=0), {"CPU": 8.0, "GPU": 2.0}, 8),
        (SearchConfig(trials=40, cpus_per_trial=0.1), {"CPU": 1.0}, 10),
    ],
)
def test_trials_at_a_time_are_what_the_nodes_hold(config, nodes, expected):
    assert concurrency(config, nodes) == expected


@pytest.mark.parametrize(
    ("config", "nodes", "words"),
    [
        (SearchConfig(gpus_per_trial=2), [{"CPU": 8.0, "GPU": 1.0}] * 3, "largest node has 1"),
        (SearchConfig(cpus_per_trial=16), {"CPU": 8.0}, "asks for 16 CPUs"),
        (SearchConfig(gpus_per_trial=1.5), {"CPU": 8.0, "GPU": 4.0}, "neither a whole number"),
        (
            SearchConfig(cpus_per_trial=4, gpus_per_trial=1),
            [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}],
            "no single node",
        ),
        (SearchConfig(storage="study.db"), {"CPU": 8.0}, "not an address"),
    ],
)
def test_what_can_never_run_is_said_before_anything_starts(config, nodes, words):
    problems = capacity_problems(config, nodes)
    assert any(words in problem for problem in problems), problems
    assert capacity_problems(SearchConfig(), {"CPU": 8.0}) == []


def test_trials_of_several_workers_take_whole_gpus():
    with pytest.raises(ValueError, match="a fraction of a GPU works for trials of one worker"):
        SearchConfig(workers_per_trial=2, gpus_per_trial=0.5)
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]
    asked = SearchConfig(workers_per_trial=3, gpus_per_trial=1)
    assert concurrency(asked, nodes) == 1, "its workers may lie on several nodes"
    assert capacity_problems(asked, nodes) == []
    four = asked.model_copy(update={"workers_per_trial": 4})
    assert "no room for 4 workers" in capacity_problems(four, nodes)[0]


def test_the_last_point_of_a_grid_ends_like_any_other():
    import optuna

    from multistill.search.request import Request
    from multistill.search.searcher import _sampler

    space = {"distillation.weight": among(0.2, 0.4), "model.width": among(32, 64)}
    request = Request(TASK, SearchConfig(sampler="grid", space=space), 1, "f", "grid")
    study = optuna.create_study(sampler=_sampler(request, 0))
    for _ in range(4):
        trial = study.ask()
        suggest(space, trial)
        study.tell(trial, 0.0)  # Optuna's own sampler raises here, outside its own loop
    points = {tuple(trial.params.values()) for trial in study.get_trials()}
    assert len(points) == 4
