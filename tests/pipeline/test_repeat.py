"""`multistill run --from`: a recorded job is run again and held against its record."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.small_runs import FIGURES, Scores, install, runs_of, workspace
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from multistill import provenance
from multistill.cli import main
from multistill.databases import sqlite_url
from multistill.pipeline.repeat import Comparison, Repetition
from multistill.tracking.recorded import RecordedRun


def code_of(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


class Recorded:
    """A colleague's finished run: their files, their MLflow and the runs in it."""

    def __init__(self, home: Path, uri: str | None, database: Path) -> None:
        self.corpus = home / "corpus.csv"
        self.corpus.write_text("votes")
        self.workspace = workspace(home / "theirs", database)
        self.uri = uri or sqlite_url(self.workspace / "mlflow.db")
        self.job = home / "small.yaml"
        self.job.write_text(
            f"name: small\nseed: 7\ncorpora: [{{kind: table, path: {self.corpus}}}]\n"
            f"tracking: {{experiment: {home.name}}}\n"
            "notify: {webhook_env: MULTISTILL_WEBHOOK_A}\n"
        )
        self.home = home

    def run(self) -> None:
        os.environ["MULTISTILL_WEBHOOK_A"] = "http://127.0.0.1:9/theirs"
        place = ["--workspace", str(self.workspace), "--set", "notify.events=[]"]
        more = [] if self.uri.startswith("sqlite") else ["--set", f"tracking.uri={self.uri}"]
        assert code_of(["run", str(self.job), *place, *more]) == 0
        del os.environ["MULTISTILL_WEBHOOK_A"]

    @property
    def runs(self) -> list[Any]:
        return runs_of(self.uri, self.home.name)

    @property
    def top(self) -> Any:
        return next(run for run in self.runs if "mlflow.parentRunId" not in run.data.tags)


