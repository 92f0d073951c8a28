"""The search space: checks, suggestions and application to a task. No Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.search_case import STUDENT, TASK, choice, interval
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from multistill.config import (
    ModelConfig,
    SearchConfig,
    SearchParameter,
    SpeechEncoderConfig,
    StudentConfig,
)
from multistill.encoders.source import EncoderSource
from multistill.errors import UsageError
from multistill.models.presets import resolve
from multistill.search.space import apply, check_space, current, known_keys, suggest


def test_the_default_space_is_valid_and_contains_the_default_student():
    space = SearchConfig().space
    assert check_space(space, STUDENT) == []
    assert current(TASK, space) == {"distillation.temperature": 2.0, "distillation.weight": 0.5}


@pytest.mark.parametrize(
    ("key", "parameter", "message"),
    [
        ("distillation.temprature", interval(1, 8), "did you mean `distillation.temperature`"),
        ("train.epochs", interval(1, 8), "search.epochs"),
        ("train.workers", interval(1, 8), "`train.workers` cannot be searched;"),
        (
            "train.select_window",
            interval(1, 8),
            "`train.select_window` cannot be searched: trials are compared by the mean over",
        ),
        ("distillation.weight", interval(0.5, 1.5), "1.5 is not possible"),
        ("distillation.temperature", interval(0, 4), "0.0 is not possible"),
        ("distillation.loss", choice("kd", "magic"), "'magic' is not possible"),
        ("distillation.loss", interval(0, 1), "give it `choices`"),
        ("model.layers", interval(1.5, 3), "1.5 is not possible"),
        ("model.layers", interval(1, 3, step=0.5), "whole `step`"),
        ("model.pooling", choice("mean", "mean"), "twice"),
        ("train.augmentation", choice(1, 2), "`train.augmentation` cannot be searched"),
        ("features.speech.train.layers", choice(1, 2), "search `top`"),
        ("features.text.train.rank", choice(0, 2), "0 is not possible"),
        ("features.speech.train.bottleneck", interval(4.5, 16), "4.5 is not possible"),
        ("train.augmentation.mixup", interval(-1, 1), "-1.0 is not possible"),
        ("train.augmentation.mixup_of", choice("layers"), "'layers' is not possible"),
        ("train.augmentation.time_masks", interval(0, 2, step=0.5), "whole `step`"),
    ],
)
def test_every_problem_of_a_space_is_described(key, parameter, message):
    problems = check_space({key: parameter}, STUDENT)
    assert len(problems) == 1
    assert message in problems[0]


def test_all_problems_are_reported_together():
    space = {"train.epochs": interval(1, 2), "model.nothing": interval(1, 2)}
    assert len(check_space(space)) == 2


def test_a_width_that_the_heads_do_not_divide_is_reported_before_the_search():
    space = {"model.width": choice(32, 36), "model.heads": choice(2, 8)}
    (problem,) = check_space(space, STUDENT)
    assert "cannot be built (width 36, heads 8)" in problem
    separated = {
        "model.width": choice(32, 36),
        "model.heads": choice(2, 8, when={"model.width": [32]}),
    }
    assert check_space(separated, STUDENT) == []


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"distillation.loss": ["dkd"]}, "which is not searched"),
        ({"model.pooling": ["attention"]}, "not among its choices"),
        ({"distillation.weight": [0.1]}, "has no `choices`"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(when, message):
    space = {
        "distillation.temperature": interval(1, 8, when=when),
        "model.pooling": choice("mean"),
        "distillation.weight": interval(0.1, 0.9),
    }
    assert any(message in problem for problem in check_space(space))


def test_cyclic_conditions_are_refused():
    space = {
        "model.layers": choice(1, 2, when={"model.heads": [2]}),
        "model.heads": choice(2, 4, when={"model.layers": [1]}),
    }
    assert "form a cycle" in check_space(space)[0]


@pytest.mark.parametrize(("loss", "suggested"), [("kd", True), ("dist", False)])
def test_a_conditional_value_is_suggested_only_where_it_applies(loss, suggested):
    space = {
        "distillation.temperature": interval(1, 8, when={"distillation.loss": ["kd"]}),
        "distillation.loss": choice("kd", "dist"),
    }
    trial = FixedTrial({"distillation.loss": loss, "distillation.temperature": 3.0})
    values = suggest(space, trial)
    assert ("distillation.temperature" in values) is suggested
    assert values["distillation.loss"] == loss


@given(
    temperature=st.floats(1, 8),
    layers=st.integers(1, 4),
    rate=st.floats(1e-5, 1e-2),
    pooling=st.sampled_from(["mean", "attention"]),
    mixup=st.floats(0, 1),
    masks=st.integers(0, 3),
)
def test_applied_values_are_the_current_values(temperature, layers, rate, pooling, mixup, masks):
    space = {
        "distillation.temperature": interval(1, 8),
        "model.layers": interval(1, 4),
        "train.learning_rate": interval(1e-5, 1e-2, log=True),
        "model.pooling": choice("mean", "attention"),
        "train.augmentation.mixup": interval(0, 1),
        "train.augmentation.time_masks": interval(0, 3),
    }
    values = {
        "distillation.temperature": temperature,
        "model.layers": layers,
        "train.learning_rate": rate,
        "model.pooling": pooling,
        "train.augmentation.mixup": mixup,
        "train.augmentation.time_masks": masks,
    }
    changed = apply(TASK, values)
    assert current(changed, space) == values
    assert suggest(space, FixedTrial(values)) == values
    assert changed.train.augmentation.mixup == mixup
    assert apply(changed, current(TASK, {**space, "model.pooling": choice("mean")})) == TASK


def test_settings_outside_the_space_have_no_current_values():
    assert current(TASK, {"distillation.temperature": interval(3, 8)}) is None
    assert current(TASK, {"distillation.temperature": interval(1, 8, step=0.75)}) is None
    assert current(TASK, {"distillation.temperature": interval(1, 8, step=0.5)}) is not None
    assert current(TASK, {"model.pooling": choice("attention")}) is None


@pytest.mark.parametrize("step", [0.1, 0.3, 0.01, 0.7])
def test_every_point_of_a_stepped_range_is_found(step):
    """Whatever the rounding of low + n * step."""
    for n in range(30):
        for low in (0.1, 1.0, 0.3):
            changed = apply(TASK, {"distillation.temperature": low + n * step})
            space = {"distillation.temperature": interval(low, low + 30 * step, step=step)}
            assert current(changed, space) is not None, (low, n)
            between = apply(TASK, {"distillation.temperature": low + (n + 0.5) * step})
            assert current(between, space) is None


def test_applying_changes_nothing_else_and_refuses_invalid_values():
    changed = apply(TASK, {"distillation.weight": 0.25})
    assert replace(changed, distillation=TASK.distillation) == TASK
    with pytest.raises(UsageError, match="not divisible"):
        apply(TASK, {"model.heads": 7})
    with pytest.raises(UsageError, match="less than or equal to 1"):
        apply(TASK, {"distillation.weight": 2.0})
    without_teacher = replace(TASK, soft_targets=None, distillation=None)
    with pytest.raises(UsageError, match="distilled from a teacher"):
        apply(without_teacher, {"distillation.weight": 0.5})
    assert apply(without_teacher, {"model.layers": 2}).distillation is None


def test_settings_of_a_trained_encoder_are_applied_to_it_alone():
    config = SpeechEncoderConfig(model="wav2vec2", train="last-4")
    task = replace(TASK, encoders={"speech": EncoderSource("speech", config, "folder-1")})
    space = {
        "features.speech.train.top": interval(1, 4),
        "features.speech.train.learning_rate": interval(1e-5, 1e-3, log=True),
    }
    assert check_space(space, STUDENT) == []
    changed = apply(task, {key: 1e-5 if "rate" in key else 2 for key in space})
    train = changed.encoders["speech"].config.train
    assert (train.layers, train.top, train.learning_rate) == (4, 2, 1e-5)
    assert changed.encoders["speech"].identity() != task.encoders["speech"].identity()
    assert replace(changed, encoders=task.encoders) == task
    with pytest.raises(ValueError, match="more than the 4 layers"):
        apply(task, {"features.speech.train.top": 5})
    with pytest.raises(UsageError, match="and the student has none"):
        apply(task, {"features.text.train.top": 1})


def test_every_known_key_can_be_applied():
    for key in known_keys():
        section, _, name = key.rpartition(".")
        settings = {
            "distillation": TASK.distillation,
            "train": TASK.train,
            "train.augmentation": TASK.train.augmentation,
            "model": TASK.spec,
        }
        if section not in settings:
            with pytest.raises(UsageError, match="and the student has none"):
                apply(TASK, {key: 1})
            continue
        value = getattr(settings[section], name)
        if value is not None:
            assert apply(TASK, {key: value}) == TASK


def test_the_fields_of_a_network_can_be_searched_and_those_of_others_cannot():
    student = StudentConfig(name="a", model=ModelConfig(preset="va-fusion"))
    key = "model.va_audio_layers"
    space = {key: SearchParameter(choices=[3, 7]), "model.width": SearchParameter(choices=[96])}
    assert check_space(space, student) == []
    other = StudentConfig(name="a", model=ModelConfig(preset="small-student"))
    assert "the network head does not use `va_audio_layers`" in check_space(space, other)[0]


@pytest.mark.parametrize(
    ("preset", "own"),
    [
        ("small-student", {"paths": choice("wide", "both"), "width": choice(32, 64)}),
        ("light-multimodal-student", {"front_blocks": choice(2, 3), "front_channels": choice(4)}),
        ("pooled", {"width": choice(64, 256), "pooled_strides": choice(0, 1)}),
        ("small-fe2e", {"late_fusion": choice("weighted", "gated"), "chunk_frames": choice(16)}),
        ("small-mesm", {"top_p": interval(0.5, 1.0)}),
        ("va-fusion", {"va_audio_layers": choice(2, 7), "va_recurrent": choice(64, 128)}),
    ],
)
def test_every_method_has_a_search_space(preset, own):
    """docs/systems.md lists these: settings of the network beside those of its training."""
    student = StudentConfig(name="a", model=ModelConfig(preset=preset))
    space = {
        **{f"model.{name}": parameter for name, parameter in own.items()},
        "train.learning_rate": interval(1e-4, 1e-2, log=True),
    }
    assert check_space(space, student) == []
    task = replace(TASK, spec=resolve(preset, {"dimensions": ()}))
    for key, parameter in space.items():
        ends = parameter.choices or (parameter.low, parameter.high)
        assert any(apply(task, {key: value}) != task for value in ends), key
