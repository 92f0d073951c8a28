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
