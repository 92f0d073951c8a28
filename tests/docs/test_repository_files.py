"""Files beside the code agree with it: lock, workflow, versions, generated tables."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from helpers.paths import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
LOCKED = re.compile(
    r"^(?P<name>[\w.-]+)(?:\[[^]]*\])?==(?P<version>\S+)(?P<rest>.*?)(?=^\S|\Z)", re.M | re.S
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> Any:
    return yaml.safe_load(read(name))


def normalized(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_locked_package_has_hashes() -> None:
    locked = list(LOCKED.finditer(read("requirements.lock")))
    assert len(locked) > 150
    assert [item["name"] for item in locked if "--hash=sha256:" not in item["rest"]] == []


def test_the_lock_names_no_host_or_local_path() -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links", read("requirements.lock"))


def test_the_lock_holds_every_dependency_and_the_build_backend() -> None:
    locked = {normalized(item["name"]) for item in LOCKED.finditer(read("requirements.lock"))}
    extras = dict(PROJECT["optional-dependencies"])
    # For research only: the developer environment must not install it for everybody.
    assert [normalized(item) for item in extras.pop("opensmile")] == ["opensmile"]
    extras.pop("m4a")  # large, and needed for one kind of file
    parts = [PROJECT["dependencies"], *extras.values()]
    parts.append(SETTINGS["build-system"]["requires"])
    wanted = {normalized(item) for part in parts for item in part}
    assert wanted - locked == set()
    assert "opensmile" not in locked


def test_constraints_are_the_versions_of_the_lock() -> None:
    locked = {(i["name"], i["version"]) for i in LOCKED.finditer(read("requirements.lock"))}
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert {tuple(line.split(" ;")[0].split("==")) for line in lines} == locked


def test_the_workflow_runs_ci_with_few_rights() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML reads `on` as true
    jobs = workflow["jobs"]
    versions = jobs["fast"]["strategy"]["matrix"]["python"]
    classifiers = (item.rpartition(" :: ") for item in PROJECT["classifiers"])
    assert versions == [last for first, _, last in classifiers if first.endswith("Python")]
    for job in jobs.values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))
            command, *targets = step.get("run", ".ci/run").split()
            assert command == ".ci/run"
            for target in targets:
                assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE)


@pytest.mark.parametrize("name", ["bug_report.yml", "feature_request.yml"])
def test_issue_forms_have_what_the_forge_requires(name: str) -> None:
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"]
    assert form["description"]
    inputs = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in inputs)
    ids = [field["id"] for field in inputs]
    assert len(set(ids)) == len(ids)


def test_versions_agree() -> None:
    citation = read_yaml("CITATION.cff")
    newest = re.search(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)
    assert newest
    assert newest[1] == PROJECT["version"] == citation["version"]
    assert newest[2] == citation["date-released"]


def test_the_citation_has_the_required_fields() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert work["authors"]
        assert work["type"]
    assert citation["message"]
