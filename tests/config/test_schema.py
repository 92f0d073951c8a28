"""The JSON schema and the page of the job file say what the config accepts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.paths import ROOT

from multistill.config import JobConfig
from multistill.config.schema import job_schema, sections, sections_of
from multistill.errors import JobFileError
from multistill.pipeline import jobfile

JOBS = sorted((ROOT / "multistill" / "jobs").glob("*.yaml"))
SMALL: dict[str, Any] = {"name": "t", "corpora": [{"kind": "demo"}]}
VALIDATOR = jsonschema.Draft202012Validator(job_schema())

ACCEPTED: list[dict[str, Any]] = [
    {},
    {"features": {"speech": "wav2vec2", "text": {"model": "a/b"}}},
    {"teacher": "small-teacher"},
    {"teacher": {"model": "small-teacher", "train": {"epochs": 3}}},
    {"students": ["small-student", {"name": "a", "model": "small-student"}]},
    {"tracking": {"champion": None}},
    {"search": True},
    {"search": False},
    {"search": {"space": {"distillation.weight": {"choices": [0.1, 0.2]}}}},
    {"resources": {"wait_for": {"GPU": 4}}},
]
REFUSED: list[dict[str, Any]] = [
    {"sead": 1},
    {"teacher": {"modle": "small-teacher"}},
    {"teacher": 3},
    {"distillation": "kd"},
    {"students": "small-student"},
    {"features": {"speech": {"layers": "last"}}},
    {"split": {"by": "speakers"}},
    {"split": {"test": 1.5}},
    {"corpora": []},
    {"search": "yes"},
    {"search": None},
]


def test_the_schema_is_a_valid_one() -> None:
    jsonschema.Draft202012Validator.check_schema(job_schema())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_job_files_fit_the_schema_that_they_name(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert "# yaml-language-server: $schema=job.schema.json\n" in text
    schema = json.loads((path.parent / "job.schema.json").read_text(encoding="utf-8"))
    assert schema == job_schema()
    jsonschema.validate(yaml.safe_load(text), schema)


def accepted(data: dict[str, Any]) -> bool:
    try:
        jobfile.parse(yaml.safe_dump(data), "job.yaml")
    except JobFileError:
        return False
    return True


@pytest.mark.parametrize("more", ACCEPTED)
def test_schema_and_program_accept_the_same(more: dict[str, Any]) -> None:
    data = {**SMALL, **more}
    assert VALIDATOR.is_valid(data)
    assert accepted(data)


@pytest.mark.parametrize("more", REFUSED)
def test_schema_and_program_refuse_the_same(more: dict[str, Any]) -> None:
    data = {**SMALL, **more}
    assert not VALIDATOR.is_valid(data)
    assert not accepted(data)


def test_every_resolved_job_fits_the_schema() -> None:
    for path in JOBS:
        resolved = jobfile.load(path).model_dump(mode="json")
        VALIDATOR.validate(resolved)


FIELDS = [
    (section, name, field) for section in sections() for name, field in section.model_fields.items()
]


@pytest.mark.parametrize(
    ("section", "name", "field"), FIELDS, ids=[f"{s.__name__}.{n}" for s, n, _ in FIELDS]
)
def test_every_key_says_what_it_means(section: Any, name: str, field: Any) -> None:
    inner = [inner for _, inner in sections_of(field.annotation)]
    about = field.description or (inner[0].__doc__ if inner else "")
    assert about, f"{section.__name__}.{name} has no description"


def test_every_key_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "job-file.md").read_text(encoding="utf-8")
    for section, places in sections().items():
        for place in filter(None, places):
            assert f"`{place}`" in page
        for name in section.model_fields:
            assert f"| `{name}`" in page


def test_every_section_of_a_job_is_found() -> None:
    places = {place for found in sections().values() for place in found}
    assert {"", "corpora[]", "students[].train", "teacher.model", "search.space.NAME"} <= places
    assert JobConfig in sections()
