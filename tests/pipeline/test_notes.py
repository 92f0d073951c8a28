"""Notes of `multistill validate`: what a valid job costs."""

from __future__ import annotations

import pytest

from multistill.models.presets import PRESETS
from multistill.pipeline import jobfile

HEAD = "name: t\ncorpora: [{kind: demo}]\n"


@pytest.mark.parametrize("preset", [name for name in PRESETS if "teacher" in name])
def test_a_head_without_standardisation_is_noted_and_the_advice_ends_the_note(preset: str) -> None:
    text = HEAD + f"teacher: {{model: {{preset: {preset}, standardize: none}}}}\n"
    (note,) = jobfile.notes(jobfile.parse(text, "t.yaml"))
    assert note.startswith("teacher") and "`standardize: none`" in note
    text = text.replace("standardize: none", "standardize: encoder")
    students = "students: [{name: s, model: {preset: small-student, standardize: encoder}}]\n"
    assert jobfile.notes(jobfile.parse(text + students, "t.yaml")) == []


@pytest.mark.parametrize("choices", ["none, encoder", "encoder, dimension"])
def test_a_search_that_tries_heads_without_standardisation_is_noted(choices: str) -> None:
    text = HEAD + f"search: {{space: {{model.standardize: {{choices: [{choices}]}}}}}}\n"
    notes = jobfile.notes(jobfile.parse(text, "t.yaml"))
    assert [note.split(":")[0] for note in notes] == (
        ["search.space, model.standardize"] if "none" in choices else []
    )


def test_a_recipe_without_heads_has_no_note() -> None:
    assert jobfile.notes(jobfile.parse(HEAD + "recipe: features-only\n", "t.yaml")) == []


@pytest.mark.parametrize("recipe", ["features-only", "distillation"])
def test_an_encoder_that_knows_the_corpus_is_noted(recipe: str) -> None:
    text = f"""
name: t
recipe: {recipe}
corpora: [{{kind: table, path: data/iemocap.csv}}]
features: {{speech: superb/hubert-large-superb-er}}
"""
    (note,) = jobfile.notes(jobfile.parse(text, "t.yaml"))
    assert "trained for emotion on IEMOCAP (`table`)" in note
    for changed in (text.replace("iemocap", "mine"), text.replace("-superb-er", "-ll60k")):
        assert jobfile.notes(jobfile.parse(changed, "t.yaml")) == []


@pytest.mark.parametrize("tasks", ["[valence]", "[classes, valence]"])
def test_a_search_without_classes_leaves_the_temperature_out_or_notes_it(tasks: str) -> None:
    text = HEAD + f"tasks: {tasks}\nsearch: {{metric: ccc%s}}\n"
    alone = "classes" not in tasks
    job = jobfile.parse(text % "", "t.yaml")
    weight, temperature = "distillation.weight", "distillation.temperature"
    assert set(job.search.space) == ({weight} if alone else {weight, temperature})
    assert jobfile.notes(job) == []
    assert jobfile.parse(job.to_yaml(), "t.yaml").search == job.search
    given = jobfile.parse(text % f", space: {{{temperature}: {{low: 1, high: 2}}}}", "t.yaml")
    assert set(given.search.space) == {temperature}
    notes = jobfile.notes(given)
    assert [note.split(":")[0] for note in notes] == alone * [f"search.space, {temperature}"]
