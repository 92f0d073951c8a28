"""Where a study is: its journal on disk, or a database."""

from __future__ import annotations

import shutil

import pytest
from helpers.search_case import DISTRIBUTIONS, make_spec, study_of

from multistill.errors import UsageError
from multistill.search.spec import SPEC, SearchSpec
from multistill.search.storage import JOURNAL, open_storage, open_study, quiet_optuna
from multistill.search.study import _open


def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path):
    spec = make_spec()
    with quiet_optuna():
        study = study_of(tmp_path, spec)
        for value in (0.1, 0.2):
            study.tell(study.ask(DISTRIBUTIONS), value)
        content = (tmp_path / JOURNAL).read_bytes()
        (tmp_path / JOURNAL).write_bytes(content + b'{"op_code": 4, "worker')
        again = study_of(tmp_path, spec)
        again.tell(again.ask(DISTRIBUTIONS), 0.3)
        values = [trial.value for trial in study_of(tmp_path, spec).get_trials()]
    assert values == [0.1, 0.2, 0.3]


ADDRESSES = ["sqlite:////no/such/folder/x.db", "postgresql://u@127.0.0.1:1/d", "nosuch://h/d"]


@pytest.mark.parametrize("mistyped", ADDRESSES)
@pytest.mark.parametrize("corrected", ["sqlite:///{}/right.db", None])
def test_a_storage_that_cannot_be_reached_is_not_remembered(tmp_path, mistyped, corrected):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="cannot be reached"):
        _open(make_spec(storage=mistyped), out)
    assert not (out / SPEC).exists()
    spec = make_spec(storage=corrected and corrected.format(tmp_path))
    opened = _open(spec, out)
    assert SearchSpec.read(out) == opened
    assert _open(spec, out) == opened, "and it is the study's home from now on"


def test_a_storage_without_trials_can_still_be_changed(tmp_path):
    out = tmp_path / "out"
    _open(make_spec(storage=f"sqlite:///{tmp_path}/wrong.db"), out)
    opened = _open(make_spec(storage=f"sqlite:///{tmp_path}/right.db"), out)
    assert SearchSpec.read(out).config.storage == opened.config.storage
    assert opened.config.storage.endswith("right.db")


@pytest.mark.parametrize("home", ["sqlite:///{}/first.db", None])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("advice", ["set it back", "remove the folder"])
def test_a_storage_with_trials_is_kept_and_the_advice_works(tmp_path, home, lost, advice):
    out, databases = tmp_path / "out", tmp_path / "databases"
    databases.mkdir()
    first = make_spec(storage=home and home.format(databases))
    opened = _open(first, out)
    study = open_study(open_storage(out, opened.config.storage), opened.study, opened.directions)
    study.tell(study.ask(DISTRIBUTIONS), 0.5)
    other = make_spec(storage=f"sqlite:///{tmp_path}/second.db")
    if lost:
        databases.rename(tmp_path / "moved")
    with pytest.raises(UsageError) as refused:
        _open(other, out)
    sentence = str(refused.value)
    assert "set `search.storage` back" in sentence
    assert f"remove {out}" in sentence
    assert ("cannot be looked at" in sentence) == (lost and home is not None)
    if advice == "set it back":
        if lost:
            (tmp_path / "moved").rename(databases)
        assert _open(first, out).study == opened.study
    else:
        shutil.rmtree(out)
        assert _open(other, out).config.storage == other.config.storage
