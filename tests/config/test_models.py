"""Synonyms of distillation losses, in the section and in the search space."""

from __future__ import annotations

import pytest
import yaml
from helpers.search_case import STUDENT, TASK
from pydantic import ValidationError

from multistill.config import DistillationConfig, JobConfig, SearchConfig, TeacherConfig
from multistill.search.space import apply, check_space, current


def test_hinton_is_a_synonym_of_kd() -> None:
    assert DistillationConfig.model_validate({"loss": "hinton"}).loss == "kd"
    hinton, kd = (DistillationConfig.model_validate({"loss": name}) for name in ("hinton", "kd"))
    assert hinton.identity() == kd.identity()
    with pytest.raises(ValidationError, match="'kd', 'two-mse', 'dkd' or 'dist'"):
        DistillationConfig.model_validate({"loss": "hinten"})


def test_hinton_is_a_synonym_of_kd_in_the_search_space() -> None:
    def search(loss: str) -> SearchConfig:
        return SearchConfig.model_validate(
            {
                "space": {
                    "distillation.loss": {"choices": [loss, "dkd"]},
                    "distillation.temperature": {
                        "low": 1.0,
                        "high": 8.0,
                        "when": {"distillation.loss": [loss]},
                    },
                }
            }
        )

    space = search("hinton").space
    assert search("hinton").identity() == search("kd").identity()
    assert check_space(space, STUDENT) == []
    assert current(TASK, space) == {"distillation.loss": "kd", "distillation.temperature": 2.0}
    changed = apply(TASK, {"distillation.loss": "hinton"})
    assert changed.distillation is not None
    assert changed.distillation.loss == "kd"


def job(**sections: object) -> JobConfig:
    return JobConfig.model_validate({"name": "t", "corpora": [{"kind": "demo"}], **sections})


@pytest.mark.parametrize(
    ("section", "enabled"),
    [
        ({}, False),
        ({"search": False}, False),
        ({"search": {"enabled": False, "trials": 3}}, False),
        ({"search": True}, True),
        ({"search": {}}, True),
        ({"search": {"trials": 3}}, True),
    ],
)
def test_only_a_job_that_asks_for_a_search_has_one(
    section: dict[str, object], enabled: bool
) -> None:
    loaded = job(**section)
    assert loaded.search.enabled is enabled
    assert JobConfig.model_validate(yaml.safe_load(loaded.to_yaml())) == loaded


def test_an_empty_search_section_is_neither_on_nor_off() -> None:
    with pytest.raises(ValidationError, match="write `search: true`"):
        job(search=None)


@pytest.mark.parametrize(
    ("tracking", "asked"),
    [
        ({}, False),
        ({"champion": None}, False),
        ({"champion": False}, False),
        ({"champion": True}, True),
        ({"champion": {"margin": 0.01}}, True),
    ],
)
def test_only_a_job_that_asks_for_it_registers_a_model(
    tracking: dict[str, object], asked: bool
) -> None:
    assert (job(tracking=tracking).tracking.champion is not None) is asked


@pytest.mark.parametrize(
    "name",
    [
        *("teacher", "Teacher", "teacher-fold0", "a-control", "A-CONTROL", "a-search", "a-seed0"),
        *("text-seed12", "a-search-1", "a-search-12", "majority baseline", "linear probe, text"),
    ],
)
def test_names_that_tables_use_for_other_models_are_refused(name: str) -> None:
    students = [{"name": name, "model": {"preset": "small-student"}}]
    with pytest.raises(ValidationError, match="cannot be called"):
        job(students=students)


def test_names_that_differ_in_capitals_only_are_refused() -> None:
    students = [{"name": name, "model": {"preset": "small-student"}} for name in ("A", "b", "a")]
    with pytest.raises(ValidationError, match="another student is called `A` but for its capitals"):
        job(students=students)


@pytest.mark.parametrize(
    "name", ["a-search-box", "control", "teachers", "A seed", "probe-1", "감정"]
)
def test_names_that_only_resemble_others_are_accepted(name: str) -> None:
    assert job(students=[{"name": name, "model": {"preset": "small-student"}}])


@pytest.mark.parametrize("place", ["name", "student", "corpus"])
@pytest.mark.parametrize(
    "character",
    [*"\t\n\r\x07\x7f\x85\u00a0\u200b\u200d\u2028\u2800\u3000\u3164\ufe0f\ufeff", "\U000e0041"],
    ids=ascii,
)
def test_a_name_with_a_character_that_cannot_be_seen_is_refused(place: str, character: str) -> None:
    for name in (f"a{character}b", f"a{character}", character):
        with pytest.raises(ValidationError, match=rf"has the character U\+{ord(character):04X}"):
            named(place, name)


@pytest.mark.parametrize("place", ["name", "student", "corpus"])
@pytest.mark.parametrize("name", [" ", " a", "a ", "latest", "Latest", "", ".", "a/b"])
def test_a_name_that_makes_no_folder_of_its_own_is_refused(place: str, name: str) -> None:
    with pytest.raises(ValidationError, match=r"folder name|a space|`latest`"):
        named(place, name)


def named(place: str, name: str) -> JobConfig:
    if place == "name":
        return job(name=name)
    if place == "corpus":
        return job(corpora=[{"kind": "demo", "name": name}])
    return job(students=[{"name": name, "model": {"preset": "small-student"}}])


def test_the_seed_of_the_split_is_its_own_and_part_of_the_identity() -> None:
    assert {job(seed=seed).split.seed for seed in range(1, 6)} == {1024}
    assert job(split={"seed": 5}).identity() != job().identity()


def test_teachers_that_were_written_to_a_record_are_read_again() -> None:
    for teacher in ({"models": ["small-text-teacher", "small-audio-teacher"]}, {"model": "p"}):
        config = TeacherConfig.model_validate(teacher)
        assert TeacherConfig.model_validate(config.model_dump(mode="json")) == config