@pytest.fixture
def recorded(
    tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Recorded]:
    install(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = Recorded(tmp_path, None, mlflow_database)
    found.run()
    yield found


def repeat(
    recorded: Recorded, own: Path, *more: str, run: str | None = None
) -> tuple[int, list[str]]:
    run_id = run or recorded.top.info.run_id
    place = ["--tracking", recorded.uri, "--workspace", str(own)]
    return code_of(["run", "--from", run_id, *place, *more]), place


def test_a_repetition_is_a_run_of_its_own_whose_figures_are_compared(
    recorded: Recorded,
    mlflow_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {run.info.run_id: (run.data.to_dictionary(), run.info.status) for run in recorded.runs}
    child = next(run for run in recorded.runs if "mlflow.parentRunId" in run.data.tags)
    own = workspace(recorded.home / "own", mlflow_database)
    capsys.readouterr()
    assert repeat(recorded, own, "--json", "--strict", run=f"runs:/{child.info.run_id}")[0] == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["worked"] and found["repeats"]["equal"]
    assert found["repeats"]["run"] == recorded.top.info.run_id
    assert found["repeats"]["figures"].keys() == FIGURES.keys()
    assert "votes and split are the recorded ones" in printed.err
    after = {run.info.run_id: (run.data.to_dictionary(), run.info.status) for run in recorded.runs}
    assert after == before, "the recorded runs stay as they are"
    repeated = runs_of(sqlite_url(own / "mlflow.db"), recorded.home.name)[0]
    assert repeated.data.tags["multistill.repeats"] == recorded.top.info.run_id
    assert repeated.data.metrics == recorded.top.data.metrics
    assert repeated.data.params == recorded.top.data.params

    monkeypatch.setattr(Scores, "figures", {**FIGURES, "test_teacher_macro_f1": 0.6})
    other = workspace(recorded.home / "other", mlflow_database)
    assert repeat(recorded, other, "--strict")[0] == 1
    printed = capsys.readouterr()
    assert "1 of 5 test figures differ" in printed.out
    assert "test_teacher_macro_f1 0.6000 (recorded: 0.7000)" in printed.err
    assert repeat(recorded, other)[0] == 0
    assert "nothing was made again, so this repeats nothing" in capsys.readouterr().out


def test_other_data_and_files_that_are_elsewhere(
    recorded: Recorded, mlflow_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = workspace(recorded.home / "own", mlflow_database)
    moved = recorded.corpus.rename(recorded.home / "moved.csv")
    assert repeat(recorded, own)[0] == 2
    assert f"corpora.0.path {recorded.corpus}" in capsys.readouterr().err
    there = ("--set", f"corpora.0.path={moved}")
    assert repeat(recorded, own, *there, "--strict")[0] == 0
    moved.write_text("other votes")
    other = workspace(recorded.home / "other", mlflow_database)
    assert repeat(recorded, other, *there, "--strict")[0] == 1
    assert "(digest other votes, recorded votes)" in capsys.readouterr().err
    assert repeat(recorded, other, *there)[0] == 0
    assert "other figures are to be expected" in capsys.readouterr().err


def test_a_recorded_job_file_runs_no_code(
    recorded: Recorded, mlflow_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(tracking_uri=recorded.uri)
    trap = recorded.home / "ran"
    text = f"name: small\ncorpora: !!python/object/apply:os.mkdir [{trap}]\n"
    for file in client.list_artifacts(recorded.top.info.run_id, "job"):
        client.log_text(recorded.top.info.run_id, text, file.path)
    own = workspace(recorded.home / "own", mlflow_database)
    assert repeat(recorded, own)[0] == 2
    assert "not valid YAML" in capsys.readouterr().err
    assert not trap.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "nothing to run"),
        (["run", "job.yaml", "--from", "0" * 32], "leave out the job file"),
        (["run", "job.yaml", "--strict"], "--strict belongs to --from"),
        (["run", "--from", "0" * 32, "--tracking", "sqlite:////nowhere/m.db"], "no such file"),
    ],
)
def test_wrong_use(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(arguments) == 2
    assert says in capsys.readouterr().err


def test_on_a_server_a_repetition_of_ones_own_run_does_not_continue_it(
    tmp_path: Path,
    mlflow_server: str,
    mlflow_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch)
    recorded = Recorded(tmp_path, mlflow_server, mlflow_database)
    recorded.run()
    first = recorded.top
    monkeypatch.setattr(Scores, "figures", {**FIGURES, "test_teacher_macro_f1": 0.6})
    assert repeat(recorded, tmp_path / "own")[0] == 0
    tops = [run for run in recorded.runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.metrics["test_teacher_macro_f1"] for run in tops] == [0.7, 0.6]
    assert tops[0].data.to_dictionary() == first.data.to_dictionary()
    assert tops[1].data.tags["multistill.repeats"] == first.info.run_id


def run_of(figures: dict[str, float], **more: Any) -> RecordedRun:
    return replace(RecordedRun("id", "name", "ann", "uri", "", {}, "", figures), **more)


NUMBERS = st.floats(0, 1) | st.just(math.nan)


@given(st.dictionaries(st.sampled_from("abcde"), NUMBERS, min_size=1), st.data())
def test_figures_are_equal_where_none_differs_in_its_shown_digits(
    figures: dict[str, float], data: st.DataObject
) -> None:
    shift = data.draw(st.floats(-0.01, 0.01))
    name = data.draw(st.sampled_from(sorted(figures)))
    other = {**figures, name: figures[name] + shift}
    found = Comparison(run_of(figures), other, {}, True)
    close = math.isnan(figures[name]) or abs(other[name] - figures[name]) <= 0.0005
    assert found.equal == close
    assert found.different == ([] if close else [name])
    assert ("differ" in found.sentence()) != close
    without = {key: value for key, value in other.items() if key != name}
    assert not Comparison(run_of(figures), without, {}, True).equal


@given(st.sampled_from(sorted(provenance.versions())), st.booleans())
def test_other_versions_are_named(name: str, dirty: bool) -> None:
    here = provenance.versions()
    commit = provenance.git_commit()
    same = {**here} | ({"commit": commit} if commit and "+dirty" not in commit else {})
    assert Repetition(run_of({}, versions=same)).other_versions() == {}
    other = {**same, name: "0.0.1"} | ({"commit": "a" * 40 + "+dirty"} if dirty else {})
    found = Repetition(run_of({}, versions=other))
    assert found.other_versions().keys() == {name} | ({"commit"} if dirty else set())
    assert f"{name} {here[name]} (recorded: 0.0.1)" in found.describe_versions()
